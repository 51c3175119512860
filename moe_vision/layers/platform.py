"""The platform that a program is traced for: by default that of this process's own devices.

Some code has one form for CPUs and another for all other platforms, and chooses while it is traced.
Whoever compiles for devices of another platform must say so while tracing, with `made_for`.
"""

import contextlib
import contextvars
from collections.abc import Iterator

import jax
from jax.sharding import Mesh

_platform: contextvars.ContextVar[str] = contextvars.ContextVar('platform', default='')


def target() -> str:
    """'cpu', 'gpu' or 'tpu': the platform on which the program being traced will run."""
    return _platform.get() or jax.default_backend()


@contextlib.contextmanager
def made_for(mesh: Mesh) -> Iterator[None]:
    """What is traced inside this context will run on the devices of this mesh."""
    before = _platform.set(mesh.devices.flat[0].platform)
    try:
        yield
    finally:
        _platform.reset(before)
