"""Programs compile quickly, and once for all tests and the processes that they start.

Set TESTS_COMPILED to a folder, and further calls of pytest need not compile them again.
"""

import gc
import os
import shutil
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
WORKER = 'PYTEST_XDIST_WORKER' in os.environ  # it inherits what follows
if not WORKER:
    caches = tempfile.mkdtemp(prefix='moe_vision-tests-')  # not the user's
    os.environ |= {
        'XDG_CACHE_HOME': caches,
        'JAX_COMPILATION_CACHE_DIR': os.environ.get('TESTS_COMPILED', f'{caches}/compiled'),
        'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0.1',
        'JAX_DISABLE_MOST_OPTIMIZATIONS': '1',
    }

import jax  # noqa: E402

if jax.__version_info__ < (0, 11) and not WORKER:  # XLA ends where it does not know a flag
    quick = (
        '--xla_cpu_use_fusion_emitters=false',  # half the time of its newer way to emit loops
        '--xla_cpu_opt_preset=CPU_OPT_PRESET_FAST_COMPILE',
        '--xla_cpu_parallel_codegen_split_count=1',  # one LLVM module of a program instead of many
    )
    os.environ['XLA_FLAGS'] = ' '.join((os.environ.get('XLA_FLAGS', ''), *quick)).strip()

# Files whose fixtures take half a minute and more: begun last, they would leave a worker idle.
SLOW = (
    'test_first_steps.py',
    'test_study_processes.py',
    'test_processes.py',
    'test_mesh.py',
    'test_together.py',
    'test_study_cli.py',
    'test_resume.py',
    'test_bucket.py',
)


def pytest_unconfigure():
    if not WORKER:
        shutil.rmtree(os.environ['XDG_CACHE_HOME'], ignore_errors=True)


def pytest_configure(config):
    config.option.loadscopereorder = False  # of pytest-xdist: the order below stands


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.name not in SLOW)


def pytest_collection_finish():
    """All tests stay until the end: looking through them for garbage again and again is wasted."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


@pytest.fixture(scope='session')
def jax_environment() -> dict[str, str]:
    """Of processes that tests start."""
    return {**os.environ, 'PYTHONPATH': f'{ROOT}{os.pathsep}{ROOT / "tests" / "cases"}'}


@pytest.fixture(scope='session')
def data_dir(tmp_path_factory) -> str:
    """Where data sets are prepared, once for all tests of a worker."""
    return str(tmp_path_factory.mktemp('data'))
