"""Which collectives a training step may have, from its config, and which of those found are not.

Expected are the exchanges of routed layers as `layers.exchange` counts them, and all-reduces of
gradients and of statistics. Nothing else: a gather of tokens or of expert weights, or a tensor
that is neither a gradient nor small, means that arrays lie on the devices otherwise than planned.
"""

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Collection, Iterable

import jax

from moe_vision.layers.exchange import expected_all_to_alls
from moe_vision.pod.hlo import Collective, Part
from moe_vision.pod.memory import shard_shape
from moe_vision.setup import Setup

_STATISTIC = 2**16  # elements; sums by channel, expert or class are smaller


@dataclasses.dataclass(frozen=True)
class Expected:
    exchanges: Counter[str]  # by kind, in a step
    gradients: frozenset[int]  # elements of each parameter, as a device holds it


def of_setup(setup: Setup) -> Expected:
    config = setup.config
    routed = len(setup.cost.capacities)
    once = expected_all_to_alls(dict(setup.mesh.shape), routed)
    return Expected(Counter({'all-to-all': once * config.train.micro_batches} if once else {}),
                    frozenset(math.prod(shard_shape(x)) for x in jax.tree.leaves(
                        setup.abstract.params)))


def unexpected(found: Iterable[Collective], expected: Expected,
               layers: Collection[str]) -> list[tuple[Collective, Part]]:
    """Each tensor that should not travel, or not that often. Of exchanges, those of a layer that
    has more than its share."""
    bad: list[tuple[Collective, Part]] = []
    exchanges: dict[str, list[Collective]] = {}
    for c in found:
        if c.kind == 'all-reduce':
            bad += [(c, p) for p in c.parts if not _reduced(p, expected)]
        elif c.kind in expected.exchanges:
            exchanges.setdefault(c.kind, []).append(c)
        else:
            bad += [(c, p) for p in c.parts]
    for kind, those in exchanges.items():
        if sum(c.times or 1 for c in those) <= expected.exchanges[kind]:
            continue
        share = expected.exchanges[kind] / max(len(layers), 1)
        by_layer: dict[str, list[Collective]] = {}
        for c in those:
            by_layer.setdefault(layer_of(c.op_name, layers), []).append(c)
        bad += [(c, p) for name, own in by_layer.items() if name not in layers or sum(
            c.times or 1 for c in own) > share for c in own for p in c.parts]
    return bad


def _reduced(part: Part, expected: Expected) -> bool:
    """Whether it is a gradient or a statistic, by its size."""
    dims = part.shape.partition('[')[2].rstrip(']')
    elements = math.prod(int(d) for d in dims.split(',') if d)
    return elements <= _STATISTIC or elements in expected.gradients


def layer_of(op_name: str, layers: Iterable[str]) -> str:
    """The layer that an operation belongs to: the one whose path stands in its name; '' if none.

    A name is such as 'jit(step)/transpose(jvp(ConvNet))/block_9/all_to_all'.
    """
    parts = [p for p in re.split(r'[/().]', op_name) if p]
    path = f'/{"/".join(parts)}/'
    fits = [name for name in layers if f'/{name}/' in path]
    return max(fits, key=len, default='')
