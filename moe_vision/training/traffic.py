"""What routed layers send between devices in a training step, computed from shapes.

Bytes are those that one device sends, and receives: of a buffer exchanged by all-to-all, or whole
after an all-gather, by n devices: (n - 1) / n of it; of an all-reduce twice that.
"""

import dataclasses
import math
from collections.abc import Mapping
from fractions import Fraction

from moe_vision.config.schema import Config
from moe_vision.layers.exchange import expected, spans
from moe_vision.leverage import Leverage


@dataclasses.dataclass(frozen=True)
class Traffic:
    """Of one routed layer on a mesh.

    Attributes:
      tokens: on one device, of a micro-batch.
      across: groups have tokens on several devices of the expert axis.
      exchanged: bytes that a device sends because experts are elsewhere: slots or features, and
        outputs, forward and backward.
      replicated: bytes that it would send more for gradients of the experts if it had them all
        (`mesh.expert` = 1).
      padding: share of the experts' slots that no choice can fill.
    """

    tokens: int
    across: bool
    exchanged: int
    replicated: int
    padding: float


def of_layers(config: Config, cost: Leverage, mesh_shape: Mapping[str, int]) -> dict[str, Traffic]:
    """Each routed layer's; none for soft routing or a dense network."""
    found = {}
    shared, devices = mesh_shape['expert'], math.prod(mesh_shape.values())
    images = config.train.batch_size // config.train.micro_batches
    for block in cost.blocks:
        at = cost.capacities.get(block.name)
        if at is None:
            continue
        tokens = images * at.tokens_per_image
        across = spans(tokens, at.group_size, mesh_shape)
        whole = Fraction(shared - 1, shared)
        if across:  # features of a whole expert axis there, and outputs back; both again backward
            once = block.bytes_token * tokens // mesh_shape['data']
        else:
            once = block.bytes_buffers // 2 * images // devices
        kinds = expected(mesh_shape, 1, across, remat=config.model.remat)
        times = kinds.total() * config.train.micro_batches
        # Gradients of all experts over all devices, less those of 1 / shared over 'data'.
        data = mesh_shape['data']
        gradients = Fraction(devices - 1, devices) - Fraction(data - 1, data * shared)
        found[block.name] = Traffic(
            tokens=tokens // devices, across=across, exchanged=int(times * once * whole),
            replicated=int(2 * block.bytes_experts * gradients),
            padding=max(0.0, 1 - 1 / at.effective_factor) if at.capacity else 0.0)
    return found


def text(found: Mapping[str, Traffic]) -> list[str]:
    """One line per routed layer."""
    size = lambda n: f'{n / 1e6:.3g} MB'  # noqa: E731
    return [
        f'{name}: {x.tokens} tokens on a device'
        + (', groups span the expert axis' if x.across else '')
        + f'; padding {x.padding:.0%} of slots; a device sends {size(x.exchanged)} a step for '
        f'experts elsewhere, {size(x.replicated)} of gradients if it had them all'
        for name, x in found.items()]
