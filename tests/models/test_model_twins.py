"""Twins: what they share with the routed network, and what they cost."""

import dataclasses
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from model_cases import TRAIN, B, abstract, build, config, filled, images, jit, paths
from slow import except_for

from moe_vision import models
from moe_vision.common import flops
from moe_vision.common.errors import UserError
from moe_vision.common.place import Place
from moe_vision.config import registry
from moe_vision.layers import Step
from moe_vision.models.places import expert_at, expert_flops, expert_params, twin_expert

every_backbone = pytest.mark.parametrize('name', registry.BACKBONES)
some_backbones = pytest.mark.parametrize('name', except_for(('conv', 'vit'), registry.BACKBONES))


def wide_as(moe, twin, *sizes):
    """The dense block of a twin at the first place of a network."""
    return twin_expert(moe, twin, Place(moe.num_experts, moe.k, moe.group_size), *sizes)


@some_backbones
def test_routed_and_dense_networks_begin_equal_wherever_they_share(name):
    kinds = {
        'k2': {},
        'k1': {'k': 1, 'capacity_factor': 1.0},
        'twin': {'twin': 'same_width'},
        'dense': {'placement': 'none'},
    }
    nets = {kind: build(name, **kwargs) for kind, kwargs in kinds.items()}
    begun = jit(
        lambda x: {
            kind: net.init(jax.random.key(3), x, TRAIN)['params'] for kind, net in nets.items()
        }
    )(images())
    chex.assert_trees_all_equal(begun['k1'], begun['k2'])
    routed, twin, dense = (paths(begun[n]) for n in ('k2', 'twin', 'dense'))
    outside = {p for p in routed if not p.startswith('block_1/')}
    assert outside == {p for p in twin if not p.startswith('block_1/')}
    assert outside == {p for p in dense if not p.startswith('block_1/')}
    for path in outside:  # block_0 is routed in none of them
        np.testing.assert_array_equal(routed[path], twin[path])
        np.testing.assert_array_equal(routed[path], dense[path])
    assert any(p.startswith('block_0/') for p in outside)
    # At the routed place the bank holds three of what the twin holds one of.
    for path in set(twin) - outside:
        rest = path.removeprefix('block_1/')
        chex.assert_shape(routed[f'block_1/experts/{rest}'], (3, *twin[path].shape))
    inside = {p for p in routed if p.startswith('block_1/') and '/router/' not in p}
    assert len(inside) == len(set(twin) - outside)


def test_a_vit_twin_of_same_width_is_the_dense_vit():
    nets = [build('vit', twin='same_width'), build('vit', 'none')]
    twin, dense = jit(lambda x: [n.init(jax.random.key(3), x, TRAIN) for n in nets])(images())
    chex.assert_trees_all_equal(twin, dense)


PLACES = [
    ('vit', 'mlp', 16, 64, (16,)),
    ('conv', 'conv', 16, 16, (4, 4, 16)),
    ('depthwise', 'depthwise_conv', 16, 32, (4, 4, 16)),
    ('conv', 'mlp', 16, 64, (16,)),
    ('resnet', 'bottleneck', 32, 8, (4, 4, 32)),
    ('convnext', 'convnext', 16, 64, (4, 4, 16)),
]


def hand_flops(expert, d, f, payload):
    """2 per multiply-accumulate, of one expert on one token."""
    space = math.prod(payload[:-1])
    return {
        'mlp': 2 * 2 * d * f,
        'conv': 2 * 2 * 9 * d * f * space,
        'depthwise_conv': (2 * 9 * d + 2 * 2 * d * f) * space,
        'bottleneck': (2 * 2 * d * f + 2 * 9 * f * f) * space,
        'convnext': (2 * 49 * d + 2 * 2 * d * f) * space,
    }[expert]


@pytest.mark.parametrize('k', [1, 2, 3])
@pytest.mark.parametrize('name, expert, d, f, payload', PLACES)
def test_twin_flops(name, expert, d, f, payload, k):
    moe = config(name, expert=expert, k=k, num_experts=4).moe
    one = expert_flops(expert_at(moe, d, f), payload)
    assert one == hand_flops(expert, d, f, payload)
    assert expert_flops(wide_as(moe, 'same_width', d, f, payload), payload) == one
    wide = wide_as(moe, 'same_active_flops', d, f, payload)
    cost = expert_flops(wide, payload)
    if expert in ('depthwise_conv', 'convnext', 'bottleneck'):
        # the depthwise part is there once, the 3x3 of a bottleneck grows squared: nearest width
        assert nearest(wide, k * one, lambda h: hand_flops(expert, d, h, payload))
    else:
        assert cost == k * one and wide.hidden == k * f


def nearest(expert, target, cost):
    """No other width that the expert allows comes nearer."""
    off = [abs(cost(expert.hidden + n * expert.multiple) - target) for n in (-1, 0, 1)]
    return expert.hidden % expert.multiple == 0 and off[1] == min(off)


def hand_params(expert, d, f):
    return {
        'mlp': 2 * d * f + f + d,
        'conv': 2 * 9 * d * f + 2 * d + 2 * f,
        'depthwise_conv': 9 * d + 2 * d + 2 * d * f + f + d,
        'bottleneck': 2 * d * f + 9 * f * f + 2 * 2 * f + 2 * d,
        'convnext': 49 * d + d + 2 * d + 2 * d * f + f + d + d,
    }[expert]


@pytest.mark.parametrize('router', ['top_k', 'soft', 'random', 'null_experts'])
@pytest.mark.parametrize('name, expert, d, f, payload', PLACES)
def test_twin_parameters(name, expert, d, f, payload, router):
    moe = config(name, expert=expert, router=router, num_experts=4).moe
    assert expert_params(expert_at(moe, d, f)) == hand_params(expert, d, f)
    routed = {'top_k': 4 * d, 'soft': 4 * d + 1, 'random': 0, 'null_experts': 12 * d}[router]
    target = 4 * hand_params(expert, d, f) + routed
    wide = wide_as(moe, 'same_params', d, f, payload)
    # group norm of 4: hidden widths go in fours
    assert wide.multiple == (4 if expert in ('conv', 'bottleneck') else 1)
    assert nearest(wide, target, lambda h: hand_params(expert, d, h))


def test_hidden_width_of_experts_may_be_set():
    moe = config('vit', hidden=24).moe
    assert expert_at(moe, 16, 64).hidden == 24
    assert wide_as(moe, 'same_width', 16, 64, (16,)).hidden == 24
    assert wide_as(moe, 'same_active_flops', 16, 64, (16,)).hidden == 48


@pytest.mark.parametrize(
    'moe, widths',
    [
        # C = ceil(1.25 * 2 * 8 / 4) = 5 of each of 4 experts for 8 tokens: 2.5 experts a token
        ({'k': 2, 'num_experts': 4, 'group_size': 8}, 2.5),
        ({'k': 1, 'num_experts': 4, 'group_size': 8, 'capacity_factor': 1.0}, 1),
        ({'k': 2, 'num_experts': 4, 'group_size': 8, 'capacity_factor': math.inf}, 4),
        ({'k': 2, 'num_experts': 4, 'group_size': 8, 'capacity_multiple': 4}, 4),  # 5 -> 8 slots
        ({'router': 'soft', 'num_experts': 4}, 4),  # every expert sees every token
    ],
)
def test_a_twin_with_the_flops_that_training_executes(moe, widths):
    config_of = config('vit', hidden=24, **moe).moe
    assert wide_as(config_of, 'same_executed_flops', 16, 64, (16,)).hidden == widths * 24


def test_soft_routing_by_slots_executes_its_slots():
    moe = config('vit', hidden=24, router='soft', num_experts=4, group_size=8).moe
    args = dataclasses.replace(moe.router_args, axis='tokens', slots_per_expert=3)
    moe = dataclasses.replace(moe, router_args=args)  # 12 slots for 8 tokens
    assert wide_as(moe, 'same_executed_flops', 16, 64, (16,)).hidden == 36


@some_backbones
@pytest.mark.parametrize('placement', ['every_2', 'head'])
def test_an_ensemble_is_the_mean_of_k_blocks(name, placement):
    net = build(name, placement, twin='ensemble', k=2)
    own = filled(net)
    logits = jit(lambda v: net.apply(v, images(), Step())[0])
    place = 'head' if placement == 'head' else 'block_1'
    params = own['params']
    branches = params[place]['branches']
    alike = {n: jnp.broadcast_to(w[:1], w.shape) for n, w in branches.items()}
    of_one = build(name, placement, twin='same_width')
    one = {**own, 'params': {**params, place: {n: w[0] for n, w in branches.items()}}}
    mean_of_equals = {**own, 'params': {**params, place: {'branches': alike}}}
    expected = jit(lambda v: of_one.apply(v, images(), Step())[0])(one)
    np.testing.assert_allclose(logits(mean_of_equals), expected, rtol=1e-4, atol=1e-5)
    assert not np.allclose(logits(own), expected, atol=1e-3)  # the second branch counts
    assert {w.shape[0] for w in branches.values()} == {2}


def test_a_pure_head_has_no_shortcut():
    """What is dropped reaches the classifier as zeros, so its logits are the bias."""
    step = Step(key=jax.random.key(0))
    small = {'k': 1, 'num_experts': 3, 'group_size': 4, 'eval_capacity_factor': 0.1}
    for placement, bias_alone in (('head', False), ('pure_head', True)):
        net = build('conv', placement, **small)
        variables = filled(net)
        logits, infos = jit(lambda v, net=net: net.apply(v, images(), step))(variables)
        kept = np.asarray(infos['head']['choices']['kept'])[:, 0]
        assert 0 < kept.sum() < B
        orphan = np.asarray(logits)[~kept]
        bias = np.asarray(variables['params']['classifier']['bias'])
        assert np.allclose(orphan, bias) == bias_alone
    twin = abstract(build('conv', 'pure_head', twin='same_width'))
    chex.assert_trees_all_equal_shapes(twin, abstract(build('conv', 'head', twin='same_width')))


def test_null_experts_take_their_share_of_the_active_flops():
    moe = config(
        'vit',
        hidden=24,
        router='null_experts',
        router_args={'null_experts': 8},
        num_experts=8,
        k=2,
        losses={},
    ).moe  # of 2 choices 1 is expected to be true
    assert wide_as(moe, 'same_active_flops', 16, 64, (16,)).hidden == 24


@every_backbone
@pytest.mark.parametrize('placement', ['head', '0,1'])
def test_a_whole_twin_costs_what_one_expert_for_each_token_costs(name, placement):
    """k = 1 and as many slots as tokens: the twin's FLOPs and the router's."""

    def cost(**kwargs):
        net = build(name, placement, k=1, **kwargs)
        x = images()
        variables = jax.eval_shape(lambda x: net.init(jax.random.key(0), x, Step()), x)
        return flops.count(lambda v, x: net.apply(v, x, Step())[0], variables, x)

    routed = cost(num_experts=1, eval_capacity_factor=1.0)
    twin = cost(num_experts=1, twin='same_width')
    router = sum(n for scope, n in routed.items() if 'router' in scope)
    assert router > 0
    assert flops.total(routed) - router == flops.total(twin)


def test_unknown_backbone_suggests():
    with pytest.raises(UserError, match="Did you mean 'vit'"):
        models.build(dataclasses.replace(config('vit'), name='vitt'), 5)
