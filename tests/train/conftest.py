"""Programs of these tests are compiled once, quickly, and shared with the processes they start."""

import os

import jax
import pytest
import train_cases


@pytest.fixture(scope='session')
def jax_environment(tmp_path_factory) -> dict[str, str]:
    """What `quick` sets, as environment variables of another process."""
    return {**os.environ, 'JAX_COMPILATION_CACHE_DIR': str(tmp_path_factory.mktemp('compiled')),
            'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0.1',
            'JAX_DISABLE_MOST_OPTIMIZATIONS': '1', 'PYTHONPATH': str(train_cases.ROOT)}


@pytest.fixture(scope='module', autouse=True)
def quick(jax_environment):
    def update(cache, seconds, quickly):
        jax.config.update('jax_compilation_cache_dir', cache)
        jax.config.update('jax_persistent_cache_min_compile_time_secs', seconds)
        jax.config.update('jax_disable_most_optimizations', quickly)
    before = jax.config.jax_compilation_cache_dir
    update(jax_environment['JAX_COMPILATION_CACHE_DIR'], 0.1, True)
    yield
    update(before, 1.0, False)


@pytest.fixture(scope='session')
def data_dir(tmp_path_factory) -> str:
    return str(tmp_path_factory.mktemp('data'))
