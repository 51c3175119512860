"""Says which collectives a training step should have, from its config, and finds the others.

A step should have:
- the exchanges of routed layers, as `layers.exchange` counts them;
- all-reduces of gradients and statistics;
- reduce-scatters of gradients and all-gathers of parameters, if the optimizer's state is sharded
  over the data axis;
- with several slices, for each all-reduce a reduce-scatter in the slice, an all-reduce between
  slices and an all-gather in the slice.

Any other, such as a gather of tokens or of expert weights, or a large tensor that is not a
gradient, shows that arrays are not sharded as planned.
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
from moe_vision.training import traffic
from moe_vision.training.setup import Setup

_TILES = re.compile(r'\[\d+,\d+,128\]$')  # sums between slices are flattened with their padding
_STATISTIC = 2**16  # elements; statistics by channel, expert or class have fewer


@dataclasses.dataclass(frozen=True)
class Expected:
    """What one step should exchange.

    Attributes:
      exchanges: number of exchanges of routed layers, by kind.
      sent: bytes that a device sends in them.
      parameters: elements in a device's shard of each parameter, which is also the size of its
        gradient, and in its shard of the optimizer's state.
      scattered: the optimizer's state is sharded over the data axis.
      slices: number of slices; they exchange only sums.
    """

    exchanges: Counter[str]
    sent: int
    parameters: frozenset[int]
    scattered: bool = False
    slices: int = 1


def of_setup(setup: Setup, slices: int = 1) -> Expected:
    """What the step of a set-up should exchange."""
    config, shape = setup.config, dict(setup.mesh.shape)
    exchanges: Counter[str] = Counter()
    layers = traffic.of_layers(config, setup.cost, shape)
    for layer in layers.values():
        for kind, n in exchange.expected(shape, layer.across, remat=config.model.remat).items():
            exchanges[kind] += n * config.train.micro_batches
    arrays = jax.tree.leaves((setup.abstract.params, setup.abstract.opt_state))
    return Expected(
        exchanges,
        sum(x.exchanged for x in layers.values()),
        frozenset(math.prod(shard_shape(x)) for x in arrays),
        config.mesh.shard_optimizer,
        slices,
    )


def exchanges(
    collectives: Iterable[Collective], expected: Expected, layers: Collection[str]
) -> list[Collective]:
    """Collectives that exchange features in the routed `layers`.

    Leaves out those that carry only a token's other values (integers, flags) and parts of sums over
    slices.
    """
    return [
        c
        for c in collectives
        if c.kind in expected.exchanges
        and layer_of(c.origin, layers)
        and any('f' in p.shape.partition('[')[0] for p in c.parts)
        and not (expected.slices > 1 and all(_planned(c.kind, p, expected) for p in c.parts))
    ]


def unexpected(
    collectives: Iterable[Collective], expected: Expected, layers: Collection[str]
) -> list[tuple[Collective, Part]]:
    """Lists each tensor that should not be exchanged, or not that often.

    If there are too many exchanges, lists those of each routed layer that has more than its share.

    Args:
      layers: the routed layers.
    """
    bad: list[tuple[Collective, Part]] = []
    counted: dict[tuple[str, str], list[Collective]] = defaultdict(list)
    for c in collectives:
        layer = layer_of(c.origin, layers)
        if exchanges([c], expected, layers):
            counted[c.kind, layer].append(c)
        elif expected.slices > 1 or not (layer and c.kind in expected.exchanges):
            # a routed layer's other collectives of these kinds carry a token's other values
            bad += [(c, p) for p in c.parts if not _planned(c.kind, p, expected)]
    for (kind, _), own in counted.items():
        if sum(c.runs for c in own) > expected.exchanges[kind] / len(layers):
            bad += [(c, p) for c in own for p in c.parts]
    return bad


def _planned(kind: str, part: Part, expected: Expected) -> bool:
    """Whether a tensor has the size of a gradient, a parameter or a statistic."""
    elements = math.prod(int(d) for d in re.findall(r'\d+', part.shape.partition('[')[2]))
    known = elements <= _STATISTIC or elements in expected.parameters
    if expected.slices > 1 and _TILES.search(part.shape):
        known = elements <= 8 * max(expected.parameters)  # padding 16 channels to 128
    if kind == 'all-reduce of slices':  # each device reduces its part of a sum
        return known or elements <= max(expected.parameters)
    if kind == 'all-reduce' or expected.slices > 1:
        return known and kind in ('all-reduce', 'all-gather', 'reduce-scatter')
    return (
        expected.scattered
        and kind in ('all-gather', 'reduce-scatter')
        and elements in expected.parameters
    )


def layer_of(op_name: str, layers: Iterable[str]) -> str:
    """The layer whose path is in an operation's name, the deepest if there are several, or ''.

    A name is like 'jit(step)/transpose(jvp(ConvNet))/block_9/all_to_all'.
    """
    parts = [p for p in re.split(r'[/().]', op_name) if p]
    path = f'/{"/".join(parts)}/'
    matches = [name for name in layers if f'/{name}/' in path]
    return max(matches, key=len, default='')
