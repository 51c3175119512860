"""The platform that a program is traced for: by default that of this process's own devices.

Some code has one form for CPUs and another for all other platforms, or one for NVIDIA's GPUs, and
chooses while it is traced. Whoever compiles for devices of another platform must say so while
tracing, with `made_for`.
"""

import contextlib
import contextvars
from collections.abc import Iterator
from typing import Any

import jax
from jax.sharding import Mesh

_device: contextvars.ContextVar[Any] = contextvars.ContextVar('device', default=None)


def target() -> str:
    """'cpu', 'gpu' or 'tpu': the platform on which the program being traced will run."""
    device = _device.get()
    return device.platform if device else jax.default_backend()


@contextlib.contextmanager
def made_for(mesh: Mesh) -> Iterator[None]:
    """What is traced inside this context will run on the devices of this mesh."""
    before = _device.set(mesh.devices.flat[0])
    try:
        yield
    finally:
        _device.reset(before)
