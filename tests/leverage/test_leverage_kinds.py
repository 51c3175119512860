"""What experts that differ cost, by hand, and what twins they have.

FLOPs are 2 per multiply-accumulate. Digits are 8x8x1. Groups of 16 images, k=2, four true experts,
capacity ceil(1.25 * 2 * 16 / 4) = 10. The second block sees maps of 4x4 with 16 channels.
"""

import pytest
from leverage_cases import block, make
from leverage_cases import found as measured

import input_pipeline
from moe_vision.leverage import table, twins

STEM, BLOCK_0, DOWN = 2 * 64 * 9 * 8, 2 * (2 * 64 * 9 * 8 * 8), 2 * 16 * 9 * 8 * 16
LARGE, CLASSIFIER = 2 * (2 * 16 * 9 * 16 * 16), 2 * 16 * 10
SMALL = LARGE // 2  # half as wide
TWIN = STEM + BLOCK_0 + DOWN + LARGE + CLASSIFIER
LARGE_PARAMS = 2 * 9 * 16 * 16 + 2 * 2 * 16
SMALL_PARAMS = 2 * 9 * 16 * 8 + 2 * 16 + 2 * 8
NO_LOSS = {'model__moe__losses': {}}
KINDS = ({'count': 2}, {'count': 2, 'divide': 2})


@pytest.fixture(scope='module')
def cost():
    return measured(model__moe__kinds=KINDS)


def test_k_active_experts_need_the_mean_over_balanced_choices(cost):
    place = block(cost, 'block_1')
    mean, router = (2 * LARGE + 2 * SMALL) // 4, 2 * 16 * 4
    assert place.flops_experts == 2 * mean
    assert place.flops == 2 * mean + router
    assert place.flops_twin == LARGE  # the first kind
    # 10 slots of each of the four, for 16 images
    assert place.flops_experts_executed == 10 * (2 * LARGE + 2 * SMALL) // 16
    assert place.bytes_buffers == 2 * 40 * 4 * 4 * 16 * 4 // 16
    assert place.params == 2 * LARGE_PARAMS + 2 * SMALL_PARAMS + 16 * 4
    assert place.params_active == LARGE_PARAMS + SMALL_PARAMS + 16 * 4
    assert cost.rho_place == LARGE / TWIN
    assert cost.rho_active == 2 * mean / (TWIN - LARGE + 2 * mean + router)


def test_measured_choices_weigh_by_what_their_experts_cost(cost):
    assert cost.capacities['block_1'].flops == (LARGE, SMALL, LARGE, SMALL)  # by id
    rest = TWIN - LARGE + 2 * 16 * 4
    for load, taken in (
        ([0.5, 0, 0.5, 0], 2 * LARGE),
        ([0, 1, 0, 0], 2 * SMALL),
        ([0.25] * 4, LARGE + SMALL),
    ):
        at = cost.rho_active_at({'block_1': 2.0}, {'block_1': load})
        assert at == pytest.approx(taken / (rest + taken))
    assert cost.rho_active_at({'block_1': 0.0}, {'block_1': [float('nan')] * 4}) == 0
    assert cost.rho_active_at({'block_1': 2.0}) == pytest.approx(cost.rho_active)


def test_a_null_expert_takes_its_share_of_the_choices_and_costs_nothing():
    cost = measured(model__moe__kinds=(*KINDS, {'expert': 'skip', 'count': 2}))
    place = block(cost, 'block_1')
    # of 2 choices among 6 ids, 4 / 3 are of true experts, whose mean is 3 / 4 of a large one
    assert place.flops_experts == LARGE
    assert place.flops_router == 2 * 16 * 6
    assert cost.capacities['block_1'].choices == pytest.approx(4 / 3)
    assert place.params_active == round((LARGE_PARAMS + SMALL_PARAMS) * 2 / 3) + 16 * 6


def test_twins_copy_the_first_kind_and_are_as_wide_as_the_mean(cost):
    config = make(model__moe__kinds=KINDS)
    by_name = {t.name: t for t in twins(config, input_pipeline.info(config.dataset))}
    assert by_name['same_width'].flops == by_name['same_drops'].flops == TWIN
    assert by_name['ensemble'].flops == TWIN + LARGE
    # 1.5 large experts: 24 channels instead of 16, a multiple of 8 as the norm needs
    assert by_name['same_active_flops'].flops == TWIN + LARGE // 2
    # 2.5 passes of the mean are 1.875 large ones: 30 channels, of which 32 is nearest
    assert by_name['same_executed_flops'].flops == TWIN + LARGE
    # of the widths that the norm allows, 48 comes nearest
    assert 2 * LARGE_PARAMS + 2 * SMALL_PARAMS + 64 == 14_112
    rest = by_name['same_width'].params - LARGE_PARAMS
    assert by_name['same_params'].params - rest == 2 * 9 * 16 * 48 + 2 * 16 + 2 * 48 == 13_952


def test_the_table_names_the_kinds():
    config = make(model__moe__kinds=(*KINDS, {'expert': 'skip'}))
    lines = table.text(config, measured(model__moe__kinds=(*KINDS, {'expert': 'skip'})))
    assert (
        'block_1: experts, their ids and FLOPs per token: conv (0, 2) 147k; conv (1, 3) 73.7k; '
        'skip (4) 0' in lines
    )


def test_what_stands_around_experts_is_no_part_of_what_is_routed():
    cost = measured(
        model__name='vit',
        model__args={'width': 8, 'depth': 1, 'heads': 2, 'patch_size': 2},
        model__moe__expert='film',
    )
    n, d = 16, 8  # patches of an image, width
    assert block(cost, 'block_0').flops_experts == 2 * (n * 2 * 2 * d * d)  # k = 2
    assert block(cost, 'block_0').flops_twin == n * 2 * 2 * d * d
    for part in ('before', 'after'):
        around = block(cost, f'block_0_{part}')
        assert around.flops == around.flops_twin == n * 2 * 2 * d * d and not around.routed
    four_times_as_wide, experts = 8 * d * d, 16
    shared = 2 * d * d + 2 * d * d  # without the adaptor's biases
    assert 1 - (experts * 2 * d * d + shared) / (experts * four_times_as_wide) == 0.71875


def test_a_filter_of_frequencies_is_counted_by_its_products():
    cost = measured(
        model__moe__expert='depthwise_conv',
        model__moe__shared_hidden=16,
        model__moe__kinds=({'expert': 'spectral', 'count': 4},),
    )
    h, u, d = 4, 3, 16  # maps of 4x4 have 4 x 3 frequencies
    along_rows, along_columns = 2 * h * h * 2 * u * d, 2 * (2 * h) ** 2 * u * d
    one = 2 * (along_rows + along_columns)  # there and back
    place = block(cost, 'block_1')
    assert place.flops_twin == one and place.flops_experts == 2 * one
    shared = block(cost, 'block_1_shared')
    assert shared.flops == 2 * 16 * 9 * 16 + 2 * (2 * 16 * 16 * 16) and not shared.routed
