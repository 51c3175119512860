"""The FLOPs of a training step, by hand and against the program that training runs.

Digits are 8x8x1 in 10 classes. E=4, k=2, groups of 16 tokens, capacity
ceil(1.25 * 2 * 16 / 4) = 10.
"""

import json

import jax
import numpy as np
import pytest
import train_cases
from jax.interpreters import partial_eval
from leverage_cases import make

import input_pipeline
from moe_vision.common import flops
from moe_vision.config import registry
from moe_vision.leverage import __main__ as command
from moe_vision.leverage import measure, measure_step
from moe_vision.training.setup import Setup

# each per image: filters of 3x3, then an expert of two of them on a map of 4x4x16
STEM, BLOCK_0, DOWN = 2 * 64 * 9 * 8, 2 * (2 * 64 * 9 * 8 * 8), 2 * 16 * 9 * 8 * 16
EXPERT, CLASSIFIER, ROUTER = 2 * (2 * 16 * 9 * 16 * 16), 2 * 16 * 10, 2 * 16 * 4
# 16 patches of 2x2 pixels and width 8; a hidden width of 32
PATCHES, LOGITS, PATCH_ROUTER = 16 * 2 * 4 * 8, 2 * 8 * 10, 16 * 2 * 8 * 4
ATTENTION, MLP = 4 * (16 * 2 * 8 * 8) + 2 * (2 * 16 * 16 * 8), 2 * (16 * 2 * 8 * 32)
VIT = {
    'model__name': 'vit',
    'model__args': {'width': 8, 'depth': 2, 'heads': 2, 'patch_size': 2},
}


def step_of(**changes):
    config = make(**changes)
    info = input_pipeline.info(config.dataset)
    return measure_step(config, info, measure(config, info))


@pytest.mark.parametrize(
    'changes, first, rest',
    [
        ({}, STEM, BLOCK_0 + DOWN + EXPERT + CLASSIFIER),
        (VIT, PATCHES, 2 * ATTENTION + 2 * MLP + LOGITS),
    ],
)
def test_a_dense_step_is_three_forward_passes_but_for_the_input(changes, first, rest):
    """Forward, gradient of the weights, gradient of the input; no gradient by the images."""
    step = step_of(**changes, model__twin='same_width')
    assert step.flops == 2 * first + 3 * rest
    assert step.flops_experts == step.rho_train == 0


@pytest.mark.parametrize(
    'changes, first, rest, experts, gates',
    [
        # 40 slots for 16 images: 2.5 expert passes for each; their gates weight maps of 256
        ({}, STEM, BLOCK_0 + DOWN + CLASSIFIER + ROUTER, 2.5 * EXPERT, 2.5 * 2 * 256),
        # 40 slots for the 16 patches of an image
        (VIT, PATCHES, 2 * ATTENTION + MLP + LOGITS + PATCH_ROUTER, 2.5 * MLP, 40 * 2 * 8),
    ],
)
def test_a_routed_step_counts_all_slots_three_times(changes, first, rest, experts, gates):
    step = step_of(**changes)
    assert step.flops == 2 * first + 3 * (rest + experts) + gates
    assert step.flops_experts == 3 * experts
    assert step.rho_train == 3 * experts / step.flops


@pytest.mark.parametrize(
    'changes',
    [
        train_cases.TOP_K  # two groups in a micro-batch, which takes loss `erc` once
        | {'train.micro_batches': 2, 'model.moe.group_size': 8}
        | {'model.moe.losses': {'importance': 0.01, 'erc': 0.1}},
        train_cases.TOP_K | train_cases.VIT | {'model.remat': True},
        train_cases.VIT
        | {
            'model.moe.router': 'soft',
            'model.moe.router_args': {},
            'model.moe.losses': {},
        },
        {'train.transforms': {'freeze_router': {}, 'freeze_experts': {'experts': (0,)}}},
        {'train.transforms': {'own_methods:Mixes': {}}},
        {
            'model.moe.router': 'unusual_methods:KeepsProducts',
            'model.moe.router_args': {},
            'model.moe.losses': {},
        },
    ],
)
def test_it_is_the_step_that_training_takes(changes, data_dir):
    """Optimizer, clipping, moving average, mixup and telemetry add nothing that would count."""
    config = train_cases.make(data_dir, changes)
    setup = Setup(config)
    parts = config.train.micro_batches
    rows = config.train.batch_size // parts

    def array(dtype, *shape):
        return jax.ShapeDtypeStruct((parts, rows, *shape), dtype)

    batch = {
        'image': array(np.uint8, *setup.info.image_shape),
        'label': array(np.int32),
        'valid': array(np.bool_),
    }
    program = jax.make_jaxpr(setup.step_of(setup.network))(setup.shapes, batch).jaxpr
    needed, _ = partial_eval.dce_jaxpr(program, [True] * len(program.outvars))
    step = measure_step(config, setup.info, setup.cost)
    assert step.flops == flops.total(flops.of_program(needed)) / config.train.batch_size
    times = 4 if config.model.remat else 3  # rematerialised experts run once more
    assert step.flops_experts == times * setup.cost.sum('flops_experts_executed')


@pytest.mark.parametrize('name', registry.TRANSFORMS)
def test_transforms_of_the_table_have_no_products(name):
    args = {'experts': (0,)} if name == 'freeze_experts' else {}
    assert step_of(train__transforms={name: args}) == step_of()


def test_the_products_of_a_transform_count_once_for_all_images_of_a_step():
    """[16, 16] times the update of a router, [16, 4], in steps of 128 images."""
    mixed = step_of(train__transforms={'own_methods:Mixes': {}})
    assert mixed.flops - step_of().flops == 2 * 16 * 16 * 4 / 128
    assert mixed.flops_experts == step_of().flops_experts


def test_the_command_tells_of_the_step_if_it_is_asked(capsys):
    small = ['--config=configs/digits_k2.py', '--config.model.args.widths=(8,16)']
    small += ['--config.model.args.depth=1', '--config.model.moe.group_size=16']
    assert command.main(small) == 0
    assert 'rho_train' not in capsys.readouterr().out
    assert command.main([*small, '--training']) == 0
    (line,) = [x for x in capsys.readouterr().out.splitlines() if 'rho_train' in x]
    assert line.startswith('training step: ') and 'x forward' in line
    assert command.main([*small, '--training', '--json']) == 0
    (record,) = json.loads(capsys.readouterr().out)
    step = record['training']
    assert step['rho_train'] == step['flops_experts'] / step['flops']
    assert f'rho_train {step["rho_train"]:.4f}' in line
    assert command.main([*small, '--training', '--sweep=model.moe.k=1,2']) == 2
    assert '--training is set but is not read' in capsys.readouterr().err
