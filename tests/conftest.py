"""Programs compile in half the time without XLA's newer way of emitting loops."""

import os
import shutil
import tempfile
from pathlib import Path

import jax
import pytest

if jax.__version_info__ < (0, 11):  # XLA ends the process where it does not know a flag
    os.environ['XLA_FLAGS'] = (
        os.environ.get('XLA_FLAGS', '') + ' --xla_cpu_use_fusion_emitters=false').strip()


os.environ['XDG_CACHE_HOME'] = tempfile.mkdtemp(prefix='moe_vision-tests-')  # not the user's

# Files whose fixtures take half a minute and more: begun last, they would leave a worker idle.
SLOW = ('test_train_mesh.py', 'test_train_processes.py', 'test_study_together.py',
        'test_study_cli.py', 'test_study_processes.py', 'test_train_resume.py',
        'test_train_bucket.py')


def pytest_unconfigure():
    shutil.rmtree(os.environ['XDG_CACHE_HOME'], ignore_errors=True)


def pytest_configure(config):
    config.option.loadscopereorder = False  # of pytest-xdist: the order below stands


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.name not in SLOW)


@pytest.fixture(scope='session')
def jax_environment(tmp_path_factory) -> dict[str, str]:
    """What `quick` sets, as environment variables of another process."""
    return {**os.environ, 'JAX_COMPILATION_CACHE_DIR': str(tmp_path_factory.mktemp('compiled')),
            'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0.1',
            'JAX_DISABLE_MOST_OPTIMIZATIONS': '1', 'PYTHONPATH': str(Path(__file__).parents[1])}


@pytest.fixture(scope='module')
def quick(jax_environment):
    """Programs are compiled once, quickly, and shared with the processes that tests start."""
    def update(cache, seconds, quickly):
        jax.config.update('jax_compilation_cache_dir', cache)
        jax.config.update('jax_persistent_cache_min_compile_time_secs', seconds)
        jax.config.update('jax_disable_most_optimizations', quickly)
    before = jax.config.jax_compilation_cache_dir
    update(jax_environment['JAX_COMPILATION_CACHE_DIR'], 0.1, True)
    yield
    update(before, 1.0, False)
