"""The real training step of a config, compiled for a slice by the TPU compiler."""

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
    """The compiler found no room: how much it needs, and which tensors are the largest."""

    def __init__(self, told: str, tensors: list[str]):
        super().__init__(told)
        self.tensors = tensors


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What the compiler made, for one device."""

    text: str  # HLO
    memory: Any  # jax's CompiledMemoryStats
    seconds: float


def setup_for(config: Config, topology: Topology) -> Setup:
    """Everything of a training run on that slice but its devices.

    Raises:
      UserError: mesh.expert does not divide the devices, the batch makes no whole groups on them.
    """
    return Setup(config, devices=devices_of(topology))


def trace_step(setup: Setup) -> jax.stages.Traced:
    """`setup.step` on arrays that lie as in training."""
    return setup.step.trace(setup.abstract, batch_of(setup))


def step_flops(traced: jax.stages.Traced) -> int:
    """Products and convolutions of all devices in a step, forward and backward."""
    return flops.total(flops.of_program(traced.jaxpr.jaxpr))


def compile_step(traced: jax.stages.Traced) -> Compiled:
    """Compiles it; nothing runs.

    Raises:
      TooLarge: it does not fit a device's memory.
    """
    began = time.monotonic()
    try:
        made = traced.lower().compile()
    except jax.errors.JaxRuntimeError as e:
        if 'RESOURCE_EXHAUSTED' not in str(e):
            raise
        raise too_large(str(e)) from e
    return Compiled(made.as_text(), made.memory_analysis(), time.monotonic() - began)


def batch_of(setup: Setup) -> dict[str, jax.ShapeDtypeStruct]:
    """A training batch as the feed gives it, [micro-batches, rows, ...], as shapes."""
    train = setup.config.train
    lead = (train.micro_batches, train.batch_size // train.micro_batches)
    sharding = mesh.batch_sharding(setup.mesh)
    arrays = {'image': (setup.info.image_shape, jnp.uint8), 'label': ((), jnp.int32),
              'valid': ((), jnp.bool_)}
    return {n: jax.ShapeDtypeStruct((*lead, *shape), kind, sharding=sharding)
            for n, (shape, kind) in arrays.items()}


def too_large(message: str) -> TooLarge:
    """Of the compiler's message: what it needs of what there is, and what it says of tensors."""
    used = re.search(r'Used ([\d.]+\w?) of ([\d.]+\w?) hbm|'
                     r'\(([\d.]+\w?)\) exceeds available HBM \(([\d.]+\w?)\)', message)
    tensors = []
    for item in re.split(r'\n\s*\d+\. Size: ', message)[1:]:
        found = (re.search(p, item) for p in (r'Shape: (\S+)', r'op_name="([^"]*)'))
        tensors.append(' '.join([item.split()[0], *(m[1] for m in found if m)]))
    first = message.strip().splitlines()[0]
    return TooLarge('needs {} of {}'.format(*filter(None, used.groups())) if used else first,
                    tensors)
