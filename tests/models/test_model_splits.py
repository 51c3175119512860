"""Channels that are cut into parts, each routed by itself (routing_methods 3.25)."""

import functools

import flax.linen as nn
import jax
import numpy as np
import pytest
from leverage_cases import block, found
from leverage_cases import make as checked
from model_cases import TRAIN, abstract, build, config, filled, images, jit, paths
from routing_cases import normal

from moe_vision.common.errors import UserError
from moe_vision.config import registry
from moe_vision.layers import MoE
from moe_vision.models.branch import Infos, run_place

ROOM = {'capacity_factor': float('inf'), 'losses': {}}


@pytest.mark.parametrize('name, hidden', [('vit', 32), ('conv', 8)])
def test_each_part_has_a_router_and_experts_of_its_share(name, hidden):
    """Two parts of 16 channels, and all of the rest as it was; the twin has a block for each."""
    one, two, twin = (
        paths(abstract(build(name, 'last_1', splits=n, twin=t, **ROOM))['params'])
        for n, t in ((1, 'none'), (2, 'none'), (2, 'same_width'))
    )
    first = 'in_kernel' if name == 'vit' else 'conv1'
    for part in ('block_1_split_0', 'block_1_split_1'):
        assert two[f'{part}/router/kernel'].shape == (8, 3)
        assert two[f'{part}/experts/{first}'].shape[-2:] == (8, hidden)
        assert twin[f'{part}/{first}'].shape[-2:] == (8, hidden)
    rest = [{n for n in net if 'block_1' not in n} for net in (one, two, twin)]
    assert rest[0] == rest[1] == rest[2]


class Place(nn.Module):
    """A routed place by itself."""

    model: object
    mesh: object = None

    @nn.compact
    def __call__(self, x):
        return run_place(self, 'place', 0, x, TRAIN, Infos(), hidden=64)


@pytest.mark.parametrize('splits, names', [(1, ['place']), (2, ['place_split_0', 'place_split_1'])])
def test_the_outputs_of_the_parts_stand_side_by_side(splits, names):
    """Against routed layers on the halves of the channels; one part is the layer as it was."""
    place = Place(config('vit', 'last_1', splits=splits, group_size=4, **ROOM))
    x, width = normal(0, 8, 16), 16 // splits
    shapes = jax.eval_shape(lambda x: place.init(jax.random.key(0), x), x)['params']
    params = jax.tree.map(lambda a: 0.3 * normal(a.size, *a.shape), shapes)

    @jit
    def both(params):
        parts = []
        for n, name in enumerate(names):
            layer = MoE(3, 2, 4, 64 // splits, capacity_factor=float('inf'), layer=n)
            mine = x[:, n * width : (n + 1) * width]
            parts.append(layer.apply({'params': params[name]}, mine, TRAIN)[0])
        return place.apply({'params': params}, x), jax.numpy.concatenate(parts, -1)

    y, want = both(params)
    np.testing.assert_allclose(y, want, rtol=1e-5, atol=1e-6)


@functools.cache
def remembering():
    """Gates of both layers and parts by parameters, with experts in the first that say nothing."""
    args = registry.RmoeArgs(width=6)
    net = build('vit', 'every_1', router='rmoe', router_args=args, splits=2, group_size=4, **ROOM)
    variables, x = filled(net), images()

    @jit
    def gates(first_router):
        params = dict(variables['params'])
        for part in (0, 1):
            name = f'block_0_split_{part}'
            silent = jax.tree.map(jax.numpy.zeros_like, params[name]['experts'])
            params[name] = params[name] | {'experts': silent}
        name = 'block_0_split_0'
        router = params[name]['router'] | {'in_kernel': first_router}
        params[name] = params[name] | {'router': router}
        infos = net.apply({'params': params}, x, TRAIN)[1]
        return {n: i['choices']['gate'] for n, i in infos.items()}

    return gates, variables['params']['block_0_split_0']['router']['in_kernel']


def test_what_a_router_carries_stays_in_its_part():
    gates, kernel = remembering()
    before, after = gates(kernel), gates(-kernel)
    changed = {n: float(np.abs(before[n] - after[n]).max()) for n in before}
    assert {n for n, by in changed.items() if by > 1e-4} == {'block_0_split_0', 'block_1_split_0'}


def test_leverage_by_hand():
    """A part of 8 of 16 channels on a map of 4x4: two convolutions from 8 to 8 channels."""
    cost = found(model__moe__splits=2)
    one = 2 * (2 * 16 * 9 * 8 * 8)
    for part in (0, 1):
        place = block(cost, f'block_1_split_{part}')
        assert place.routed and place.flops_twin == one
        assert place.flops == 2 * one + 2 * 8 * 4
        assert place.params == 4 * (2 * 9 * 8 * 8 + 2 * 2 * 8) + 8 * 4
    rest = sum(b.flops for b in cost.blocks if not b.routed)
    assert cost.rho_place == 2 * one / (2 * one + rest)


@pytest.mark.parametrize(
    'changes, says',
    [
        ({'splits': 3}, 'splits is 3, which does not divide the width 16 of block 1; .* 2, 4'),
        ({'splits': 32, 'placement': 'head'}, 'splits is 32.* width 16 of block 1'),
        ({'splits': 2, 'bank': '2', 'placement': 'every_1'}, "splits is 2.*set it to 'own'"),
        ({'splits': 4}, 'norm_groups is 8, which does not divide model.args.widths 4'),
        ({'splits': 0}, 'splits is 0'),
        (
            {'splits': 2, 'router': 'duo', 'router_args': {}, 'losses': {}},
            "splits is 2, but router 'duo'",
        ),
        ({'splits': 2, 'layers': {'2': {'k': 1}}}, '2 routed layers'),
        (
            {'splits': 2, 'layers': {'-1': {'shared_hidden': 16}}},
            r"layers.-1.shared_hidden is not read: .* that of layer '0'; set it there",
        ),
    ],
)
def test_parts_that_cannot_be(changes, says):
    with pytest.raises(UserError, match=says) as told:
        checked(**{f'model__moe__{n}': v for n, v in changes.items()})
    assert '\n' not in str(told.value)


def test_a_backbone_that_does_not_say_how_wide_its_blocks_are_is_refused():
    own = {'model__name': 'own_methods:Pool', 'model__args': '{}', 'model__moe__placement': 'head'}
    with pytest.raises(UserError, match="splits is 2, but the Args of backbone 'own_methods:Pool'"):
        checked(**own, model__moe__splits=2)
