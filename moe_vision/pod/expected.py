"""Which collectives a training step may have, from its config, and which of those found are not.

Expected are the exchanges of routed layers as `layers.exchange` counts them, all-reduces of
gradients and of statistics, and, where the optimizer's state lies over the data axis, gradients
scattered and parameters gathered; over several slices each all-reduce is scattered in a slice,
reduced between slices and gathered in the slice. Nothing else: a gather of tokens or of expert
weights, or a tensor that is neither a gradient nor small, means that arrays lie otherwise than
planned.
"""

import dataclasses
import math
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable

import jax

from moe_vision.layers import exchange
from moe_vision.pod.hlo import Collective, Part
from moe_vision.pod.memory import shard_shape
from moe_vision.pod.roofline import sent_bytes
from moe_vision.training import traffic
from moe_vision.training.setup import Setup

_TILES = re.compile(r'\[\d+,\d+,128\]$')  # what slices sum, laid flat with its padding
_STATISTIC = 2**16  # elements; sums by channel, expert or class are smaller


@dataclasses.dataclass(frozen=True)
class Expected:
    """Of one step.

    Attributes:
      exchanges: of routed layers, by kind.
      sent: bytes that a device sends by them.
      parameters: elements of each, as a device holds it; of its gradient, too; of the part of it
        whose optimizer state a device holds, where that is less.
      scattered: the optimizer's state lies over the data axis.
      slices: how many the devices are in; they exchange nothing but sums.
    """

    exchanges: Counter[str]
    sent: int
    parameters: frozenset[int]
    scattered: bool = False
    slices: int = 1


def of_setup(setup: Setup, slices: int = 1) -> Expected:
    config, shape = setup.config, dict(setup.mesh.shape)
    exchanges: Counter[str] = Counter()
    layers = traffic.of_layers(config, setup.cost, shape)
    for layer in layers.values():
        for kind, n in exchange.expected(
                shape, 1, layer.across, remat=config.model.remat).items():
            exchanges[kind] += n * config.train.micro_batches
    kept = jax.tree.leaves((setup.abstract.params, setup.abstract.opt_state))
    return Expected(
        exchanges, sum(x.exchanged for x in layers.values()),
        frozenset(math.prod(shard_shape(x)) for x in kept), config.mesh.shard_optimizer, slices)


def exchanges(found: Iterable[Collective], expected: Expected,
              layers: Collection[str]) -> list[Collective]:
    """Those of features in routed layers; what is known of a token besides its features is none,
    nor is the part of a sum over slices."""
    return [c for c in found if c.kind in expected.exchanges and layer_of(c.origin, layers)
            and any('f' in p.shape.partition('[')[0] for p in c.parts)
            and not (expected.slices > 1 and all(_planned(c.kind, p, expected) for p in c.parts))]


def sent(found: Iterable[Collective], devices: int) -> float:
    """Bytes that a device sends in a step."""
    return sum(sent_bytes(c, devices) * (c.times or 1) for c in found)


def unexpected(found: Iterable[Collective], expected: Expected,
               layers: Collection[str]) -> list[tuple[Collective, Part]]:
    """Each tensor that should not travel, or not that often.

    Args:
      layers: the routed ones. Of an exchange that is there too often, those of the layers that
        have more than their share are told.
    """
    bad: list[tuple[Collective, Part]] = []
    counted: dict[tuple[str, str], list[Collective]] = defaultdict(list)
    for c in found:
        layer = layer_of(c.origin, layers)
        if exchanges([c], expected, layers):
            counted[c.kind, layer].append(c)
        elif expected.slices > 1 or not (layer and c.kind in expected.exchanges):
            # else it is what is known of a token besides its features
            bad += [(c, p) for p in c.parts if not _planned(c.kind, p, expected)]
    for (kind, _), own in counted.items():
        if sum(c.times or 1 for c in own) > expected.exchanges[kind] / len(layers):
            bad += [(c, p) for c in own for p in c.parts]
    return bad


def _planned(kind: str, part: Part, expected: Expected) -> bool:
    """Whether it is a gradient, a parameter or a statistic, by its size."""
    elements = math.prod(int(d) for d in re.findall(r'\d+', part.shape.partition('[')[2]))
    known = elements <= _STATISTIC or elements in expected.parameters
    if expected.slices > 1 and _TILES.search(part.shape):
        known = elements <= 8 * max(expected.parameters)  # sixteen channels take the place of 128
    if kind == 'all-reduce of slices':  # of what a device holds of a sum
        return known or elements <= max(expected.parameters)
    if kind == 'all-reduce' or expected.slices > 1:
        return known and kind in ('all-reduce', 'all-gather', 'reduce-scatter')
    return (expected.scattered and kind in ('all-gather', 'reduce-scatter')
            and elements in expected.parameters)


def layer_of(op_name: str, layers: Iterable[str]) -> str:
    """The layer that an operation belongs to: the one whose path stands in its name; '' if none.

    A name is such as 'jit(step)/transpose(jvp(ConvNet))/block_9/all_to_all'.
    """
    parts = [p for p in re.split(r'[/().]', op_name) if p]
    path = f'/{"/".join(parts)}/'
    fits = [name for name in layers if f'/{name}/' in path]
    return max(fits, key=len, default='')
