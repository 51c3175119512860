"""FLOPs, parameters and leverages against numbers worked out by hand. 2 per multiply-accumulate."""

import math

import pytest
import train_cases

import input_pipeline
from moe_vision.leverage import measure
from moe_vision.training import preflight, schedule

# digits are 8x8x1 in 10 classes; E=4, k=2, groups of 16 images, capacity ceil(1.25*2*16/4) = 10
CONV = {'model.args': {'widths': (8, 16), 'depth': 1}}
STEM, BLOCK_0, DOWN = 2 * 64 * 9 * 8, 2 * 2 * 64 * 9 * 64, 2 * 16 * 9 * 8 * 16
EXPERT, CLASSIFIER, ROUTER = 2 * 2 * 16 * 9 * 256, 2 * 16 * 10, 2 * 16 * 4
TWIN = STEM + BLOCK_0 + DOWN + EXPERT + CLASSIFIER


def of(data_dir, *changes):
    merged = {k: v for c in changes for k, v in c.items()}
    config = train_cases.make(data_dir, merged)
    return measure(config, input_pipeline.info(config.dataset))


def block(leverage, name):
    return next(b for b in leverage.blocks if b.name == name)


def test_a_convolutional_network(data_dir):
    found = of(data_dir, CONV)
    flops = {b.name: b.flops for b in found.blocks if b.flops}
    assert flops == {'stem': STEM, 'block_0': BLOCK_0, 'down_1': DOWN,
                     'block_1': 2 * EXPERT + ROUTER, 'classifier': CLASSIFIER}
    routed = block(found, 'block_1')
    assert routed.routed and routed.flops_twin == EXPERT and routed.flops_router == ROUTER
    # 4 experts of 10 slots for 16 images: 2.5 expert passes each
    assert routed.flops_executed == 2.5 * EXPERT + ROUTER
    assert found.flops == TWIN + EXPERT + ROUTER
    assert found.flops_executed == TWIN + 1.5 * EXPERT + ROUTER
    assert found.rho_place == EXPERT / TWIN
    assert found.rho_active == 2 * EXPERT / (TWIN + EXPERT + ROUTER)
    assert found.rho_executed == 2.5 * EXPERT / (TWIN + 1.5 * EXPERT + ROUTER)
    # two 3x3 filters and two norms of scale and bias; per-image norms at block_0 as well
    expert = 2 * 9 * 256 + 4 * 16
    rest = 72 + 2 * 9 * 64 + 4 * 8 + 9 * 8 * 16 + 2 * 8 + 2 * 16 + 170
    assert found.params_total == rest + 4 * expert + 64
    assert found.params_active == rest + 2 * expert + 64
    capacity = found.capacities['block_1']
    assert (capacity.tokens_per_image, capacity.group_size, capacity.capacity) == (1, 16, 10)
    assert capacity.effective_factor == 1.25
    assert (capacity.eval_capacity, capacity.eval_effective_factor) == (16, 2.0)


def test_k_changes_what_is_active_and_not_the_place(data_dir):
    found = [of(data_dir, CONV, {'model.moe.k': k}) for k in (1, 2, 3)]
    assert len({f.rho_place for f in found}) == 1
    assert [block(f, 'block_1').flops for f in found] == [k * EXPERT + ROUTER for k in (1, 2, 3)]
    assert len({f.params_total for f in found}) == 1
    expert = 2 * 9 * 256 + 4 * 16
    assert found[1].params_active - found[0].params_active == expert


def test_the_twins_and_the_dense_network(data_dir):
    twin = of(data_dir, CONV, {'model.twin': 'same_width'})
    assert twin.flops == twin.flops_executed == TWIN
    assert twin.rho_place == EXPERT / TWIN  # the place it is the twin of
    assert (twin.rho_active, twin.rho_executed) == (0, 0)
    assert twin.params_active == twin.params_total
    wide = of(data_dir, CONV, {'model.twin': 'same_active_flops'})
    assert wide.flops == TWIN + EXPERT  # its block is twice as wide inside
    assert wide.rho_place == EXPERT / TWIN
    dense = of(data_dir, CONV, {
        'model.moe.placement': 'none', 'model.moe.router': 'top_k', 'model.moe.num_experts': 8,
        'model.moe.router_args': {'noise': 'gaussian'}, 'model.moe.group_size': 64,
        'model.moe.losses': {'importance': 0.005, 'load': 0.005}})
    assert (dense.rho_place, dense.rho_active, dense.rho_executed) == (0, 0, 0)
    assert dense.flops == TWIN and not dense.capacities


def test_a_routed_head_costs_4hd(data_dir):
    head = {'model.moe.placement': 'head', 'model.moe.hidden': 24}
    for k in (1, 2):
        found = of(data_dir, CONV, head, {'model.moe.k': k})
        d, h = 16, 24
        assert found.rho_place == 4 * h * d / (TWIN + 4 * h * d)
        assert block(found, 'head').flops == k * 4 * h * d + ROUTER
        assert block(found, 'head').params == 4 * (2 * h * d + h + d) + 64


def test_a_depthwise_network(data_dir):
    found = of(data_dir, CONV, {'model.name': 'depthwise'})
    first = 64 * 2 * 9 * 8 + 64 * 2 * 2 * 8 * 32  # 3x3 per channel, 1x1 to four times and back
    expert = 16 * 2 * 9 * 16 + 16 * 2 * 2 * 16 * 64
    assert block(found, 'block_0').flops == first
    assert block(found, 'block_1').flops == 2 * expert + ROUTER
    assert found.rho_place == expert / (STEM + first + DOWN + expert + CLASSIFIER)


@pytest.mark.parametrize('group', [4, 16, 64])
def test_a_transformer(data_dir, group):
    found = of(data_dir, train_cases.VIT, {'model.moe.group_size': group,
                                           'model.args': {'width': 8, 'depth': 2, 'heads': 2,
                                                          'patch_size': 2}})
    n, d, f = 16, 8, 32
    attention = 2 * n * 4 * d * d + 2 * 2 * n * n * d  # four projections; scores and mixture
    mlp = 2 * 2 * n * d * f
    twin = 2 * n * 4 * d + 2 * attention + 2 * mlp + 2 * d * 10
    assert found.rho_place == mlp / twin
    assert block(found, 'block_0').flops == mlp
    assert block(found, 'block_1').flops == 2 * mlp + 2 * n * d * 4
    capacity = found.capacities['block_1']
    slots = math.ceil(1.25 * 2 * group / 4)
    assert (capacity.tokens_per_image, capacity.capacity) == (n, slots)
    assert block(found, 'block_1').flops_experts_executed == 4 * slots / group * mlp


def test_soft_routing_runs_every_expert(data_dir):
    soft = {'model.moe.router': 'soft', 'model.moe.losses': {}}
    one = of(data_dir, CONV, soft, {'model.moe.router_args': {'axis': 'none'}})
    assert block(one, 'block_1').flops_experts == 4 * EXPERT  # every image through all of them
    assert one.params_active == one.params_total
    assert one.flops == one.flops_executed
    mixed = of(data_dir, CONV, soft, {'model.moe.router_args': {'axis': 'batch',
                                                                 'slots_per_expert': 2}})
    assert block(mixed, 'block_1').flops_experts == 4 * 2 * EXPERT // 16  # 8 slots for 16 images
    assert one.rho_place == mixed.rho_place == EXPERT / TWIN
    assert one.capacities['block_1'].capacity == 0


def test_null_experts_cost_nothing(data_dir):
    found = of(data_dir, CONV, {'model.moe.router': 'null_experts', 'model.moe.losses': {},
                                'model.moe.router_args': {'null_experts': 4}})
    # balanced: half of two choices are of true experts; the router has 8 ids
    assert block(found, 'block_1').flops == EXPERT + 2 * 16 * 8
    # measured 1.5 instead
    assert found.rho_active_at(1.5, 1.0) == 1.5 * EXPERT / (TWIN + 0.5 * EXPERT + 2 * 16 * 8)


def test_the_preflight_says_it(data_dir):
    config = train_cases.make(data_dir, CONV)
    info = input_pipeline.info(config.dataset)
    found = measure(config, info)
    text = preflight.text(config, info, {'data': 1, 'expert': 1}, found,
                          schedule.durations(config, 1293))
    for part in ('mesh data 1 × expert 1', '1,293 train, 144 validation, 360 test; 10 classes',
                 f'{found.params_total:,} total, {found.params_active:,} active',
                 '12 steps of 32 images (0.3 epochs), adamw, peak learning rate 0.003',
                 f'rho_place {EXPERT / TWIN:.4f}', f'rho_active {found.rho_active:.4f}',
                 f'rho_executed {found.rho_executed:.4f}', 'block_1 *',
                 'groups of 16 tokens, 10 slots per expert (asked 1.25, effective 1.250)'):
        assert part in text, part


def test_a_summary_tells_of_a_mesh_that_this_machine_has_not(data_dir, capsys):
    changes = {'mesh.expert': 4, 'model.moe.group_size': 16}
    config = train_cases.make(data_dir, CONV | changes)
    preflight.summary(config, input_pipeline.info(config.dataset))
    told = capsys.readouterr().out
    assert 'mesh.expert is 4, which does not fit the 1 device(s) of this machine' in told
    assert 'mesh data 1 × expert 4' in told
    assert 'block_1: 8 tokens on a device, groups span the expert axis' in told
    odd = {'model.moe.group_size': 17, 'train.batch_size': 34}
    config = train_cases.make(data_dir, CONV | changes | odd)
    preflight.summary(config, input_pipeline.info(config.dataset))
    assert 'no training on this mesh: 34 tokens' in capsys.readouterr().out
