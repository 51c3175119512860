"""The platform that a program is traced for: by default that of this process's own devices.

Some code has one form for CPUs and another for all other platforms, or one for NVIDIA's GPUs, and
chooses while it is traced. Whoever compiles for devices of another platform must say so while
tracing, with `made_for`.
"""

import contextlib
import contextvars
import re
import types
from collections.abc import Iterator
from typing import Any

import jax
from jax.sharding import Mesh

_device: contextvars.ContextVar[Any] = contextvars.ContextVar('device', default=None)


def target() -> str:
    """'cpu', 'gpu' or 'tpu': the platform on which the program being traced will run."""
    device = _device.get()
    return device.platform if device else jax.default_backend()


def tensor_cores() -> bool:
    """Whether the target is an NVIDIA GPU that multiplies bfloat16 and TF32 (Ampere or later)."""
    if target() != 'gpu':
        return False
    capability = str(getattr(_device.get() or jax.devices()[0], 'compute_capability', ''))
    return bool(re.fullmatch(r'\d+\.\d+', capability)) and float(capability) >= 8


@contextlib.contextmanager
def made_for(mesh: Mesh) -> Iterator[None]:
    """What is traced inside this context will run on the devices of this mesh."""
    with _on(mesh.devices.flat[0]):
        yield


@contextlib.contextmanager
def plain(platform: str = 'cpu') -> Iterator[None]:
    """What is traced inside this context is for any device of a platform, and calls no kernels of a
    library. So its FLOPs can be counted, and it runs where such kernels are not."""
    with _on(types.SimpleNamespace(platform=platform)):
        yield


@contextlib.contextmanager
def _on(device: Any) -> Iterator[None]:
    before = _device.set(device)
    try:
        yield
    finally:
        _device.reset(before)
