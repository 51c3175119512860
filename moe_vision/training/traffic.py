"""Estimates from shapes what routed layers send between devices in a training step.

All bytes are what one device sends, which is also what it receives. Among n devices an all-to-all
sends (n - 1) / n of the device's buffer, an all-gather (n - 1) / n of the gathered buffer, and an
all-reduce twice that.
"""

import dataclasses
import math
from collections.abc import Mapping
from fractions import Fraction

from moe_vision.config.schema import Config
from moe_vision.layers.exchange import expected, spans
from moe_vision.leverage import Leverage
from moe_vision.leverage.types import Block


@dataclasses.dataclass(frozen=True)
class Traffic:
    """What one routed layer sends on a mesh, in a training step.

    Attributes:
      tokens: tokens of a micro-batch on one device.
      across: whether groups have tokens on several devices of the expert axis.
      exchanged: bytes that a device sends because experts are on other devices: slots or features,
        and outputs, forward and backward.
      replicated: additional bytes that it would send for the gradients of the experts if every
        device had all experts (`mesh.expert` = 1).
      padding: share of the experts' slots that no choice can fill.
    """

    tokens: int
    across: bool
    exchanged: int
    replicated: int
    padding: float


def of_layers(config: Config, cost: Leverage, mesh_shape: Mapping[str, int]) -> dict[str, Traffic]:
    """The traffic of each routed layer; empty for dense networks.

    Args:
      mesh_shape: sizes of the axes 'data' and 'expert'.
    """
    traffic = {}
    shared, devices = mesh_shape['expert'], math.prod(mesh_shape.values())
    images = config.train.batch_size // config.train.micro_batches
    for block in cost.blocks:
        capacity = cost.capacities.get(block.name)
        if capacity is None:
            continue
        tokens = images * capacity.tokens_per_image
        across = spans(tokens, capacity.group_size, mesh_shape)
        sent = Fraction(shared - 1, shared)
        if across:  # features of the whole expert axis
            once = block.bytes_token * tokens // mesh_shape['data']
        else:
            once = block.bytes_buffers // 2 * images // devices
        kinds = expected(mesh_shape, across, remat=config.model.remat)
        times = kinds.total() * config.train.micro_batches
        # An all-reduce of all experts over all devices, minus that of 1 / shared over 'data'.
        data = mesh_shape['data']
        gradients = Fraction(devices - 1, devices) - Fraction(data - 1, data * shared)
        traffic[block.name] = Traffic(
            tokens=tokens // devices,
            across=across,
            exchanged=int(times * once * sent),
            replicated=int(2 * block.bytes_experts * gradients),
            padding=_padding(block),
        )
    return traffic


def _padding(block: Block) -> float:
    """Share of the executed slots that balanced choices leave empty, by their FLOPs."""
    executed = block.flops_experts_executed
    return max(0.0, 1 - block.flops_experts / executed) if executed else 0.0


def lines(traffic: Mapping[str, Traffic]) -> list[str]:
    """One line per routed layer, for people."""
    return [
        f'{name}: {x.tokens} tokens on a device'
        + (', groups span the expert axis' if x.across else '')
        + f'; {x.padding:.0%} of the slots are padding; per step a device sends '
        f'{_megabytes(x.exchanged)} to reach experts on other devices'
        + (
            f', or would send {_megabytes(x.replicated)} more of gradients if it held all experts'
            if x.replicated  # a bank of several layers is no layer's own
            else ''
        )
        for name, x in traffic.items()
    ]


def _megabytes(count: int) -> str:
    return f'{count / 1e6:.3g} MB'
