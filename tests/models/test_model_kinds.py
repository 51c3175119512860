"""Networks whose layers have experts that differ. Axes: B images, E experts."""

import jax
import pytest
from model_cases import TRAIN, abstract, build, config, images, paths

from moe_vision import models
from moe_vision.config.kinds import Kind
from moe_vision.config.places import place_at
from moe_vision.models.places import expert_at, expert_flops, expert_params, twin_expert

KINDS = (Kind(count=2), Kind(count=2, divide=4), Kind('skip'))
MIXED = {'num_experts': 4, 'kinds': KINDS}


def test_a_twin_is_that_of_the_first_kind():
    """It has the parameters, by path, of the twin of a network whose experts are all of it."""
    routed, dense = (build('conv', 'every_1', twin=t, **MIXED) for t in ('none', 'same_width'))
    alike = build('conv', 'every_1', twin='same_width', num_experts=4)
    shapes = [
        {n: leaf.shape for n, leaf in paths(abstract(net)['params']).items()}
        for net in (routed, dense, alike)
    ]
    assert shapes[1] == shapes[2]
    own = shapes[0]
    assert own['block_1/experts/kind_0_conv1'] == (2, 3, 3, 16, 16)
    assert own['block_1/experts/kind_1_conv1'] == (2, 3, 3, 16, 4)
    assert own['block_0/experts/kind_1_conv1'] == (2, 3, 3, 8, 4)  # 8 / 4, in fours
    assert own['block_1/router/kernel'] == (16, 5)


@pytest.mark.parametrize('twin', ['same_active_flops', 'same_executed_flops', 'same_params'])
def test_a_twin_is_widened_to_the_mean(twin):
    """k = 2 of 5 ids, 4 of them true; C = ceil(1.25 * 2 * 8 / 4) = 5 slots of each for 8 tokens."""
    model = config('vit', group_size=8, **MIXED)
    wide = twin_expert(model.moe, twin, place_at(model, 0), 16, 64, (16,))
    mean = (64 + 16) / 2  # hidden width of the mean expert, in which FLOPs are linear
    if twin == 'same_params':
        experts = expert_at(model.moe, 16, 64)
        assert sum(c * expert_params(e) for e, c in experts.parts(4)) == 4 * (
            2 * 16 * mean + mean + 16
        )
        want = 4 * (2 * 16 * mean + mean + 16) + 16 * 5
        off = [
            abs(expert_params(type(wide)(wide.args, 16, wide.hidden + n)) - want)
            for n in (-1, 0, 1)
        ]
        assert off[1] == min(off)
        return
    passes = {'same_active_flops': 2 * 4 / 5, 'same_executed_flops': 4 * 5 / 8}[twin]
    assert wide.hidden == round(passes * mean)
    assert expert_flops(wide, (16,)) == 4 * 16 * wide.hidden


def test_layers_share_experts_that_differ():
    model = config('vit', 'every_1', bank='2', **MIXED)
    net = models.build(model, 5)
    shapes = {n: leaf.shape for n, leaf in paths(abstract(net)['params']).items()}
    assert shapes['bank_0/experts/kind_0_in_kernel'] == (2, 16, 64)
    assert shapes['bank_0/experts/kind_1_in_kernel'] == (2, 16, 16)
    assert not any('block_0/experts' in n for n in shapes)
    infos = jax.eval_shape(
        lambda v: net.apply(v, images(), TRAIN, mutable=['batch_stats'])[0][1], abstract(net)
    )
    assert infos['block_0']['telemetry']['chosen'].shape == (5,)
    assert infos['block_0']['telemetry']['kept'].shape == (4,)


def test_each_part_of_split_channels_has_kinds_and_shared_parts_of_its_own():
    net = build('vit', 'last_1', splits=2, expert='film', num_experts=4, kinds=(Kind(count=4),))
    shapes = {n: leaf.shape for n, leaf in paths(abstract(net)['params']).items()}
    for part in (0, 1):
        assert shapes[f'block_1_split_{part}/experts/kind_0_scale_kernel'] == (4, 8, 8)
        assert shapes[f'block_1_split_{part}_before/a_kernel'] == (8, 8)
        assert shapes[f'block_1_split_{part}_after/in_kernel'] == (8, 8)
