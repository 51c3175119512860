"""Leverage where layers share experts, and beside a shared expert, by numbers worked out by hand.

FLOPs are 2 per multiply-accumulate. Digits are 8x8x1 in 10 classes; groups of 16 tokens.
"""

import pytest
from leverage_cases import block, found, make

import input_pipeline
from moe_vision.leverage import twins

# Two blocks of 16 channels on maps of 8x8, both routed: an expert is two 3x3 convolutions
STEM, CLASSIFIER, ROUTER = 2 * 64 * 9 * 16, 2 * 16 * 10, 2 * 16 * 4
ONE = 2 * (2 * 64 * 9 * 16 * 16)
ONE_PARAMS = 2 * 9 * 16 * 16 + 2 * 2 * 16  # filters; two norms of scale and bias
REST_PARAMS = 9 * 16 + 2 * 16 + 16 * 10 + 10  # stem, final norm, classifier
BOTH = {'model__args': {'widths': (16,), 'depth': 2}, 'model__moe__placement': 'last_2'}


@pytest.mark.parametrize('k, taken', [(1, 2), (2, 4), (3, 4)])
def test_a_pool_has_its_parameters_once_and_min_of_E_and_2k_active(k, taken):
    cost = found(**BOTH, model__moe__bank='2', model__moe__k=k)
    own = found(**BOTH, model__moe__k=k)
    assert cost.rho_place == own.rho_place == 2 * ONE / (STEM + 2 * ONE + CLASSIFIER)
    assert cost.flops == own.flops == STEM + 2 * (k * ONE + ROUTER) + CLASSIFIER
    assert cost.rho_active == own.rho_active == 2 * k * ONE / cost.flops
    assert cost.rho_executed == own.rho_executed
    pool = block(cost, 'bank_0')
    assert not pool.routed and pool.flops == 0
    assert (pool.params, pool.params_active) == (4 * ONE_PARAMS, taken * ONE_PARAMS)
    routers = 2 * 16 * 4
    assert cost.params_total == REST_PARAMS + 4 * ONE_PARAMS + routers
    assert own.params_total == REST_PARAMS + 8 * ONE_PARAMS + routers
    assert cost.params_active == REST_PARAMS + taken * ONE_PARAMS + routers
    assert own.params_active == REST_PARAMS + 2 * k * ONE_PARAMS + routers


def test_a_shared_expert_is_unrouted_compute_in_the_network_and_its_twins():
    """It has 8 hidden channels: half of an expert's FLOPs."""
    changes = {'model__args': {'widths': (16,), 'depth': 1}, 'model__moe__shared_hidden': 8}
    cost, without = found(**changes), found(**changes | {'model__moe__shared_hidden': 0})
    shared = block(cost, 'block_0_shared')
    assert not shared.routed
    assert shared.flops == shared.flops_executed == shared.flops_twin == ONE / 2
    assert shared.params == shared.params_active == 2 * 9 * 16 * 8 + 2 * 16 + 2 * 8
    assert block(cost, 'block_0').flops == 2 * ONE + ROUTER
    twin = STEM + ONE + ONE / 2 + CLASSIFIER
    assert cost.rho_place == ONE / twin
    assert cost.rho_active == 2 * ONE / (twin + ONE + ROUTER)
    assert cost.rho_executed == 2.5 * ONE / (twin + 1.5 * ONE + ROUTER)  # 10 slots for 16 images
    assert cost.flops == without.flops + ONE / 2
    config = make(**changes)
    same_width = next(t for t in twins(config, input_pipeline.info(config.dataset)))
    assert (same_width.name, same_width.flops) == ('same_width', twin)
