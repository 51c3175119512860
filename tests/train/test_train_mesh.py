"""Every mesh on which a group fits a device trains as one device does, and moves no more than it
must. Eight virtual devices, in a process of their own."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import train_cases
from eight_devices import CASES, SHAPES

from moe_vision import checkpoint, mesh, surgery
from moe_vision.errors import UserError
from moe_vision.layers.exchange import expected_all_to_alls
from moe_vision.optimizer import path_name
from moe_vision.train import Setup

RUNS = [f'{case} {name}' for case in CASES for name in SHAPES if name != 'one']


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('eight')


@pytest.fixture(scope='module')
def seen(folder, data_dir, jax_environment):
    script = Path(__file__).parent / 'eight_devices.py'
    flags = f'{jax_environment.get("XLA_FLAGS", "")} --xla_force_host_platform_device_count=8'
    environment = jax_environment | {'XLA_FLAGS': flags, 'JAX_PLATFORMS': 'cpu'}
    done = subprocess.run([sys.executable, str(script), data_dir, str(folder)], text=True,
                          capture_output=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize('run', RUNS)
def test_a_mesh_trains_as_one_device_does(seen, run):
    found = seen[run]
    assert found['losses'][-1] < 0.99 * found['losses'][0]  # something was learned
    for what in ('loss_error', 'params_error', 'stats_error', 'router_error'):
        assert found[what] < 1e-4, what


@pytest.mark.parametrize('run', RUNS)
def test_the_compiled_step_exchanges_what_the_table_says_and_gathers_nothing(seen, run):
    found = seen[run]
    shape = dict(zip(('data', 'expert'), found['shape'], strict=True))
    counts = found['counts']
    assert counts.get('all-to-all', 0) == expected_all_to_alls(shape, routed_layers=1)
    assert counts.get('all-gather', 0) == 0, found['gathers']
    assert counts.get('collective-permute', 0) == 0, found['permutes']
    assert counts['all-reduce'] >= 1  # the gradients


def test_three_layers_exchange_three_times_as_much(seen):
    assert seen['deep']['all-to-all'] == expected_all_to_alls({'data': 2, 'expert': 4}, 3) == 12
    assert 'all-gather' not in seen['deep']


def test_the_table_of_exchanges():
    assert expected_all_to_alls({'data': 8, 'expert': 1}, 3) == 0
    assert expected_all_to_alls({'data': 2, 'expert': 4}, 0) == 0
    assert expected_all_to_alls({'data': 2, 'expert': 4}, 3) == 12
    assert expected_all_to_alls({'data': 2, 'expert': 4}, 3, first_input_has_gradient=False) == 11


@pytest.mark.parametrize('run', RUNS)
def test_expert_banks_and_what_the_optimizer_keeps_of_them_are_split_and_nothing_else(seen, run):
    found = seen[run]['shardings']
    banks = {n for n in found if '/experts/' in n}
    assert any(n.startswith('params/') for n in banks)
    assert any(n.startswith('opt_state/') for n in banks)
    assert all(found[n] == ['expert'] for n in banks)
    assert all(found[n] == [] for n in set(found) - banks)


@pytest.mark.parametrize('what, told', [
    ('group', 'train.batch_size gives each of 8 devices 8 images, which do not make whole routing '
              'groups of 16 images; groups that fit, in images: 1, 2, 4, 8.'),
    ('batch', 'groups that fit, in images: 1, 3.'),
    ('micro', 'train.batch_size / micro_batches gives each of 8 devices 2 images'),
    ('mesh', 'mesh.expert is 3, but there are 8 devices; allowed: 1, 2, 4, 8.')])
def test_what_does_not_fit_is_refused_with_the_sizes_that_fit(seen, what, told):
    assert told in seen['refused'][what]
    assert '\n' not in seen['refused'][what]


def test_a_checkpoint_of_eight_devices_is_read_on_one(seen, folder, data_dir):
    setup = Setup(train_cases.make(data_dir, CASES['conv']))
    with np.load(folder / 'params.npz') as saved:
        want = dict(saved)
    with checkpoint.Checkpoints(str(folder), 1) as saved:
        step, state = saved.restore_newest(setup.abstract)
    assert step == 10
    fresh = surgery.init_from(setup.fresh_state(), str(folder), setup.shardings)
    for params in (state.params, fresh.params):
        found = {path_name(p): np.asarray(x)
                 for p, x in jax.tree_util.tree_leaves_with_path(params)}
        train_cases.assert_same_bits(found, want)


def test_a_batch_that_no_group_can_fit_says_which_batch_would(monkeypatch):
    class Eight:
        size = 8
    with pytest.raises(UserError, match='none: make train.batch_size a multiple of 8'):
        mesh.check_groups(12, 4, Eight(), 'train.batch_size')


def test_the_checksum_sees_every_bit_and_its_place():
    state = {'a': jnp.arange(12.0).reshape(3, 4), 'b': jnp.arange(3), 'c': jnp.bfloat16(1.5)}
    want = int(checkpoint.checksum(state))
    for i in range(12):
        bits = np.asarray(state['a']).copy().view(np.uint32)
        bits.flat[i] ^= 1
        assert int(checkpoint.checksum(state | {'a': jnp.asarray(bits.view(np.float32))})) != want
    assert int(checkpoint.checksum(state | {'a': state['a'][::-1]})) != want
    assert int(checkpoint.checksum(state | {'b': state['b'][::-1]})) != want
