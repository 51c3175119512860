"""A mesh trains as one device does and exchanges no more than it must.

The runs use eight virtual devices in a process of their own.
"""

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import train_cases
from eight_devices import CASES, MESHES

from moe_vision.common.errors import UserError
from moe_vision.common.paths import path_name
from moe_vision.layers.exchange import expected, spans
from moe_vision.run_folder import checkpoints, checksum
from moe_vision.training import mesh
from moe_vision.training.setup import Setup

RUNS = [f'{case} {name}' for case, names in MESHES.items() for name in names if name != 'one']
ACROSS = [run for run in RUNS if run.startswith('across')]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('eight')


@pytest.fixture(scope='module')
def seen(folder, data_dir, jax_environment):
    script = Path(__file__).parents[1] / 'cases' / 'eight_devices.py'
    flags = f'{jax_environment.get("XLA_FLAGS", "")} --xla_force_host_platform_device_count=8'
    environment = jax_environment | {'XLA_FLAGS': flags, 'JAX_PLATFORMS': 'cpu'}
    done = subprocess.run(
        [sys.executable, str(script), data_dir, str(folder)],
        text=True,
        capture_output=True,
        env=environment,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize('run', RUNS)
def test_a_mesh_trains_as_one_device_does(seen, run):
    facts = seen[run]
    assert facts['losses'][-1] < 0.99 * facts['losses'][0]  # something was learned
    errors = ('loss_error', 'params_error', 'stats_error', 'router_error', 'transforms_error')
    for what in errors:
        assert facts[what] < 1e-4, what


@pytest.mark.slow
@pytest.mark.parametrize('run', [r for r in RUNS if r not in ACROSS and 'sharded' not in r])
def test_the_compiled_step_exchanges_what_the_table_says_and_gathers_nothing(seen, run):
    facts = seen[run]
    shape = dict(zip(('data', 'expert'), facts['shape'], strict=True))
    counts = facts['counts']
    assert counts.get('all-to-all', 0) == expected(shape)['all-to-all']
    assert counts.get('all-gather', 0) == 0, facts['gathers']
    assert counts.get('collective-permute', 0) == 0, facts['permutes']
    assert counts['all-reduce'] >= 1  # the gradients


@pytest.mark.slow
@pytest.mark.parametrize('run', ACROSS)
def test_groups_over_devices_gather_features_once_each_way(seen, run):
    facts = seen[run]
    shape = dict(zip(('data', 'expert'), facts['shape'], strict=True))
    rows = 64 // shape['data']
    maps = [s for s in facts['gathers'] if s.startswith(f'f32[{rows},8,8,8]')]
    want = expected(shape, across=True)
    assert len(maps) == want['all-gather'] == 2
    assert facts['counts']['all-to-all'] == want['all-to-all'] == 2
    assert set(facts['gathers']) - set(maps) <= {f'pred[{rows}]{{0}}', f'u8[{rows}]{{0}}'}
    assert facts['counts'].get('reduce-scatter', 0) == 0
    assert facts['counts'].get('collective-permute', 0) == 0, facts['permutes']


@pytest.mark.slow
def test_a_sharded_optimizer_gathers_parameters_and_nothing_else(seen):
    facts = seen['sharded 2x4']
    shape = dict(zip(('data', 'expert'), facts['shape'], strict=True))
    assert facts['counts']['all-to-all'] == expected(shape)['all-to-all']
    shapes = {re.match(r'\w+\[([\d,]*)\]', s)[1] for s in facts['gathers']}
    assert shapes and shapes <= set(facts['shapes'])
    split = {n for n, spec in facts['shardings'].items() if 'data' in spec}
    assert split and all(n.startswith('opt_state/') and '/experts/' not in n for n in split)
    assert any(n.endswith('stem/kernel') for n in split)


@pytest.mark.slow
def test_three_layers_exchange_three_times_as_much(seen):
    assert seen['deep']['all-to-all'] == 3 * expected({'data': 2, 'expert': 4})['all-to-all'] == 12
    assert 'all-gather' not in seen['deep']


@pytest.mark.slow
def test_no_device_draws_the_experts_of_others(seen):
    """The first kernels of the experts of three layers are drawn in one loop, two experts each."""
    assert '3,2,8,32' in seen['drawn'] and '3,8,8,32' not in seen['drawn'], seen['drawn']


def test_the_table_of_exchanges():
    mesh = {'data': 2, 'expert': 4}
    assert expected({'data': 8, 'expert': 1}) == {}
    assert expected(mesh) == {'all-to-all': 4}
    assert expected(mesh, across=True) == {'all-gather': 2, 'all-to-all': 2}
    # the traced step of two layers has twice as many: 12; and 6 (10 with `valid`) and 4
    assert expected(mesh, remat=True) == {'all-to-all': 6}
    assert expected(mesh, across=True, remat=True) == {'all-gather': 3, 'all-to-all': 2}


def test_groups_span_where_a_device_holds_no_whole_one():
    mesh = {'data': 2, 'expert': 4}
    assert not spans(64, 8, mesh) and not spans(64, 4, mesh)
    assert spans(64, 16, mesh) and spans(64, 32, mesh)
    for tokens, group in ((64, 64), (64, 24), (60, 15)):
        with pytest.raises(ValueError, match='do not make whole groups'):
            spans(tokens, group, mesh)


@pytest.mark.slow
@pytest.mark.parametrize('run', [r for r in RUNS if 'sharded' not in r])
def test_expert_banks_and_what_the_optimizer_keeps_of_them_are_split_and_nothing_else(seen, run):
    shardings = seen[run]['shardings']
    banks = {n for n in shardings if '/experts/' in n}
    assert any(n.startswith('params/') for n in banks)
    assert any(n.startswith('opt_state/') for n in banks)
    assert all(shardings[n] == ['expert'] for n in banks)
    assert all(shardings[n] == [] for n in set(shardings) - banks)


@pytest.mark.slow
@pytest.mark.parametrize(
    'what, message',
    [
        (
            'group',
            'train.batch_size gives each of 8 devices 8 images, which do not make whole routing '
            'groups of 16 images; groups that fit, in images: 1, 2, 4, 8.',
        ),
        (
            'axis',
            'train.batch_size gives the 4 devices of each of 2 expert axes 32 images, which do '
            'not make whole routing groups of 64 images; groups that fit, in images: 1, 2, 4, 8, '
            '16, 32.',
        ),
        ('batch', 'groups that fit, in images: 1, 3.'),
        ('micro', 'train.batch_size / micro_batches gives each of 8 devices 2 images'),
        ('mesh', 'mesh.expert is 3, but there are 8 devices; allowed: 1, 2, 4, 8.'),
    ],
)
def test_what_does_not_fit_is_refused_with_the_sizes_that_fit(seen, what, message):
    assert message in seen['refused'][what]
    assert '\n' not in seen['refused'][what]


@pytest.mark.slow
def test_a_checkpoint_of_eight_devices_is_read_on_one(seen, folder, data_dir):
    setup = Setup(train_cases.make(data_dir, CASES['conv']))
    with np.load(folder / 'params.npz') as saved:
        want = dict(saved)
    with checkpoints.Checkpoints(str(folder), 1) as saved:
        step, state = saved.restore_newest(setup.abstract)
    assert step == 10
    raw = checkpoints.load_raw(str(folder))
    for params in (state.params, raw['params']):
        values = {
            path_name(p): np.asarray(x) for p, x in jax.tree_util.tree_leaves_with_path(params)
        }
        train_cases.assert_same_bits(values, want)


def test_a_batch_that_no_group_can_fit_says_which_batch_would(monkeypatch):
    class Eight:
        size, shape = 8, {'data': 8, 'expert': 1}

    with pytest.raises(UserError, match='none: make train.batch_size a multiple of 8'):
        mesh.check_groups(12, 4, Eight(), 'train.batch_size')


def test_the_checksum_sees_every_bit_and_its_place():
    state = {'a': jnp.arange(12.0).reshape(3, 4), 'b': jnp.arange(3), 'c': jnp.bfloat16(1.5)}
    want = int(checksum.of_state(state))
    for i in range(12):
        bits = np.asarray(state['a']).copy().view(np.uint32)
        bits.flat[i] ^= 1
        flipped = state | {'a': jnp.asarray(bits.view(np.float32))}
        assert int(checksum.of_state(flipped)) != want
    assert int(checksum.of_state(state | {'a': state['a'][::-1]})) != want
    assert int(checksum.of_state(state | {'b': state['b'][::-1]})) != want


class Device:
    """The attributes of a chip that making a mesh reads."""

    platform, device_kind, core_on_chip = 'tpu', 'TPU v5', 0

    def __init__(self, number, shape):
        self.id, self.process_index, self.slice_index = (
            number,
            number // 4,
            number // math.prod(shape),
        )
        self.coords = [int(n) for n in np.unravel_index(number % math.prod(shape), shape)]


@pytest.mark.parametrize(
    'shape, expert',
    [((4, 4, 4), 8), ((4, 4, 4), 2), ((16, 16, 1), 8), ((16, 16, 1), 32), ((8, 8, 4), 8)],
)
def test_an_expert_axis_may_be_part_of_an_axis_of_the_torus(shape, expert):
    devices = [Device(n, shape) for n in range(math.prod(shape))]
    grid = mesh.make(expert, devices)
    assert grid.shape['expert'] == expert and set(grid.devices.flat) == set(devices)
    for row in grid.devices:  # its devices are neighbours: a box of the torus
        sides = [len({d.coords[n] for d in row}) for n in range(3)]
        assert math.prod(sides) == expert


def test_an_expert_axis_lies_within_a_slice():
    devices = [Device(n, (4, 2, 1)) for n in (*range(0, 16, 2), *range(1, 16, 2))]
    grid = mesh.make(4, devices)
    assert dict(grid.shape) == {'data': 4, 'expert': 4}
    for row in grid.devices:
        assert len({d.slice_index for d in row}) == 1
    assert len(set(grid.devices.flat)) == 16
    with pytest.raises(
        UserError,
        match=r'mesh\.expert is 16, but there are 8 devices in a slice; '
        r'allowed: 1, 2, 4, 8\.',
    ):
        mesh.make(16, devices)
