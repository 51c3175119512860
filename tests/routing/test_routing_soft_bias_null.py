"""Soft routing, the router with state and the one with null experts."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from routing_cases import context, experts, jit, make, normal

from moe_vision.routing import telemetry
from moe_vision.routing.plan import index_plan
from moe_vision.routing.soft_plan import soft_plan

D, F, E = 6, 5, 3


@functools.partial(jit, static_argnames=('axis', 'p', 'temperature'))
def soft(params, x, weights, axis, p=1, temperature=1.0):
    args = {'axis': axis, 'temperature': temperature}
    if axis != 'none':
        args['slots_per_expert'] = p
    ctx = context(groups=x.shape[0], tokens=x.shape[1])
    routing = make(('soft', tuple(args.items())), E)(params, {}, x, ctx)
    return routing, soft_plan(routing, ctx.valid).apply(x, experts(weights))


def soft_inputs(groups, tokens, p=1, seed=0):
    params = {'slots': normal((seed, 1), D, E * p), 'scale': jnp.float32(3.0)}
    weights = normal((seed, 2), E, D, F), normal((seed, 3), E, 1, F)
    return params, normal((seed, 4), groups, tokens, D), weights


@pytest.mark.parametrize('axis', ['tokens', 'batch'])
def test_groups_of_one_token_are_the_per_sample_form(axis):
    params, x, weights = soft_inputs(7, 1)
    chex.assert_trees_all_close(
        soft(params, x, weights, axis)[1], soft(params, x, weights, 'none')[1], atol=1e-6
    )


def test_soft_weights_against_numpy():
    params, x, weights = soft_inputs(2, 7, p=2)
    routing, y = soft(params, x, weights, 'tokens', p=2)
    x, slots = np.asarray(x), np.asarray(params['slots'])
    logits = 3 * (
        x
        / np.linalg.norm(x, axis=-1, keepdims=True)
        @ (slots / np.linalg.norm(slots, axis=0, keepdims=True))
    )
    np.testing.assert_allclose(routing.logits, logits, atol=1e-5)
    e = np.exp(logits)
    dispatch, combine = e / e.sum(1, keepdims=True), e / e.sum(2, keepdims=True)
    np.testing.assert_allclose(routing.dispatch.reshape(2, 7, -1), dispatch, atol=1e-6)
    np.testing.assert_allclose(routing.combine.reshape(2, 7, -1), combine, atol=1e-6)
    np.testing.assert_allclose(routing.probs, combine.reshape(2, 7, E, 2).sum(-1), atol=1e-6)
    slots = np.einsum('gts,gtd->gsd', dispatch, x).reshape(2, E, 2, D)
    kernel, bias = map(np.asarray, weights)
    out = np.tanh(np.einsum('gepd,edf->gepf', slots, kernel)) + bias
    np.testing.assert_allclose(
        y, np.einsum('gts,gsf->gtf', combine, out.reshape(2, -1, F)), atol=1e-5
    )


@pytest.mark.parametrize('p', [1, 2])
def test_a_group_says_no_more_than_its_slots(p):
    params, x, weights = soft_inputs(1, 20, p)
    wide = (normal(9, E, D, 16), normal(8, E, 1, 16))  # 16 outputs: rank could be 16
    rank = np.linalg.matrix_rank(
        np.asarray(soft(params, x, wide, 'batch', p)[1][0], np.float64), tol=1e-4
    )
    assert rank == E * p
    per_sample = soft({**params, 'slots': params['slots'][:, :E]}, x, wide, 'none')[1][0]
    assert np.linalg.matrix_rank(np.asarray(per_sample, np.float64), tol=1e-4) > 2 * E


@pytest.mark.parametrize('axis, others', [('batch', True), ('tokens', True), ('none', False)])
def test_other_tokens_of_the_group_matter_unless_routed_per_sample(axis, others):
    params, x, weights = soft_inputs(2, 4)
    y, y2 = (np.asarray(soft(params, v, weights, axis)[1]) for v in (x, x.at[0, 3].add(1.0)))
    assert (y[0, :3] != y2[0, :3]).any() == others  # exactly none, where they do not matter
    np.testing.assert_array_equal(y[1], y2[1])


def test_cold_soft_routing_is_the_best_expert_alone():
    params, x, weights = soft_inputs(2, 4)
    routing, y = soft(params, x, weights, 'none', temperature=1e-4)
    best = np.asarray(routing.logits).argmax(-1)
    kernel, bias = weights
    want = jnp.tanh(jnp.einsum('gtd,gtdf->gtf', x, kernel[best])) + bias[best, 0]
    chex.assert_trees_all_close(y, want, atol=1e-5)


@pytest.mark.parametrize('axis', ['batch', 'none'])
def test_gradient_reaches_every_expert(axis):
    params, x, weights = soft_inputs(2, 4)
    args = {'axis': axis}

    def loss(weights):
        ctx = context(groups=2, tokens=4)
        routing = make(('soft', tuple(args.items())), E)(params, {}, x, ctx)
        return jnp.sum(jnp.sin(soft_plan(routing, ctx.valid).apply(x, experts(weights))))

    for gradient in jit(jax.grad(loss))(weights):
        assert (np.abs(np.asarray(gradient)).reshape(E, -1).max(-1) > 1e-6).all()


# bias balancing


@functools.cache
def biased(score='sigmoid', renormalize=True, k=2, e=4):
    return make(('bias_balanced', (('score', score), ('renormalize', renormalize))), e, k)


@pytest.mark.parametrize('score', ['sigmoid', 'softmax'])
def test_the_bias_chooses_and_does_not_weigh(score):
    router, x, params = biased(score, False), normal(0, 1, 50, D), {'kernel': normal(1, D, 4)}
    run = jit(lambda bias: router(params, {'bias': bias}, x, context(groups=1, tokens=50)))
    plain, pushed = run(jnp.zeros(4)), run(jnp.asarray([0.0, 9.0, 0.0, -9.0]))
    assert (np.asarray(pushed.expert_of_choice)[..., 0] == 1).all()
    assert not (np.asarray(pushed.expert_of_choice) == 3).any()
    s = np.asarray(plain.logits, np.float64)
    s = 1 / (1 + np.exp(-s)) if score == 'sigmoid' else np.exp(s) / np.exp(s).sum(-1, keepdims=True)
    for routing in (plain, pushed):  # every gate is the score of its expert
        want = np.take_along_axis(s, np.asarray(routing.expert_of_choice), -1)
        np.testing.assert_allclose(routing.gate, want, rtol=1e-5)
        np.testing.assert_allclose(routing.probs, s / s.sum(-1, keepdims=True), rtol=1e-4)


@pytest.mark.parametrize('score', ['sigmoid', 'softmax'])
def test_nothing_is_taught_to_the_bias(score):
    router, x, params = biased(score), normal(0, 1, 50, D), {'kernel': normal(1, D, 4)}

    def loss(bias):
        routing = router(params, {'bias': bias}, x, context(groups=1, tokens=50))
        return jnp.sum(jnp.sin(routing.gate)) + jnp.sum(jnp.sin(routing.probs))

    np.testing.assert_array_equal(jit(jax.grad(loss))(jnp.asarray([0.1, 0.0, -0.1, 0.2])), 0)


def test_bias_moves_against_the_load_by_the_rate():
    router = biased()
    new = router.update_state(
        {'bias': jnp.asarray([0.5, 0.0, -0.5, 0.0])}, {'chosen': jnp.asarray([10, 6, 2, 6])}
    )  # mean 6
    np.testing.assert_allclose(new['bias'], [0.499, 0, -0.499, 0], atol=1e-7)
    np.testing.assert_array_equal(router.init_state()['bias'], np.zeros(4))


def test_balancing_a_skewed_toy():
    router, x = biased(k=1), normal(0, 1, 200, D)
    kernel = normal(1, D, 4) * jnp.asarray([3.0, 1.0, 1.0, 1.0])  # expert 0 is louder

    @jit
    def loads(bias):
        def step(bias, _):
            ids = router(
                {'kernel': kernel}, {'bias': bias}, x, context(groups=1, tokens=200)
            ).expert_of_choice
            counts = jax.nn.one_hot(ids, 4).sum((0, 1, 2))
            return router.update_state({'bias': bias}, {'chosen': counts})['bias'], counts

        return jax.lax.scan(step, bias, None, length=600)[1]

    counts = np.asarray(loads(jnp.zeros(4)))
    cv = counts.std(-1) / counts.mean(-1)
    assert cv[0] > 0.5 and cv[-20:].mean() < 0.1 * cv[0]


# null experts


def test_null_choices_cost_and_give_nothing():
    router = make(('null_experts', (('null_experts', 2),)), 2, 2)
    # Features normalise to (1, -1) or (-1, 1); logits are the first or the second kernel row,
    # less the other one. Ids 0, 1 are true, 2, 3 null.
    kernel = jnp.asarray([[2.0, 1.0, 0.0, -1.0], [0.0, 0.0, 9.0, 9.0]])
    features = jnp.asarray([[[1.0, -1.0], [-1.0, 1.0], [-1.0, 1.0], [1.0, -1.0]]])
    ctx = context(groups=1, tokens=4)

    @jit
    def run(kernel):
        routing = router({'kernel': kernel}, {}, features, ctx)
        plan = index_plan(routing, 2, 1)  # one slot for each expert
        return (
            routing,
            plan,
            plan.apply(jnp.ones((1, 4, 3)), lambda s: s + 5),
            telemetry.count(routing, plan, ctx),
        )

    routing, plan, y, counts = run(kernel)
    # logits: tokens 0, 3 (2, 1, -9, -10); tokens 1, 2 (-2, -1, 9, 10)
    np.testing.assert_array_equal(routing.expert_of_choice[0], [[0, 1], [3, 2], [3, 2], [0, 1]])
    p = np.exp([2, 1]) / np.exp([2, 1]).sum()  # renormalised over the true ones
    np.testing.assert_allclose(routing.gate[0], [p, [0, 0], [0, 0], p], atol=1e-6)
    # Token 0 has both experts, so (1 + 5) (p1 + p2) = 6; token 3 found them full.
    np.testing.assert_allclose(y[0, :, 0], [6, 0, 0, 0], rtol=1e-6)
    assert (np.asarray(y[0, 1:]) == 0).all()
    want = {'choices': 4, 'dropped': 2, 'orphans': 1, 'slots': 2, 'tokens': 4}
    assert {n: float(counts[n][0]) for n in want} == want
    np.testing.assert_array_equal(counts['chosen'][0], [2, 2, 2, 2])
    np.testing.assert_array_equal(counts['kept'][0], [1, 1])
    rates = telemetry.summarize({n: v.sum(0) for n, v in counts.items()})
    assert rates['null_rate'] == 0.5 and rates['choices_per_token'] == 1.0
    assert rates['drop_rate'] == 0.5 and rates['orphan_rate'] == 0.25


def test_mixed_choices_are_renormalised_over_the_true_ones():
    router = make(('null_experts', (('null_experts', 6),)), 2, 2)
    routing = jit(
        lambda: router(
            {'kernel': normal(1, D, 8)}, {}, normal(0, 1, 300, D), context(groups=1, tokens=300)
        )
    )()
    true = np.asarray(routing.expert_of_choice) < 2
    gate = np.asarray(routing.gate)
    some = true.any(-1)
    np.testing.assert_allclose(gate.sum(-1)[some], 1, rtol=1e-5)
    assert (gate[~true] == 0).all() and 0 < some.mean() < 1
    np.testing.assert_allclose(gate[true & (true.sum(-1, keepdims=True) == 1)], 1, rtol=1e-5)


@pytest.mark.parametrize('axis, p', [('none', 1), ('tokens', 2)])
def test_even_gates_give_the_plain_mean_of_the_slots(axis, p):
    params, x, weights = soft_inputs(2, 7, p=p)
    args = {'axis': axis, 'gate': 'even'} | ({'slots_per_expert': p} if axis != 'none' else {})
    ctx = context(groups=2, tokens=7)
    routing = make(('soft', tuple(args.items())), E)(params, {}, x, ctx)
    assert np.allclose(routing.combine, 1 / (E * p))
    y = soft_plan(routing, ctx.valid).apply(x, experts(weights))
    if axis == 'none':
        tokens = jnp.broadcast_to(x.reshape(1, 14, -1), (E, 14, x.shape[-1]))
        np.testing.assert_allclose(y.reshape(14, -1), experts(weights)(tokens).mean(0), atol=1e-5)
    else:  # the slots are mixtures of all tokens, so all tokens get the same
        np.testing.assert_allclose(y, jnp.broadcast_to(y[:, :1], y.shape), atol=1e-5)
