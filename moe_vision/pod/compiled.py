"""Compiles the real training step of a config for a slice, with the TPU compiler."""

import dataclasses
import re
import time
from typing import Any

import jax
import jax.numpy as jnp

from moe_vision.common import flops
from moe_vision.config.schema import Config
from moe_vision.pod.devices import devices_of
from moe_vision.pod.topology import Topology
from moe_vision.training import mesh
from moe_vision.training.setup import Setup


class TooLarge(Exception):
    """The step needs more memory than a device has; `tensors` lists the largest."""

    def __init__(self, needs: str, tensors: list[str]):
        super().__init__(needs)
        self.tensors = tensors


@dataclasses.dataclass(frozen=True)
class Compiled:
    """The compiled program of one device."""

    hlo: str  # its text
    memory: Any  # jax's CompiledMemoryStats
    seconds: float


def setup_for(config: Config, topology: Topology) -> Setup:
    """The set-up of a training run on this slice; its devices can only be compiled for.

    Raises:
      UserError: mesh.expert does not divide the devices, or the batch does not fill whole groups
        on them.
    """
    return Setup(config, devices=devices_of(topology))


def trace_step(setup: Setup) -> jax.stages.Traced:
    """Traces `setup.step` for arrays that are sharded as in training."""
    return setup.step.trace(setup.abstract, batch_shapes(setup))


def step_flops(traced: jax.stages.Traced) -> int:
    """FLOPs of one step on all devices together, forward and backward."""
    return flops.total(flops.of_program(traced.jaxpr.jaxpr))


def compile_step(traced: jax.stages.Traced) -> Compiled:
    """Compiles a traced step; nothing runs.

    Raises:
      TooLarge: the step does not fit a device's memory.
    """
    began = time.monotonic()
    try:
        program = traced.lower().compile()
    except jax.errors.JaxRuntimeError as e:
        if 'RESOURCE_EXHAUSTED' not in str(e):
            raise
        raise too_large(str(e)) from e
    return Compiled(program.as_text(), program.memory_analysis(), time.monotonic() - began)


def batch_shapes(setup: Setup) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of a training batch as the feed delivers it, [micro-batches, rows, ...]."""
    train = setup.config.train
    lead = (train.micro_batches, train.batch_size // train.micro_batches)
    sharding = mesh.batch_sharding(setup.mesh)
    arrays = {
        'image': (setup.info.image_shape, jnp.uint8),
        'label': ((), jnp.int32),
        'valid': ((), jnp.bool_),
    }
    if setup.config.dataset.domains:
        arrays['domain'] = ((), jnp.int32)
    return {
        n: jax.ShapeDtypeStruct((*lead, *shape), kind, sharding=sharding)
        for n, (shape, kind) in arrays.items()
    }


def too_large(message: str) -> TooLarge:
    """Reads the compiler's message: how much memory it needs of how much, and which tensors."""
    sizes = re.search(
        r'Used ([\d.]+\w?) of ([\d.]+\w?) hbm|'
        r'\(([\d.]+\w?)\) exceeds available HBM \(([\d.]+\w?)\)',
        message,
    )
    tensors = []
    for item in re.split(r'\n\s*\d+\. Size: ', message)[1:]:
        matches = (re.search(p, item) for p in (r'Shape: (\S+)', r'op_name="([^"]*)'))
        tensors.append(' '.join([item.split()[0], *(m[1] for m in matches if m)]))
    first = message.strip().splitlines()[0]
    return TooLarge(
        'needs {} of {}'.format(*filter(None, sizes.groups())) if sizes else first, tensors
    )
