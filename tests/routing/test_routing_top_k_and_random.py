"""Gates, noise and second choices of the routers by largest logit, against numpy."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from routing_cases import context, jit, make, normal

from moe_vision.config import registry

G, T, D, E = 3, 40, 6, 5


@functools.cache
def router(name, args=(), k=2, e=E):
    return jit(make((name, args), e, k).__call__)


def route(
    name='top_k',
    k=2,
    e=E,
    key=0,
    group=None,
    train=True,
    fraction=0.0,
    kernel=None,
    features=None,
    params=None,
    **args,
):
    features = normal(1, G, T, D) if features is None else jnp.asarray(features, jnp.float32)
    kernel = normal(2, D, e) if kernel is None else kernel
    g, t = features.shape[:2]
    ctx = context(groups=g, tokens=t, key=key, group=group, train=train, fraction=fraction)
    return router(name, tuple(sorted(args.items())), k, e)(
        {'kernel': kernel, **(params or {})}, {}, features, ctx
    )


def task_gradient(case, k):
    """Of some function of the gates, by the router's kernel."""
    ctx = context(groups=G, tokens=T)

    def task(kernel):
        routing = make(case, E, k)({'kernel': kernel}, {}, normal(1, G, T, D), ctx)
        return jnp.sum(jnp.sin(routing.gate))

    return np.asarray(jit(jax.grad(task))(normal(2, D, E)))


def softmax(a):
    a = np.exp(a - a.max(-1, keepdims=True))
    return a / a.sum(-1, keepdims=True)


def reference_logits():
    x = np.asarray(normal(1, G, T, D), np.float64)
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    return x @ np.asarray(normal(2, D, E), np.float64)


def test_logits_are_linear_in_normalised_features_without_bias():
    routing = route()
    np.testing.assert_allclose(routing.logits, reference_logits(), atol=1e-5)
    order = np.argsort(-reference_logits(), -1)
    np.testing.assert_array_equal(routing.expert_of_choice, order[..., :2])
    np.testing.assert_allclose(routing.probs, softmax(reference_logits()), atol=1e-6)


@pytest.mark.parametrize('k', [1, 2, 5])
@pytest.mark.parametrize('renormalize', [False, True])
@pytest.mark.parametrize('gate', ['softmax_top_k', 'top_k_softmax', 'sigmoid'])
def test_gates(gate, k, renormalize):
    routing = route(k=k, gate=gate, renormalize=renormalize, gate_scale=2.0)
    top = -np.sort(-reference_logits(), -1)[..., :k]
    if gate == 'softmax_top_k':  # over all experts, before the choice
        want = -np.sort(-softmax(reference_logits()), -1)[..., :k]
    elif gate == 'top_k_softmax':  # over the chosen ones
        want = softmax(top)
    else:
        want = 1 / (1 + np.exp(-top))
    if renormalize:
        want = want / want.sum(-1, keepdims=True)
    np.testing.assert_allclose(routing.gate, 2 * want, rtol=1e-4)


def test_default_gate_follows_one_rule_for_every_k():
    one, two = route(k=1), route(k=2)
    np.testing.assert_array_equal(one.gate[..., 0], two.gate[..., 0])
    assert (np.asarray(one.gate) < 1).all()  # Switch: the gate is p, not 1
    assert (np.asarray(two.gate).sum(-1) < 1).all()  # V-MoE: not renormalised


def test_softmax_over_one_choice_is_one_and_teaches_the_router_nothing():
    np.testing.assert_array_equal(route(k=1, gate='top_k_softmax').gate, 1)

    assert (task_gradient(('top_k', (('gate', 'top_k_softmax'),)), 1) == 0).all()
    for gate in ('softmax_top_k', 'sigmoid'):
        assert (task_gradient(('top_k', (('gate', gate),)), 1) != 0).any()


NOISES = [{'noise': 'gaussian'}, {'noise': 'learned'}, {'noise': 'jitter'}]


def noise_params(noise):
    return {'noise_kernel': normal(3, D, E)} if noise['noise'] == 'learned' else {}


@pytest.mark.parametrize('noise', NOISES, ids=lambda n: n['noise'])
def test_noise_only_while_training(noise):
    params = noise_params(noise)

    def seen(**given):
        return np.asarray(route(**noise, params=params, **given).noisy_logits)

    np.testing.assert_array_equal(seen(train=False), route().logits)
    np.testing.assert_array_equal(seen(train=False, key=3), seen(train=False))
    np.testing.assert_array_equal(seen(key=3), seen(key=3))
    assert (seen(key=3) != seen(key=4)).mean() > 0.99
    first, second = seen()[0] - seen(train=False)[0], seen()[1] - seen(train=False)[1]
    assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.4  # each group its own


@pytest.mark.parametrize('settled', [True, False, None])
@pytest.mark.parametrize('noise', [*NOISES, {'second_choice': 'random'}], ids=str)
def test_a_settled_router_routes_in_training_as_in_evaluation(noise, settled):
    given = {'kernel': normal(2, D, E), **noise_params({'noise': 'none'} | noise)}

    def choice(train, settled=None):
        ctx = context(groups=G, tokens=T, train=train)
        ctx = dataclasses.replace(ctx, settled=None if settled is None else jnp.asarray(settled))
        made = router('top_k', tuple(noise.items()))(given, {}, normal(1, G, T, D), ctx)
        return np.concatenate([made.gate, made.expert_of_choice, made.active], -1)

    noisy, clean, found = choice(True), choice(False), choice(True, settled)
    np.testing.assert_allclose(found, clean if settled else noisy, rtol=1e-5)
    assert np.abs(noisy - clean).max() > 1e-3


def test_gaussian_noise_has_deviation_one_over_experts():
    routing = route(noise='gaussian', noise_scale=1.5, features=normal(4, 8, 200, D))
    noise = np.asarray(routing.noisy_logits - routing.logits)
    assert routing.noise_std == pytest.approx(1.5 / E)
    # 8,000 draws: the standard error of their deviation is 0.3 / sqrt(16,000) = 0.0024.
    assert noise.std() == pytest.approx(0.3, abs=0.012) and abs(noise.mean()) < 0.02
    # Chosen and weighed by the noisy logits; told without the noise.
    np.testing.assert_array_equal(
        routing.expert_of_choice, np.argsort(-np.asarray(routing.noisy_logits), -1)[..., :2]
    )
    np.testing.assert_allclose(routing.probs, softmax(np.asarray(routing.logits)), atol=1e-6)


def test_learned_noise_has_deviation_softplus():
    kernel = normal(3, D, E)
    routing = route(noise='learned', params={'noise_kernel': kernel})
    x = np.asarray(normal(1, G, T, D), np.float64)
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(
        routing.noise_std, np.log1p(np.exp(x @ np.asarray(kernel))), rtol=1e-3, atol=1e-5
    )
    z = np.asarray((routing.noisy_logits - routing.logits) / routing.noise_std)
    assert z.std() == pytest.approx(1, abs=0.15)  # 600 draws: standard error 0.029


def test_jitter_is_a_hundredth():
    # Two features, normalised to +-1; kernel (1, 0) shows the first one's factor 1 +- 0.01.
    features = jnp.broadcast_to(jnp.asarray([2.0, -2.0]), (1, 500, 2))
    kernel = jnp.asarray([[1.0, 0.0], [0.0, 0.0]])
    factor = np.asarray(route(noise='jitter', features=features, kernel=kernel, e=2).logits)[..., 0]
    assert 0.9899 < factor.min() < 0.9905 and 1.0095 < factor.max() < 1.0101
    assert factor.mean() == pytest.approx(1, abs=0.002)


SECOND = {'second_choice': 'random', 'renormalize': True}


def test_second_choice_with_equal_gates_is_always_kept():
    for logits in ([0.0, 0.0], [0.0, 0.0, -9.0, -9.0]):
        e = len(logits)  # features normalise to (1, -1): kernel row 0 gives the logits
        kernel = jnp.stack([jnp.asarray(logits), jnp.zeros(e)])
        features = jnp.broadcast_to(jnp.asarray([1.0, -1.0]), (4, 500, 2))
        routing = route(kernel=kernel, features=features, e=e, **SECOND)
        assert routing.active.all()
        np.testing.assert_allclose(routing.gate, 0.5, rtol=1e-5)


def test_second_choice_is_kept_with_twice_its_share():
    routing = route(features=normal(4, 16, 200, D), **SECOND)
    always = route(features=normal(4, 16, 200, D), renormalize=True)
    share = np.asarray(always.gate[..., 1], np.float64)  # g2 / (g1 + g2), at most 1/2
    kept = np.asarray(routing.active[..., 1])
    expected, sd = (2 * share).sum(), np.sqrt((2 * share * (1 - 2 * share)).sum())
    assert abs(kept.sum() - expected) < 5 * sd
    assert 0.3 < kept.mean() < 0.9  # something is at stake
    assert routing.active[..., 0].all()
    # Gates are shares of both, whether or not the second was kept (GShard, algorithm 1).
    np.testing.assert_array_equal(routing.gate, always.gate)
    assert route(features=normal(4, 16, 200, D), train=False, **SECOND).active.all()


def test_frozen_router_routes_like_the_learned_one():
    frozen, learned = route('frozen_random'), route('top_k')
    np.testing.assert_array_equal(frozen.expert_of_choice, learned.expert_of_choice)
    assert (task_gradient(('frozen_random', ()), 2) == 0).all()


def test_random_router():
    routing = route('random', features=normal(4, 8, 500, D))
    np.testing.assert_array_equal(routing.gate, 0.5)  # 1 / k
    ids = np.asarray(routing.expert_of_choice)
    assert (ids[..., 0] != ids[..., 1]).all()
    # 8 * 500 tokens, each expert has 2 in 5: 1600 +- sqrt(4000 * .4 * .6) = 31 (sd); 5 allowed.
    np.testing.assert_allclose(np.bincount(ids.ravel(), minlength=E), 1600, atol=155)
    other_key = np.asarray(route('random', key=1, features=normal(4, 8, 500, D)).expert_of_choice)
    assert (ids != other_key).any(-1).mean() > 0.5
    assert (ids[0] != ids[1]).any(-1).mean() > 0.5  # another group, another draw
    # The draw is told by (key, group): not by what the tokens are, nor by where the group lies.
    moved = route('random', group=np.arange(8)[::-1].copy(), features=normal(5, 8, 500, D))
    np.testing.assert_array_equal(moved.expert_of_choice, ids[::-1])
    again = route('random', train=False, features=normal(4, 8, 500, D))
    np.testing.assert_array_equal(again.expert_of_choice, ids)
    assert registry.entry('router', registry.ROUTERS, 'random').args().gate_scale == 1


@pytest.mark.parametrize('share', [0.3, 0.8])
def test_entropy_floor_lifts_each_token_by_itself(share):
    args = {'temperature': 'entropy_floor', 'entropy_floor': share, 'temperature_end': 0.05}
    kernel = 4 * normal(2, D, E)
    routing = route(kernel=kernel, fraction=1.0, **args)
    p = np.asarray(routing.probs, np.float64)
    entropy = -(p * np.log(np.maximum(p, 1e-30))).sum(-1)
    assert (entropy >= share * np.log(E) - 1e-4).all()
    tau = np.asarray(routing.temperature)
    assert tau.shape == (G, T) and tau.std() > 0 and (tau >= 0.05 - 1e-6).all()
    lifted = tau > 0.0501
    np.testing.assert_allclose(entropy[lifted], share * np.log(E), atol=1e-3)  # no more than that
    alone = route(kernel=kernel, fraction=1.0, features=normal(1, G, T, D)[1:2, 3:4], **args)
    np.testing.assert_allclose(alone.temperature[0, 0], tau[1, 3], rtol=1e-5)
