"""Twins: what they share with the routed network, and what they cost."""

import dataclasses
import math

import chex
import jax
import numpy as np
import pytest
from model_cases import TRAIN, build, config, images, jit, paths

from moe_vision import models
from moe_vision.common import flops
from moe_vision.common.errors import UserError
from moe_vision.config import registry
from moe_vision.layers import Step
from moe_vision.models.places import expert_at, expert_flops, expert_params, twin_expert

every_backbone = pytest.mark.parametrize('name', registry.BACKBONES)


@every_backbone
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
    assert expert_flops(twin_expert(moe, 'same_width', d, f, payload), payload) == one
    wide = twin_expert(moe, 'same_active_flops', d, f, payload)
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
    wide = twin_expert(moe, 'same_params', d, f, payload)
    # group norm of 4: hidden widths go in fours
    assert wide.multiple == (4 if expert in ('conv', 'bottleneck') else 1)
    assert nearest(wide, target, lambda h: hand_params(expert, d, h))


def test_hidden_width_of_experts_may_be_set():
    moe = config('vit', hidden=24).moe
    assert expert_at(moe, 16, 64).hidden == 24
    assert twin_expert(moe, 'same_width', 16, 64, (16,)).hidden == 24
    assert twin_expert(moe, 'same_active_flops', 16, 64, (16,)).hidden == 48


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
    assert twin_expert(moe, 'same_active_flops', 16, 64, (16,)).hidden == 24


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
