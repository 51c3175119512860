"""What holds for every router of the table: a new line there is tested by these."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from routing_cases import (
    CASES,
    FROZEN,
    NOT_OF_EXPERTS,
    PRIORITIES,
    C,
    D,
    E,
    F,
    G,
    T,
    case_id,
    compiled,
    context,
    draws,
    equations,
    experts,
    inputs,
    jit,
    losses_of,
    make,
    normal,
    parametrized,
    within_images,
)

from moe_vision.routing.linear import linear
from moe_vision.routing.plan import index_plan
from moe_vision.routing.types import Routing, SoftRouting

every_router = parametrized(CASES)
VALID = np.array([[1, 0, 1, 1, 0, 1, 1, 1], [0, 1, 1, 1, 1, 1, 0, 1]], bool)


def hard_plans(out):
    if isinstance(out['routing'], SoftRouting):
        pytest.skip('soft: no slots to fill')
    assert set(out['plans']) == set(PRIORITIES)
    return out['plans'].items()


def of_token(routing):
    """How many choices a token has, K, or how many may take it; of soft routing 1."""
    return 1 if isinstance(routing, SoftRouting) else routing.gate.shape[-1]


def all_outputs(given):
    """What each expert would say to each token, [E, G, T, F]."""
    x = jnp.broadcast_to(given['x'].reshape(1, G * T, D), (E, G * T, D))
    return experts(given['weights'])(x).reshape(E, G, T, F)


def known_of(given, to, move):
    """The context `to` with what is known of the given tokens, moved as they are."""
    of = given['context']
    extras = {name: move(values) for name, values in of.extras.items()}
    return dataclasses.replace(to, labels=move(of.labels), extras=extras)


@every_router
def test_plan_invariants(case):
    given = inputs(case)
    given['context'] = context(VALID)
    _, out = compiled(case)(given)
    routing = out['routing']
    for priority, plan in hard_plans(out):
        chex.assert_shape((plan.keep, plan.slot, routing.gate), (G, T, of_token(routing)))
        chex.assert_shape((plan.filled, plan.src_token, plan.src_choice), (E, G, C))
        ids, keep = np.asarray(plan.expert_of_choice), np.asarray(plan.keep)
        slots = np.asarray(plan.slot)[keep]
        assert len(set(slots)) == len(slots) == plan.filled.sum()  # no slot twice
        assert (keep.sum(-1) <= of_token(routing)).all()
        assert not keep[~VALID].any()
        assert not keep[ids >= E].any()  # null experts take no slot
        assert not keep[~np.asarray(routing.active)].any()
        wants = (ids < E) & np.asarray(routing.active)
        for e in range(E):
            wanted = (wants & (ids == e)).sum((1, 2))
            held = (keep & (ids == e)).sum((1, 2))
            np.testing.assert_array_equal(held, np.minimum(wanted, C), err_msg=priority)
        for e, g, c in np.argwhere(plan.filled):  # the two tables are each other's inverse
            token, choice = int(plan.src_token[e, g, c]) - g * T, int(plan.src_choice[e, g, c])
            assert ids[g, token, choice] == e and keep[g, token, choice]
            assert plan.slot[g, token, choice] == (e * G + g) * C + c
        chosen = np.sort(ids[VALID], -1)
        assert (np.diff(chosen, axis=-1) > 0).all()  # different ones


@every_router
def test_output_is_the_gated_sum_of_what_was_kept(case):
    given = inputs(case)
    given['context'] = context(VALID)
    _, out = compiled(case)(given)
    each, routing = all_outputs(given), out['routing']
    if isinstance(routing, SoftRouting):
        np.testing.assert_allclose(routing.combine.sum((2, 3)), 1, rtol=1e-6)
        x = jnp.where(VALID[..., None], given['x'], 0)
        if routing.dispatch is None:
            want = jnp.einsum('gte,egtf->gtf', routing.combine[..., 0], each)
        else:
            np.testing.assert_allclose(routing.dispatch.sum(1), 1, rtol=1e-6)
            assert (np.asarray(routing.dispatch)[~VALID] == 0).all()
            slots = jnp.einsum('gtep,gtd->egpd', routing.dispatch, x)
            said = experts(given['weights'])(slots.reshape(E, -1, D)).reshape(E, G, -1, F)
            want = jnp.einsum('gtep,egpf->gtf', routing.combine, said)
        chex.assert_trees_all_close(out['y']['soft'], want * VALID[..., None], atol=1e-5)
        return
    for priority, plan in hard_plans(out):
        ids = np.minimum(plan.expert_of_choice, E - 1)
        mine = each[ids, np.arange(G)[:, None, None], np.arange(T)[None, :, None]]  # [G, T, K, F]
        want = jnp.sum(mine * (plan.gate * plan.keep)[..., None], 2)
        y = out['y'][priority]
        chex.assert_trees_all_close(y, want, atol=1e-5)
        assert (np.asarray(y)[~np.asarray(plan.keep).any(-1)] == 0).all()  # exactly


@every_router
def test_counts_agree_with_the_plan(case):
    given = inputs(case)
    given['context'] = context(np.random.default_rng(1).random((G, T)) < 0.8)
    _, out = compiled(case)(given)
    valid, routing = np.asarray(given['context'].valid), out['routing']
    for priority, counts in out['counts'].items():
        assert all(v.dtype == np.float32 and v.shape[0] == G for v in counts.values())
        np.testing.assert_array_equal(counts['tokens'], valid.sum(1))
        np.testing.assert_allclose(
            counts['probs'], (routing.probs * valid[..., None]).sum(1), rtol=1e-5
        )
        if priority == 'soft':  # loads are mean combine weights
            weights = (routing.combine.sum(-1) * valid[..., None]).sum(1)
            np.testing.assert_allclose(counts['chosen'], weights, rtol=1e-5)
            continue
        plan, active = out['plans'][priority], np.asarray(routing.active)
        ids = np.asarray(routing.expert_of_choice)
        for g in range(G):
            chosen = np.bincount(ids[g][active[g]], minlength=routing.probs.shape[-1])
            np.testing.assert_array_equal(counts['chosen'][g], chosen)
            kept = np.bincount(ids[g][plan.keep[g]], minlength=E)
            np.testing.assert_array_equal(counts['kept'][g], kept)
            assert counts['dropped'][g] == counts['choices'][g] - kept.sum()
            made = (active[g] & (ids[g] < E)).sum(-1), (active[g] & (ids[g] >= E)).sum(-1)
            orphan = (made[0] > 0) & (made[1] == 0) & (plan.keep[g].sum(-1) == 0)
            assert counts['orphans'][g] == orphan.sum()
            assert counts['slots'][g] == E * C


@every_router
def test_probabilities_are_a_float32_distribution(case):
    _, out = compiled(case)(inputs(case))
    probs = out['routing'].probs
    chex.assert_shape(probs, (G, T, make(case).num_ids))
    chex.assert_type([probs, out['routing'].logits], jnp.float32)
    np.testing.assert_allclose(probs.sum(-1), 1, rtol=1e-6)
    assert (probs >= 0).all()


@every_router
@pytest.mark.parametrize('rubbish', [np.nan, 1e4])
def test_padding_changes_nothing(case, rubbish):
    given = inputs(case)
    given['context'] = context(VALID)
    clean_grads, clean = compiled(case)(given)
    hole = ~VALID[..., None]
    for name in ('features', 'x'):
        given[name] = jnp.where(hole, rubbish, given[name])
    grads, out = compiled(case)(given)
    for name in ('y', 'losses', 'counts'):
        chex.assert_trees_all_equal(out[name], clean[name])
    chex.assert_trees_all_equal(grads, clean_grads)
    chex.assert_tree_all_finite(grads)
    for y in out['y'].values():
        assert (np.asarray(y)[~VALID] == 0).all()
    for counts in out['counts'].values():
        np.testing.assert_array_equal(counts['tokens'], VALID.sum(1))
        most = of_token(out['routing']) * VALID.sum(1)
        assert (counts['chosen'].sum(-1) <= most + 1e-4).all()


@every_router
def test_padding_takes_nobodys_place(case):
    """Valid tokens fare the same wherever the padding between them lies."""
    if draws(case) or within_images(case):
        pytest.skip('what is drawn belongs to the place of a token, as its image does')
    given = inputs(case)
    given['context'] = context(VALID)
    grads, out = compiled(case)(given)
    order = np.argsort(~VALID, axis=1, kind='stable')  # valid ones first, in their order

    def move(a):
        return jnp.take_along_axis(a, order[..., None], 1)

    moved = given | {
        'features': move(given['features']),
        'x': move(given['x']),
        'context': known_of(
            given,
            context(np.take_along_axis(VALID, order, 1)),
            lambda a: jnp.take_along_axis(a, order.reshape(G, T, *(1,) * (a.ndim - 2)), 1),
        ),
    }
    grads2, out2 = compiled(case)(moved)
    for priority in {'token', 'gate', 'soft'} & set(out['y']):
        chex.assert_trees_all_close(out2['y'][priority], move(out['y'][priority]), atol=1e-5)
        chex.assert_trees_all_close(out2['counts'][priority], out['counts'][priority], atol=1e-4)
    chex.assert_trees_all_close(out2['losses'], out['losses'], rtol=1e-4)
    chex.assert_trees_all_close(grads2['weights'], grads['weights'], atol=1e-4)
    chex.assert_trees_all_close(grads2['x'], move(grads['x']), atol=1e-4)


@every_router
def test_groups_do_not_see_each_other(case):
    given = inputs(case)
    _, out = compiled(case)(given)
    changed = given | {
        'features': given['features'].at[1].set(normal(5, *given['features'].shape[1:])),
        'x': given['x'].at[1].set(9.0),
    }
    _, out2 = compiled(case)(changed)
    for name in ('y', 'losses', 'counts'):
        chex.assert_trees_all_equal(
            *(jax.tree.map(lambda a: a[0], tree[name]) for tree in (out2, out))
        )
    # A group is the same wherever it lies: its number, not its place, says what is drawn.
    swapped = given | {
        'features': given['features'][::-1],
        'x': given['x'][::-1],
        'context': known_of(given, context(group=np.arange(G)[::-1].copy()), lambda a: a[::-1]),
    }
    _, out3 = compiled(case)(swapped)
    chex.assert_trees_all_close(out3['y'], jax.tree.map(lambda a: a[::-1], out['y']), atol=1e-6)
    chex.assert_trees_all_close(
        out3['losses'], jax.tree.map(lambda a: a[::-1], out['losses']), rtol=1e-5
    )


@every_router
def test_permuting_experts_permutes_everything(case):
    router, given = make(case), inputs(case)
    if draws(case):
        pytest.skip('what is drawn belongs to the id of an expert')
    if case[0] in ('supervised', 'oracle', 'dselect_k'):
        pytest.skip('classes, domains and digits belong to the id of an expert')
    perm = np.array([2, 0, 3, 1])
    few, many = (r.params(D) | r.shared_params() for r in (router, make(case, E + 1)))
    of_experts = {name for name in few if few[name][0] != many[name][0]}

    def columns(a):  # the last axis holds P columns for each expert, then those of null experts
        if a.ndim == 0 or a.shape[-1] < E:
            return a
        null = router.num_ids - E
        p = (a.shape[-1] - null) // E
        own = a[..., : E * p].reshape(*a.shape[:-1], E, p)[..., perm, :]
        return jnp.concatenate([own.reshape(*a.shape[:-1], E * p), a[..., E * p :]], -1)

    def moved_params(params):
        return {n: columns(a) if n in of_experts else a for n, a in params.items()}

    moved = given | {
        'params': moved_params(given['params']),
        'state': {n: a if n in NOT_OF_EXPERTS else columns(a) for n, a in given['state'].items()},
        'weights': jax.tree.map(lambda a: a[perm], given['weights']),
    }
    grads, out = compiled(case)(given)
    grads2, out2 = compiled(case)(moved)
    # The gate of a token's only choice is 1 in dynamoe, so rounding decides which token is first.
    names = ({'token', 'soft'} if case[0] == 'dynamoe' else {'token', 'gate', 'soft'}) & set(
        out['y']
    )
    for name in names:
        chex.assert_trees_all_close(out2['y'][name], out['y'][name], atol=1e-5)
        chex.assert_trees_all_close(
            out2['counts'][name]['chosen'], columns(out['counts'][name]['chosen']), atol=1e-4
        )
    chex.assert_trees_all_close(out2['losses'], out['losses'], rtol=1e-4)
    chex.assert_trees_all_close(grads2['params'], moved_params(grads['params']), atol=1e-4)


@every_router
def test_other_values_need_no_other_program(case):
    run = compiled(case)
    for seed in range(3):
        given = inputs(case, seed)
        given['context'] = context(
            np.random.default_rng(seed).random((G, T)) < 0.8,
            key=seed,
            group=np.arange(G) + 5 * seed,
            fraction=seed / 3,
        )
        run(given)
    assert run.forward._cache_size() == run.backward._cache_size() == 1


@every_router
def test_task_gradient_reaches_what_is_learned(case):
    grads, _ = compiled(case)(inputs(case))
    for name, grad in grads['params'].items():
        if name == 'recurrent':
            continue  # it multiplies what an earlier layer says, and here is none
        if case[0] == 'ahead' and name != 'kernel':
            continue  # `pool` takes it, and here features are given
        assert bool(jnp.any(grad != 0)) != (case[0] in FROZEN), name
    for name in ('x', 'weights'):
        assert all(bool(jnp.any(g != 0)) for g in jax.tree.leaves(grads[name]))


@every_router
@pytest.mark.parametrize('corner', ['equal logits', 'zero features', 'nobody', 'large'])
def test_gradients_are_finite_at_corners(case, corner):
    given = inputs(case)
    if corner == 'equal logits':
        given['params'] = jax.tree.map(jnp.zeros_like, given['params'])
    elif corner == 'zero features':
        given |= {n: jnp.zeros_like(given[n]) for n in ('features', 'x')}
    elif corner == 'nobody':  # valid in group 1, everybody in group 0
        given['context'] = context(np.stack([np.ones(T), np.zeros(T)]).astype(bool))
    else:
        given['params'] = jax.tree.map(lambda a: 300 * a, given['params'])
    grads, out = compiled(case)(given)
    chex.assert_tree_all_finite(
        (grads, out['y'], out['losses'], out['counts'], out['routing'].probs)
    )
    if corner == 'nobody':
        for losses in out['losses'].values():
            assert losses[1] == 0
        for counts in out['counts'].values():
            assert all(bool((v[1] == 0).all()) for v in counts.values())


@pytest.mark.tables
@parametrized([c for c in CASES if not c[1]])
def test_gradients_are_finite_with_one_expert(case):
    router, given = make(case, 1, 1), inputs(case, num_experts=1, k=1)

    @jit
    @functools.partial(jax.grad, argnums=(0, 1), has_aux=True)
    def run(params, features, state, ctx):
        routing = router(params, state, features, ctx)
        losses = losses_of(routing, ctx, 1)
        gate = routing.combine if isinstance(routing, SoftRouting) else routing.gate
        return jnp.sum(gate) + sum(jnp.sum(v) for v in losses.values()), losses

    grads, losses = run(given['params'], given['features'], given['state'], given['context'])
    chex.assert_tree_all_finite((grads, losses))
    if router.num_ids == 1:  # one share is a fair share
        np.testing.assert_allclose(losses['importance'], 0, atol=1e-12)


@every_router
def test_arithmetic_stays_float32_for_bfloat16_tokens(case):
    router, given = make(case), inputs(case)
    features = given['features'].astype(jnp.bfloat16)

    def route(params, state, features):
        routing = router(params, state, features, given['context'])
        return routing, losses_of(routing, given['context'])

    traced = jax.make_jaxpr(route)(given['params'], given['state'], features)
    for eqn in equations(traced.jaxpr):
        if eqn.primitive.name in ('dot_general', 'exp', 'reduce_sum', 'top_k', 'div', 'mul'):
            assert all(v.aval.dtype != jnp.bfloat16 for v in eqn.invars), eqn
    routing, losses = jax.eval_shape(route, given['params'], given['state'], features)
    chex.assert_type(list(losses.values()), jnp.float32)
    floats = [
        a
        for a in jax.tree.leaves(dataclasses.replace(routing, temperature=1.0))
        if hasattr(a, 'dtype') and jnp.issubdtype(a.dtype, jnp.floating)
    ]
    chex.assert_type(floats, jnp.float32)
    if isinstance(routing, Routing):
        assert routing.expert_of_choice.dtype == jnp.int32


@pytest.mark.parametrize('factors', [False, True])
def test_normalised_features_times_a_kernel(factors):
    def plainly(x, kernel, factors):
        x = x - x.mean(-1, keepdims=True)
        x = x / jnp.sqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-6)
        return jnp.einsum('gtd,dn->gtn', x if factors is None else x * factors, kernel)

    x, kernel, by, dy = (
        jnp.asarray(np.random.default_rng(n).normal(size=shape), jnp.float32)
        for n, shape in enumerate([(3, 4, 6), (6, 5), (3, 4, 6), (3, 4, 5)])
    )
    by = by if factors else None
    x = x.at[0, 0].set(0.0).at[0, 1].set(1.0).at[0, 2].add(1e3)  # two of no variance; a large mean
    for f in linear, jax.vmap(linear, (0, None, 0 if factors else None)):
        lead = (lambda a: a) if f is linear else (lambda a: None if a is None else a[:, None])
        ours = jax.vjp(lambda x, w: f(lead(x), w, lead(by)).reshape(3, 4, 5), x, kernel)  # noqa: B023
        theirs = jax.vjp(lambda x, w: plainly(x, w, by), x, kernel)
        np.testing.assert_allclose(ours[0][0, 3:], theirs[0][0, 3:], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(ours[0][1:], theirs[0][1:], rtol=1e-5, atol=1e-5)
        # A constant feature of 1 is zero but for units of 6e-8, divided by a deviation of 1e-3.
        np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(
            f(lead(x), kernel, lead(by)).reshape(3, 4, 5), ours[0], rtol=1e-3, atol=1e-3
        )
        (dx, d_kernel), (dx_, d_kernel_) = ours[1](dy), theirs[1](dy)
        np.testing.assert_allclose(dx[1:], dx_[1:], rtol=1e-4, atol=1e-5)
        assert np.isfinite(dx).all()
        np.testing.assert_allclose(d_kernel, d_kernel_, rtol=1e-3, atol=1e-2)
    as_is = x if by is None else by * x
    np.testing.assert_allclose(
        linear(x, kernel, by, normalize=False), jnp.einsum('gtd,dn->gtn', as_is, kernel), 1e-5
    )
    few, by = x[1:, :2], None if by is None else by[1:, :2]  # 4 tokens, 5 ids
    np.testing.assert_allclose(linear(few, kernel, by), plainly(few, kernel, by), 1e-5, 1e-5)


WITH_SWITCH = [
    case
    for case in CASES
    if hasattr(make(case).args, 'normalize_inputs')
    and not dict(case[1])
    and set(make(case).params(D)) <= {'kernel'}
]


@parametrized(WITH_SWITCH)
def test_inputs_are_normalised_unless_switched_off(case):
    """Published routers are not trained on normalised inputs: there the logits are x W."""
    more = {'gate': 'softmax'} if case[0] in ('random', 'oracle') else {}
    router = {
        on: make((case[0], tuple((more | {'normalize_inputs': on}).items())))
        for on in (True, False)
    }
    params = {n: normal(1, *shape) for n, (shape, _) in router[True].params(D).items()}
    state = {n: jnp.zeros_like(v) for n, v in router[True].init_state().items()}
    x, kernel = 3 + 2 * normal(2, G, T, D), params['kernel']
    run = {on: jit(lambda x, r=r: r(params, state, x, context())) for on, r in router.items()}
    off = run[False](x)
    logits = np.asarray(off.logits * off.temperature)
    np.testing.assert_allclose(logits, np.asarray(x) @ np.asarray(kernel), rtol=2e-5, atol=2e-5)
    on = [run[True](a * x + b).logits for a, b in ((1, 0), (5, -4))]
    np.testing.assert_allclose(on[0], on[1], rtol=1e-3, atol=1e-3)
    assert np.abs(np.asarray(on[0]) - np.asarray(off.logits)).max() > 0.1


@pytest.mark.parametrize(
    'case',
    [
        ('top_k', (('gate', 'top_k_softmax'),)),
        ('top_k', (('renormalize', True),)),
        ('top_k', (('gate', 'sigmoid'), ('renormalize', True), ('gate_scale', 2.0))),
        ('supervised', (('gate', 'top_k_softmax'),)),
        ('frozen_random', (('renormalize', True),)),
        ('bias_balanced', ()),
        ('null_experts', ()),
    ],
    ids=case_id,
)
def test_priority_by_gate_ranks_by_probability_where_all_gates_are_equal(case):
    given = inputs(case, k=1)
    routing = jit(make(case, k=1))(*(given[n] for n in ('params', 'state', 'features', 'context')))
    ids, probs = np.asarray(routing.expert_of_choice[..., 0]), np.asarray(routing.probs)
    gates = np.asarray(routing.gate[..., 0])
    assert np.ptp(gates[ids < E]) < 1e-6  # they say nothing
    keep = np.asarray(jit(lambda r: index_plan(r, E, 1, 'gate').keep)(routing)[..., 0])
    dropped = 0
    for g, e in np.ndindex(G, E):
        own = np.flatnonzero(ids[g] == e)
        if len(own):
            best = own[np.argmax(probs[g, own, e])]
            assert np.flatnonzero(keep[g] & (ids[g] == e)).tolist() == [best]
            dropped += best != own[0]
    assert dropped  # in token order another one would have been kept
