"""FLOPs, parameters, bytes and leverages of every backbone, against numbers worked out by hand.

FLOPs are 2 per multiply-accumulate. Digits are 8x8x1 in 10 classes. E=4, k=2, groups of 16 tokens,
capacity ceil(1.25 * 2 * 16 / 4) = 10.
"""

import math
import typing

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from jax import lax
from leverage_cases import block, make
from leverage_cases import found as measured

import input_pipeline
from moe_vision.common import flops
from moe_vision.common.place import Place
from moe_vision.config import schema
from moe_vision.layers.parts import conv
from moe_vision.leverage import measure, twins
from moe_vision.models.places import expert_flops, expert_params, twin_expert

STEM, BLOCK_0, DOWN = 2 * 64 * 9 * 8, 2 * (2 * 64 * 9 * 8 * 8), 2 * 16 * 9 * 8 * 16
EXPERT, CLASSIFIER, ROUTER = 2 * (2 * 16 * 9 * 16 * 16), 2 * 16 * 10, 2 * 16 * 4
TWIN = STEM + BLOCK_0 + DOWN + EXPERT + CLASSIFIER
EXPERT_PARAMS = 2 * 9 * 16 * 16 + 2 * 2 * 16  # two filters; two norms of scale and bias
REST_PARAMS = 72 + 2 * 9 * 64 + 4 * 8 + 9 * 8 * 16 + 2 * 8 + 2 * 16 + 170  # filters, norms, biases
SOFT = {'model__moe__router': 'soft', 'model__moe__losses': {}}


def wide_as(moe, twin, *sizes):
    """The dense block of a twin at the first place of a network."""
    return twin_expert(moe, twin, Place(moe.num_experts, moe.k, moe.group_size), *sizes)


def flops_of(leverage):
    return {b.name: b.flops for b in leverage.blocks if b.flops}


def test_a_convolutional_network():
    cost = measured()
    assert flops_of(cost) == {
        'stem': STEM,
        'block_0': BLOCK_0,
        'down_1': DOWN,
        'block_1': 2 * EXPERT + ROUTER,
        'classifier': CLASSIFIER,
    }
    assert cost.flops == TWIN + EXPERT + ROUTER
    # 4 experts of 10 slots for 16 images: 2.5 expert passes per image
    assert cost.flops_executed == TWIN + 1.5 * EXPERT + ROUTER
    assert block(cost, 'block_1').flops_executed == 2.5 * EXPERT + ROUTER
    assert cost.rho_place == EXPERT / TWIN
    assert cost.rho_active == 2 * EXPERT / (TWIN + EXPERT + ROUTER)
    assert cost.rho_executed == 2.5 * EXPERT / (TWIN + 1.5 * EXPERT + ROUTER)
    assert cost.params_total == REST_PARAMS + 4 * EXPERT_PARAMS + 16 * 4
    assert cost.params_active == REST_PARAMS + 2 * EXPERT_PARAMS + 16 * 4
    capacity = cost.capacities['block_1']
    assert (capacity.tokens_per_image, capacity.group_size, capacity.capacity) == (1, 16, 10)
    assert capacity.effective_factor == 1.25
    assert (capacity.eval_capacity, capacity.eval_effective_factor) == (16, 2.0)


def test_k_changes_what_is_active_and_not_the_place():
    costs = [measured(model__moe__k=k) for k in (1, 2, 3)]
    assert len({c.rho_place for c in costs}) == len({c.params_total for c in costs}) == 1
    assert [block(c, 'block_1').flops for c in costs] == [k * EXPERT + ROUTER for k in (1, 2, 3)]
    assert costs[1].params_active - costs[0].params_active == EXPERT_PARAMS


def test_bytes_and_buffers_of_a_convolutional_network():
    cost = measured()
    place = block(cost, 'block_1')
    assert place.routed and place.flops_twin == EXPERT
    assert (place.flops_router, place.flops_dispatch) == (ROUTER, 0)  # gathers fill the slots
    assert (place.flops_experts, place.flops_experts_executed) == (2 * EXPERT, 2.5 * EXPERT)
    assert place.params == 4 * EXPERT_PARAMS + 16 * 4  # the gaussian noise has no parameters
    assert place.params_active == 2 * EXPERT_PARAMS + 16 * 4
    assert place.params_twin == EXPERT_PARAMS
    assert place.bytes == 4 * place.params and place.bytes_active == 4 * place.params_active
    assert place.bytes_experts == 4 * 4 * EXPERT_PARAMS
    # 40 slots of 4x4x16 floats, inputs and outputs, for 16 images
    assert place.bytes_buffers == 2 * 40 * 4 * 4 * 16 * 4 // 16
    half = block(measured(model__dtype='bfloat16'), 'block_1')
    assert (half.bytes, half.bytes_buffers) == (place.bytes, place.bytes_buffers // 2)
    assert [b.routed for b in cost.blocks if b.flops] == [False, False, False, True, False]
    assert all(b.bytes_buffers == b.flops_router == 0 for b in cost.blocks if not b.routed)


def test_depthwise_convolutions_read_one_channel_each():
    cost = measured(model__name='depthwise')
    by_channel, out_and_back = 2 * 64 * 9 * 8, 2 * (2 * 64 * 8 * 32)
    assert block(cost, 'block_0').flops == by_channel + out_and_back
    expert = 2 * 16 * 9 * 16 + 2 * (2 * 16 * 16 * 64)
    assert block(cost, 'block_1').flops == 2 * expert + ROUTER
    rest = STEM + by_channel + out_and_back + DOWN + CLASSIFIER
    assert cost.rho_place == expert / (rest + expert)
    filters, mlp, norm = 9 * 16, 2 * 16 * 64 + 64 + 16, 2 * 16
    assert block(cost, 'block_1').bytes_experts == 4 * 4 * (filters + mlp + norm)


@pytest.mark.parametrize('groups', [1, 2, 4, 8])
def test_a_grouped_convolution_reads_its_group(groups):
    x = jax.ShapeDtypeStruct((3, 6, 5, 8), jnp.float32)
    kernel = jax.ShapeDtypeStruct((3, 3, 8 // groups, 16), jnp.float32)
    one = 2 * (3 * 6 * 5 * 16) * 9 * (8 // groups)
    assert flops.total(flops.count(lambda x, k: conv(x, k, groups), x, kernel)) == one
    direct = flops.count(
        lambda x, k: lax.conv_general_dilated(
            x,
            k,
            (1, 2),
            'VALID',
            feature_group_count=groups,
            dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
        ),
        x,
        kernel,
    )
    assert flops.total(direct) == 2 * (3 * 4 * 2 * 16) * 9 * (8 // groups)
    stacked = jax.eval_shape(
        nn.Conv(16, (3, 3), feature_group_count=groups).init, jax.random.key(0), x
    )
    assert stacked['params']['kernel'].shape == (3, 3, 8 // groups, 16)


@pytest.mark.parametrize('pool, n', [('mean', 16), ('token', 17)])
def test_attention_and_patches(pool, n):
    """An 8x8 image has 16 patches of 2x2, and a class token with pool='token'; two heads of 4."""
    d, f, group = 8, 24, 16 if pool == 'mean' else 17
    args = {'width': d, 'depth': 3, 'heads': 2, 'patch_size': 2, 'hidden': f, 'pool': pool}
    cost = measured(
        model__name='vit', model__args=args, model__moe__group_size=group, model__moe__placement='1'
    )
    projections = 4 * 2 * n * d * d
    scores, mixture = 2 * 2 * n * n * 4, 2 * 2 * n * n * 4  # two heads, four features each
    mlp = 2 * n * d * f + 2 * n * f * d
    slots = 10 if pool == 'mean' else 11  # ceil(1.25 * 2 * 17 / 4)
    by_block = flops_of(cost)
    for i in range(3):
        assert by_block[f'block_{i}_attention'] == projections + scores + mixture
    assert by_block['stem'] == 2 * 16 * 4 * d  # a patch is 2x2x1
    assert by_block['block_0'] == by_block['block_2'] == mlp
    assert by_block['block_1'] == 2 * mlp + 2 * n * d * 4
    assert by_block['classifier'] == 2 * d * 10
    whole = 2 * 16 * 4 * d + 3 * (projections + scores + mixture + mlp) + 2 * d * 10
    assert cost.rho_place == mlp / whole
    place = block(cost, 'block_1')
    assert place.flops_experts_executed == round(4 * slots / group * mlp)
    assert place.bytes_buffers == 2 * 4 * slots * n // group * d * 4
    assert cost.capacities['block_1'].tokens_per_image == n
    attention = block(cost, 'block_0_attention')
    assert attention.params == 4 * (d * d + d) and attention.bytes == 4 * attention.params


@pytest.mark.parametrize('group', [4, 16, 64])
def test_a_transformer_in_groups_of_patches(group):
    n, d, f = 16, 8, 32
    cost = measured(
        model__name='vit',
        model__moe__group_size=group,
        model__args={'width': d, 'depth': 2, 'heads': 2, 'patch_size': 2},
    )
    attention = 2 * n * 4 * d * d + 2 * 2 * n * n * d  # four projections; scores and mixture
    mlp = 2 * 2 * n * d * f
    assert cost.rho_place == mlp / (2 * n * 4 * d + 2 * attention + 2 * mlp + 2 * d * 10)
    assert block(cost, 'block_0').flops == mlp
    assert block(cost, 'block_1').flops == 2 * mlp + 2 * n * d * 4
    slots = math.ceil(1.25 * 2 * group / 4)
    capacity = cost.capacities['block_1']
    assert (capacity.tokens_per_image, capacity.capacity) == (n, slots)
    assert block(cost, 'block_1').flops_experts_executed == 4 * slots / group * mlp


@pytest.mark.parametrize('k', [1, 2])
def test_a_head_on_the_pooled_vector(k):
    h, d = 24, 16
    cost = measured(model__moe__placement='head', model__moe__hidden=h, model__moe__k=k)
    head = block(cost, 'head')
    assert (head.flops_twin, head.flops) == (4 * h * d, k * 4 * h * d + ROUTER)
    assert head.params == 4 * (2 * h * d + h + d) + d * 4
    assert head.bytes_experts == 4 * 4 * (2 * h * d + h + d)
    assert head.bytes_buffers == 2 * 20 * k * d * 4 // 16  # 20 k slots for 16 images
    assert cost.rho_place == 4 * h * d / (TWIN + 4 * h * d)
    transformer = measured(
        model__name='vit',
        model__moe__placement='head',
        model__moe__hidden=h,
        model__args={'width': 8, 'depth': 1, 'heads': 1, 'patch_size': 4},
    )
    assert block(transformer, 'head').flops_twin == 4 * h * 8
    assert transformer.capacities['head'].tokens_per_image == 1


def test_soft_routing_over_the_batch_mixes_tokens_into_slots_and_back():
    cost = measured(**SOFT, model__moe__router_args={'axis': 'batch', 'slots_per_expert': 2})
    place, payload = block(cost, 'block_1'), 4 * 4 * 16
    # a group of 16 images has 8 slots; each slot weighs each image, and each image weighs each slot
    assert place.flops_router == 2 * 16 * 8
    assert place.flops_dispatch == 2 * (2 * 16 * 8 * payload) // 16
    assert place.flops_experts == place.flops_experts_executed == 8 * EXPERT // 16
    assert place.flops == place.flops_router + place.flops_dispatch + place.flops_experts
    assert place.bytes_buffers == 2 * 8 * payload * 4 // 16
    assert place.params_active == place.params == 4 * EXPERT_PARAMS + 16 * 8 + 1
    assert cost.rho_place == EXPERT / TWIN


def test_soft_routing_of_each_image_runs_all_experts_and_mixes_their_outputs():
    cost = measured(**SOFT, model__moe__router_args={'axis': 'none'})
    place, payload = block(cost, 'block_1'), 4 * 4 * 16
    assert place.flops_router == 2 * 16 * 4
    assert place.flops_dispatch == 2 * 4 * payload  # the mean of four outputs, no dispatch
    assert place.flops_experts == 4 * EXPERT
    assert place.bytes_buffers == 2 * 4 * payload * 4
    assert cost.rho_active == 4 * EXPERT / (TWIN + 3 * EXPERT + ROUTER + 2 * 4 * payload)
    assert cost.rho_place == EXPERT / TWIN
    assert cost.flops == cost.flops_executed and cost.params_active == cost.params_total
    assert cost.capacities['block_1'].capacity == 0


def test_null_experts_cost_nothing():
    cost = measured(
        model__moe__router='null_experts',
        model__moe__losses={},
        model__moe__router_args={'null_experts': 4},
    )
    # balanced routing sends half of the two choices to true experts; the router has 8 ids
    assert block(cost, 'block_1').flops == EXPERT + 2 * 16 * 8
    assert cost.capacities['block_1'].choices == 1.0
    assert cost.rho_active_at({'block_1': 1.5}) == 1.5 * EXPERT / (TWIN + 0.5 * EXPERT + 2 * 16 * 8)


def test_a_twin_costs_more_only_in_its_widened_block():
    config = make()
    by_name = {t.name: t for t in twins(config, input_pipeline.info(config.dataset))}
    kinds = typing.get_args(typing.get_type_hints(schema.Model)['twin'])
    assert set(by_name) == set(kinds) - {'none'}
    assert by_name['same_width'].flops == by_name['same_drops'].flops == TWIN
    assert by_name['same_active_flops'].flops == by_name['ensemble'].flops == TWIN + EXPERT
    assert by_name['ensemble'].params == by_name['same_width'].params + EXPERT_PARAMS
    executed = measure(config, input_pipeline.info(config.dataset)).sum('flops_experts_executed')
    assert by_name['same_executed_flops'].flops == TWIN - EXPERT + executed
    assert by_name['same_width'].params == REST_PARAMS + EXPERT_PARAMS
    wide = wide_as(config.model.moe, 'same_params', 16, 16, (4, 4, 16))
    assert by_name['same_params'].flops == TWIN - EXPERT + expert_flops(wide, (4, 4, 16))
    assert by_name['same_params'].params == REST_PARAMS + expert_params(wide)


def test_a_twin_that_the_router_does_not_allow_has_the_reason():
    config = make(**SOFT, model__moe__router_args={'axis': 'none'})
    by_name = {t.name: t for t in twins(config, input_pipeline.info(config.dataset))}
    assert "router 'soft' has no k" in by_name['same_active_flops'].refused
    assert by_name['same_width'].flops == TWIN and not by_name['same_width'].refused


def test_a_twin_has_places_but_routes_nothing():
    for twin in ('same_width', 'same_drops'):
        cost = measured(model__twin=twin)
        assert cost.flops == cost.flops_executed == TWIN
        assert cost.rho_place == EXPERT / TWIN and cost.rho_active == cost.rho_executed == 0
        place = block(cost, 'block_1')
        assert place.routed and place.bytes_buffers == place.flops_dispatch == 0
        assert place.params == place.params_active == EXPERT_PARAMS
    wide = measured(model__twin='same_active_flops')
    assert wide.flops == TWIN + EXPERT and wide.rho_place == EXPERT / TWIN


@pytest.mark.parametrize('twin', ['same_width', 'same_active_flops', 'same_params', 'ensemble'])
def test_all_parameters_of_a_dense_twin_are_active(twin):
    cost = measured(model__twin=twin)
    assert cost.params_active == cost.params_total


def test_a_dense_network_has_no_places():
    dense = measured(
        model__moe__placement='none', model__moe__num_experts=8, model__moe__group_size=64
    )  # the defaults: a dense network reads neither
    assert (dense.rho_place, dense.rho_active, dense.rho_executed) == (0, 0, 0)
    assert dense.flops == TWIN and not dense.capacities


@pytest.mark.parametrize(
    'router, args',
    [
        ('shuffled', {'noise': 'gaussian'}),
        ('random', {}),
        ('supervised', {'noise': 'gaussian'}),
        ('top_k', {'noise': 'learned'}),
    ],
)
def test_the_cost_does_not_depend_on_how_routes_are_drawn(router, args):
    losses = {'supervised': 0.1} if router == 'supervised' else {}
    cost = measured(
        model__moe__router=router, model__moe__router_args=args, model__moe__losses=losses
    )
    products = {'random': 0}.get(router, 2 if args.get('noise') == 'learned' else 1)
    assert block(cost, 'block_1').flops == 2 * EXPERT + products * ROUTER
    assert cost.rho_place == EXPERT / TWIN
