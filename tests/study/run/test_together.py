"""Seeds trained as one program take the same steps as alone, also divided among devices."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope='module')
def seen(tmp_path_factory, jax_environment):
    flags = jax_environment.get('XLA_FLAGS', '') + ' --xla_force_host_platform_device_count=8'
    environment = jax_environment | {'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': flags}
    done = subprocess.run(
        [
            sys.executable,
            str(Path(__file__).parents[2] / 'cases' / 'seeds_laid_out.py'),
            str(tmp_path_factory.mktemp('data')),
        ],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize('case', ['conv 2', 'conv dense 2'])
def test_ten_steps_agree(seen, case):
    found = seen[case]
    assert found['loss_error'] < 1e-4 and found['params_error'] < 1e-4, found
    assert found['apart'] > 0  # the seeds are not one
    assert found['laid'] == [int(case[-1])]  # devices, for every array of the state
