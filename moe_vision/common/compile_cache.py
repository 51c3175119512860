"""Keeps compiled programs in the user's cache folder, so that later processes need not compile.

jax finds a program by what it computes, the versions of jax and XLA, its options and the kind of
device. A program for a CPU uses the instructions of one kind of processor, so each kind has its own
folder: different machines may share a home directory. Several processes may read and write at
once; if an entry is damaged, jax warns and compiles again.
"""

import contextlib
import functools
import hashlib
import json
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path

from absl import logging

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


class FirstCalls:
    """Says in the log what is being compiled, and how long that took last time on this machine.

    >>> compiling = FirstCalls('conv')
    >>> with compiling('the training step'):  # says so the first time only
    ...     state, metrics = step(state, batch)

    Args:
      network: name of the network whose programs these are.
    """

    def __init__(self, network: str):
        self._network = network
        self._said: set[str] = set()

    def __call__(self, what: str) -> contextlib.AbstractContextManager[None]:
        """A context for calls of the program `what`."""
        if what in self._said:
            return contextlib.nullcontext()
        self._said.add(what)
        return _saying(f'{what} of {self._network}')


@contextlib.contextmanager
def _saying(what: str) -> Iterator[None]:
    import jax

    from moe_vision.common import timing

    file, cached = folder() / 'seconds.json', _from_cache()
    key = f'{what} on {jax.devices()[0].device_kind}'
    last = _seconds(file).get(key)
    logging.info(
        'compiling %s%s', what, '' if last is None else f'; the last time took {last:.0f} s'
    )
    parts = {name: timing.compiling(event) for name, event in timing.PARTS.items()}
    start = {name: part.seconds for name, part in parts.items()}
    before, began = len(cached), time.monotonic()
    yield
    seconds = time.monotonic() - began
    if len(cached) > before:
        logging.info('%s was compiled before; ready in %.0f s', what, seconds)
        return
    told = ', '.join(f'{name} {part.seconds - start[name]:.0f}' for name, part in parts.items())
    logging.info('compiled %s in %.0f s (%s)', what, seconds, told)
    with contextlib.suppress(OSError):  # it is only for the next message
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_name(f'{file.name}.{os.getpid()}')
        part.write_text(json.dumps(_seconds(file) | {key: round(seconds, 1)}))
        part.replace(file)


def _seconds(file: Path) -> dict[str, float]:
    """What the file holds; {} if it is missing or damaged."""
    try:
        values = json.loads(file.read_text())
        return {str(k): float(v) for k, v in values.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


@functools.cache
def _from_cache() -> list[str]:
    """A list that grows by one whenever jax finds a program in the cache."""
    import jax

    found: list[str] = []

    def listen(event: str, **_: str | int) -> None:
        if event == '/jax/compilation_cache/cache_hits':
            found.append(event)

    jax.monitoring.register_event_listener(listen)
    return found
