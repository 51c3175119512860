"""Keeps compiled programs in the user's cache folder, so that later processes need not compile.

jax finds a program by what it computes, the versions of jax and XLA, its options and the kind of
device. A program for a CPU uses the instructions of one kind of processor, so each kind has its own
folder: different machines may share a home directory. Several processes may read and write at
once; if an entry is damaged, jax warns and compiles again.
"""

import hashlib
import os
import platform
from pathlib import Path

LEAST_SECONDS = 0.2  # programs that compile faster are not kept


def folder() -> Path:
    """The folder for this kind of machine, in $XDG_CACHE_HOME or ~/.cache."""
    root = Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache')
    return root / 'moe_vision' / f'{platform.machine()}-{_instructions()}'


def use() -> None:
    """Turns the cache on, unless the user has set its folder (JAX_COMPILATION_CACHE_DIR).

    jax itself obeys JAX_ENABLE_COMPILATION_CACHE.
    """
    import jax

    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update('jax_compilation_cache_dir', str(folder()))
        jax.config.update('jax_persistent_cache_min_compile_time_secs', LEAST_SECONDS)


def _instructions() -> str:
    """A short hash of the processor's instruction set."""
    try:
        lines = Path('/proc/cpuinfo').read_text().splitlines()
        features = next(line for line in lines if line.startswith(('flags', 'Features')))
    except (OSError, StopIteration):
        features = platform.processor()
    return hashlib.sha256(features.encode()).hexdigest()[:8]
