"""Compiled programs are kept in the user's cache folder and used again.

A program is found again by what it computes, by the versions of jax and XLA, by its options and by
the kind of device (jax's key). Programs for a CPU are made for one processor's instructions, so
each kind of processor has a folder of its own: a home directory may be shared by different
machines. Several processes may read and write at once; of an entry that is not whole jax warns, and
compiles.
"""

import hashlib
import os
import platform
from pathlib import Path

LEAST_SECONDS = 0.2  # of compiling, for a program to be kept


def folder() -> Path:
    """Of this kind of machine, in $XDG_CACHE_HOME or ~/.cache."""
    root = Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache')
    return root / 'moe_vision' / f'{platform.machine()}-{_instructions()}'


def use() -> None:
    """Turns the cache on, where the user has not said where it is or that there is none
    (JAX_COMPILATION_CACHE_DIR, JAX_ENABLE_COMPILATION_CACHE)."""
    import jax

    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update('jax_compilation_cache_dir', str(folder()))
        jax.config.update('jax_persistent_cache_min_compile_time_secs', LEAST_SECONDS)


def _instructions() -> str:
    """A short hash of what the processor can do."""
    try:
        lines = Path('/proc/cpuinfo').read_text().splitlines()
        found = next(line for line in lines if line.startswith(('flags', 'Features')))
    except (OSError, StopIteration):
        found = platform.processor()
    return hashlib.sha256(found.encode()).hexdigest()[:8]
