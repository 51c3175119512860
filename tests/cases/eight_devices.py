"""A script for eight virtual devices: trains on every mesh and prints what it measures as JSON.

python eight_devices.py DATA_DIR FOLDER
"""

import json
import re
import sys
from collections import Counter

import jax
import numpy as np
import pytest
import train_cases

from moe_vision.common.errors import UserError
from moe_vision.common.paths import path_name
from moe_vision.run_folder.checkpoints import Checkpoints
from moe_vision.training import mesh as mesh_lib
from moe_vision.training.setup import Setup

SHAPES = {'one': (1, 1), '8x1': (8, 1), '2x4': (2, 4), '1x8': (1, 8)}
COMMON = {
    'model.moe.num_experts': 8,
    'model.moe.group_size': 8,
    'train.batch_size': 64,
    'train.steps': 100,
    'train.warmup_steps': 0,
    'train.learning_rate': 0.1,
    'train.optimizer': 'sgd',  # Adam would turn rounding errors into full steps
    'train.clip_norm': 0.0,
    'train.ema_decay': 0.0,
    'train.mixup': 0.0,
    'model.moe.router': 'bias_balanced',
    'model.moe.router_args': {'bias_rate': 1e-3, 'renormalize': True},
}
CASES = {
    'conv': COMMON | {'model.args': {'widths': (8,), 'depth': 1}, 'train.mixup': 0.3},
    'sharded': COMMON
    | train_cases.TOP_K
    | {
        'model.name': 'vit',
        'model.moe.placement': 'every_1',
        'mesh.shard_optimizer': True,
        'train.transforms': {
            'freeze_router': {'at': 'step', 'step': 7},
            'freeze_experts': {'experts': (1, 6)},
            'own_methods:Damps': {},
        },
        'model.args': {'width': 8, 'depth': 1, 'heads': 2, 'patch_size': 4},
    },
}
CASES['across'] = CASES['conv'] | {  # a device holds 8 images
    'model.moe.group_size': 32,
    'model.moe.capacity_factor': 1.0,
    'train.transforms': {  # a window of the steps 1 to 9
        'freeze_router': {
            'at': 'convergence',
            'step': 1,
            'window': 9,
            'windows': 1,
            'change': 0.9,
            'least_load': 0.0,
        }
    },
}
CASES['across soft'] = COMMON | {
    'model.args': {'widths': (8,), 'depth': 1},
    'model.moe.group_size': 32,
    'model.moe.router': 'soft',
    'model.moe.router_args': {},
    'model.moe.kinds': ({'count': 4}, {'count': 4, 'expert': 'depthwise_conv'}),
    'model.moe.losses': {},
}
MESHES = {
    'conv': ('one', '8x1', '2x4'),
    'across': ('one', '2x4'),
    'across soft': ('one', '2x4'),
    'sharded': ('one', '2x4'),
}
DEEP = CASES['sharded'] | {
    'model.args': {'width': 8, 'depth': 3, 'heads': 2, 'patch_size': 4},
    'mesh.shard_optimizer': False,
}
STEPS = 10
COLLECTIVE = re.compile(
    r'= (.+?) (all-to-all|all-gather|all-reduce|collective-permute|'
    r'reduce-scatter)(?:-start)?\('
)


def batches():
    rng = np.random.default_rng(0)
    means = rng.integers(40, 200, (10, 8, 8, 1))
    for _ in range(STEPS):
        labels = rng.integers(0, 10, 64).astype(np.int32)
        noise = rng.integers(-40, 40, (64, 8, 8, 1))
        valid = rng.random(64) > 0.05
        yield {
            'image': (means[labels] + noise).clip(0, 255).astype(np.uint8),
            'label': labels,
            'valid': valid,
        }


def make_setup(changes: dict, shape: tuple[int, int], data_dir: str) -> Setup:
    return Setup(
        train_cases.make(data_dir, changes | {'mesh.expert': shape[1]}),
        devices=jax.devices()[: shape[0] * shape[1]],
    )


def compiled_step(setup: Setup):
    arrays = mesh_lib.to_devices(next(batches()), setup.mesh, 1)
    return setup.step.lower(setup.abstract, arrays).compile()


def on_mesh(case: str, setup: Setup, state):
    """(losses, state on the host, collectives of the compiled step, state) after training."""
    losses, compiled, drops = [], compiled_step(setup), 0.0
    for batch in batches():
        state, out = compiled(state, mesh_lib.to_devices(batch, setup.mesh, 1))
        losses.append(float(out['loss']))
        drops += sum(float(x['dropped']) for x in out['layers'].values())
    assert drops > 0 or 'soft' in case, 'capacity is never reached, so this does not test drops'
    return losses, jax.device_get(state), COLLECTIVE.findall(compiled.as_text()), state


def shardings(state) -> dict[str, str]:
    return {
        path_name(p): list(x.sharding.spec) for p, x in jax.tree_util.tree_leaves_with_path(state)
    }


def furthest(ours, theirs) -> float:
    """The largest difference of any array, relative to its largest value or to 0.1."""

    def distance(a, b):
        return float(np.abs(a - b).max() / max(np.abs(b).max(), 0.1))

    return max(jax.tree.leaves(jax.tree.map(distance, ours, theirs)))


def refusals(data_dir: str) -> dict[str, str]:
    """The errors of configs that do not fit the devices."""
    errors = {}
    for name, changes in {
        'group': {'model.moe.group_size': 16},
        'batch': {'train.batch_size': 24},
        'axis': {'mesh.expert': 4, 'model.moe.group_size': 64},
        'micro': {'train.micro_batches': 4},
    }.items():
        try:
            Setup(train_cases.make(data_dir, CASES['conv'] | changes))
        except UserError as e:
            errors[name] = str(e)
    return errors


def main(data_dir: str, folder: str) -> None:
    train_cases.round_as_users_do(pytest.MonkeyPatch())
    seen: dict = {'refused': refusals(data_dir)}
    make = mesh_lib.make
    try:
        make(3)
    except UserError as e:
        seen['refused']['mesh'] = str(e)
    for case in CASES:
        for name in MESHES[case]:
            shape = SHAPES[name]
            setup = make_setup(CASES[case], shape, data_dir)
            if name == 'one':
                first = jax.device_get(setup.fresh_state())
            # draws its own initial values, which have the bits of one device's
            own = name == '2x4' and 'across' not in case
            state = setup.fresh_state() if own else jax.device_put(first, setup.shardings)
            if own:
                train_cases.assert_same_bits(state, first)
            losses, state, collectives, live = on_mesh(case, setup, state)
            if name == 'one':
                want_losses, want = losses, state
            kept, want_kept = (
                s.opt_state['transforms'] if setup.transforms else {'': np.zeros(1)}
                for s in (state, want)
            )
            seen[f'{case} {name}'] = {
                'losses': losses,
                'shape': shape,
                'loss_error': max(abs(a / b - 1) for a, b in zip(losses, want_losses, strict=True)),
                'params_error': furthest(state.params, want.params),
                'stats_error': furthest(
                    state.batch_stats or {'': np.zeros(1)}, want.batch_stats or {'': np.zeros(1)}
                ),
                'router_error': furthest(
                    state.router_state or {'': np.zeros(1)}, want.router_state or {'': np.zeros(1)}
                ),
                'transforms_error': furthest(kept, want_kept),
                'counts': Counter(op for _, op in collectives),
                'gathers': [s for s, op in collectives if op == 'all-gather'],
                'permutes': [s for s, op in collectives if op == 'collective-permute'],
                'shapes': [','.join(map(str, x.shape)) for x in jax.tree.leaves(live.params)],
                'shardings': shardings(live),
            }
            if (case, name) == ('conv', '2x4'):
                with Checkpoints(folder, 1) as saved:
                    saved.save(STEPS, live)
                np.savez(
                    f'{folder}/params.npz',
                    **{
                        path_name(p): x
                        for p, x in jax.tree_util.tree_leaves_with_path(state.params)
                    },
                )
    deep = make_setup(DEEP, (2, 4), data_dir)
    drawn = deep._fresh.lower(jax.random.key(0)).compile().as_text()
    seen['drawn'] = sorted(set(re.findall(r'f32\[(3,[\d,]+)\]', drawn)))
    program = compiled_step(deep).as_text()
    seen['deep'] = Counter(op for _, op in COLLECTIVE.findall(program))
    print(json.dumps(seen))


if __name__ == '__main__':
    main(*sys.argv[1:])
