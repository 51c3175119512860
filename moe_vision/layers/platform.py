"""The platform a program is made for: by default that of this process's own devices.

A few things have one form for CPUs and one for all else. The form is chosen while a program is
traced, so what compiles for devices of another platform says so around the tracing.
"""

import contextlib
import contextvars
from collections.abc import Iterator

import jax
from jax.sharding import Mesh

_TOLD: contextvars.ContextVar[str] = contextvars.ContextVar('platform', default='')


def target() -> str:
    """'cpu', 'gpu' or 'tpu': what is being traced will run there."""
    return _TOLD.get() or jax.default_backend()


@contextlib.contextmanager
def made_for(mesh: Mesh) -> Iterator[None]:
    """What is traced inside runs on the devices of this mesh."""
    before = _TOLD.set(mesh.devices.flat[0].platform)
    try:
        yield
    finally:
        _TOLD.reset(before)
