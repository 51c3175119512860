"""Layers that unlock each other's experts (routing_methods 3.6).

A pool of two or three layers has E = 6 experts. Axes: G groups, T tokens, E experts, D width.
"""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from layer_cases import TRAIN, init, moe, normal, tokens
from leverage_cases import make as config
from model_cases import abstract, build, paths
from routing_cases import context, jit, view

from moe_vision.common.errors import UserError
from moe_vision.common.place import Place
from moe_vision.layers.moe import make_router
from moe_vision.routing import losses
from moe_vision.routing.types import Routing

T, D = 8, 5


def router(pool_layer=0, pool_layers=2, k=2, experts=6, **args):
    place = Place(experts, k, T, layer=pool_layer, pool_layer=pool_layer, pool_layers=pool_layers)
    return make_router('rexmoe', args, place)


def test_the_number_of_unlocked_experts_follows_the_formula():
    """From 2 to 6 between the shares 0.2 and 0.6: one more at each tenth."""
    made = router(pool_layers=3, start=0.2, end=0.6)
    shares = [0.0, 0.19, 0.25, 0.35, 0.45, 0.55, 0.6, 1.0]
    assert [int(made.unlocked(f)) for f in shares] == [2, 2, 2, 3, 4, 5, 6, 6]
    many = [int(made.unlocked(f)) for f in np.linspace(0, 1, 41)]
    assert many == sorted(many)
    at_once = router(pool_layers=3, start=0.5, end=0.5)
    assert [int(at_once.unlocked(f)) for f in (0.49, 0.5)] == [2, 6]
    assert int(router(pool_layers=3, start=0.0, end=0.0).unlocked(0.0)) == 6


def test_experts_of_the_nearest_layers_come_first():
    orders = [router(n, 3).order().tolist() for n in range(3)]
    assert orders == [[0, 1, 2, 3, 4, 5], [2, 3, 0, 1, 4, 5], [4, 5, 2, 3, 0, 1]]
    mixed = router(1, 3, order='random').order().tolist()
    assert mixed[:2] == [2, 3] and sorted(mixed) == list(range(6))
    assert mixed == router(1, 3, order='random').order().tolist()  # the same in every process


@pytest.mark.parametrize('layer', [0, 1])
@pytest.mark.parametrize('renormalize', [False, True])
def test_before_the_start_routes_are_those_of_a_local_router(layer, renormalize):
    """The other experts change no bit. A router of three columns makes the same choices; its gates
    are the same but for the last bit, because XLA sums a product of three columns otherwise."""
    x, kernel, own = normal(1, 2, T, D), normal(2, D, 6), 3 * layer
    local = make_router('top_k', {'renormalize': renormalize}, Place(3, 2, T))
    made = router(layer, renormalize=renormalize)

    @jit
    def both(kernel, fraction):
        ctx = context(fraction=fraction)
        mine = kernel[:, own : own + 3]
        return made({'kernel': kernel}, {}, x, ctx), local({'kernel': mine}, {}, x, ctx)

    ours, theirs = both(kernel, 0.05)
    np.testing.assert_array_equal(ours.expert_of_choice, theirs.expert_of_choice + own)
    np.testing.assert_allclose(ours.gate, theirs.gate, rtol=1e-6)
    np.testing.assert_allclose(ours.probs[..., own : own + 3], theirs.probs, rtol=1e-6)
    others = normal(3, D, 6).at[:, own : own + 3].set(kernel[:, own : own + 3])
    chex.assert_trees_all_equal(both(others, 0.05)[0], ours)
    after, _ = both(kernel, 0.3)  # the end by default
    assert not np.array_equal(after.expert_of_choice, ours.expert_of_choice)
    assert np.asarray(after.allowed).all() and np.asarray(ours.allowed).sum() == 2 * 3


def test_balance_losses_count_the_unlocked_experts_alone():
    """Two of four experts may be chosen, with summed probabilities 3 and 1, and choices 3 and 1.

    CV^2 = 1 / 4. Switch: 2 (3/4 3/4 + 1/4 1/4) = 1.25. Of all four, they would be 1.5 and 2.5.
    """
    p = np.array(
        [[0.9, 0.0, 0.1, 0.0], [0.8, 0.0, 0.2, 0.0], [0.7, 0.0, 0.3, 0.0]] + [[0.6, 0, 0.4, 0]]
    )
    routing = Routing(
        probs=jnp.asarray(p[None], jnp.float32),
        logits=jnp.zeros((1, 4, 4)),
        expert_of_choice=jnp.asarray([[[0], [0], [0], [2]]]),
        gate=jnp.ones((1, 4, 1)),
        active=jnp.ones((1, 4, 1), bool),
        allowed=jnp.asarray([[True, False, True, False]]),
        noisy_logits=jnp.where(p[None] > 0, p[None], -1e9),
        noise_std=jnp.float32(0.5),
    )
    ctx = context(groups=1, tokens=4)

    @functools.partial(jit, static_argnums=0)
    def of(loss, routing):
        return loss(routing, ctx, view(routing.probs.shape[-1]))[0]

    def value(loss, routing):
        return float(of(loss, routing))

    everything = dataclasses.replace(routing, allowed=None)
    for loss, own, of_all in (
        (losses.importance, 0.25, 1.5),
        (losses.switch, 1.25, 2.5),
        (losses.switch_top_1, 1.25, 2.5),
    ):
        assert value(loss, routing) == pytest.approx(own)
        assert value(loss, everything) == pytest.approx(of_all)
    pair = dataclasses.replace(  # the same two experts without the others
        routing,
        logits=routing.noisy_logits[..., ::2],
        noisy_logits=routing.noisy_logits[..., ::2],
        probs=routing.probs[..., ::2],
        allowed=None,
    )
    with_locked = dataclasses.replace(routing, logits=routing.noisy_logits)
    alone = value(losses.load, pair)
    assert value(losses.load, with_locked) == pytest.approx(alone) and alone > 0


@functools.cache
def gradients():
    """The layer with its own and other experts, and what each expert's bias learns, by share."""
    layer = moe(
        6,
        2,
        router='rexmoe',
        capacity_factor=float('inf'),
        losses={'importance': 1.0, 'switch': 1.0},
        pool_layer=1,
        pool_layers=3,
    )
    x = tokens('mlp', 32)
    variables = init(layer, x)

    @jit
    def run(fraction):
        def loss(params):
            step = dataclasses.replace(TRAIN, fraction=fraction)
            y, info = layer.apply({'params': params}, x, step)
            return jnp.sin(y).sum() + sum(info['losses'].values()), (y, info['telemetry'])

        return jax.grad(loss, has_aux=True)(variables['params'])

    return run, variables['params'], x


def test_gradients_reach_other_layers_experts_once_they_are_unlocked():
    run, _, _ = gradients()
    for share, open_ids in (
        (0.0, [2, 3]),
        (0.16, [0, 2, 3]),
        (0.21, [0, 1, 2, 3]),
        (0.9, range(6)),
    ):
        d, (_, telemetry) = run(share)
        assert np.flatnonzero(telemetry['chosen']).tolist() == list(open_ids)
        touched = np.abs(d['experts']['in_bias']).sum(1) > 0
        assert np.flatnonzero(touched).tolist() == list(open_ids)
        learns = np.abs(d['router']['kernel']).sum(0) > 0
        assert np.flatnonzero(learns).tolist() == list(open_ids)


def test_a_locked_layer_says_what_a_layer_of_its_own_experts_says():
    run, params, x = gradients()
    local = moe(2, 2, router='top_k', capacity_factor=float('inf'))
    mine = {
        'experts': {n: w[2:4] for n, w in params['experts'].items()},
        'router': {'kernel': params['router']['kernel'][:, 2:4]},
    }
    want, _ = jit(lambda: local.apply({'params': mine}, x, TRAIN))()
    np.testing.assert_allclose(run(0.0)[1][0], want, rtol=1e-5, atol=1e-5)


def test_a_pool_has_its_experts_once_and_each_router_a_column_for_all():
    own, pool = (
        paths(abstract(build('vit', 'every_1', router=name, losses={}, **more))['params'])
        for name, more in (('top_k', {}), ('rexmoe', {'bank': '2', 'num_experts': 6}))
    )
    banks = [a.size for n, a in pool.items() if 'experts/' in n]
    assert sum(banks) == sum(a.size for n, a in own.items() if 'experts/' in n)
    for block in ('block_0', 'block_1'):
        assert own[f'{block}/router/kernel'].shape == (16, 3)
        assert pool[f'{block}/router/kernel'].shape == (16, 6)


POOL = {
    'model__moe__router': 'rexmoe',
    'model__moe__router_args': {},
    'model__moe__losses': {},
    'model__moe__placement': 'last_2',
    'model__moe__bank': '2',
    'model__moe__num_experts': 8,
    'model__args': {'widths': (8,), 'depth': 2},
}


@pytest.mark.parametrize(
    'changes, says',
    [
        ({'model__moe__bank': 'own'}, "bank is 'own' for 2 routed layers; set it to 'stage'"),
        ({'model__moe__placement': 'head', 'model__moe__bank': '1'}, '1 routed layers'),
        ({'model__moe__num_experts': 5}, 'each owns 2.5; that must be a whole number'),
        ({'model__moe__k': 5}, 'each owns 4; that must be .* at least model.moe.k 5'),
        ({'model__moe__layers': {'1': {'k': 5}}}, 'each owns 4.*model.moe.k 5'),
        ({'model__moe__router_args': {'start': 0.5}}, 'start is 0.5 and end is 0.3'),
    ],
)
def test_a_pool_that_does_not_fit_is_refused_in_one_line(changes, says):
    config(**POOL)
    with pytest.raises(UserError, match=says) as told:
        config(**POOL | changes)
    assert '\n' not in str(told.value)
