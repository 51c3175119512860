"""Experts that differ: `model.moe.kinds` lists kinds of equal experts, which a layer has together.

    c.model.moe.num_experts = 6
    c.model.moe.kinds = ({'count': 4}, {'count': 2, 'divide': 16}, {'expert': 'skip'})

Here four experts copy the block, two are a sixteenth as wide, and one id is a null expert. The
first kind is the reference: it is the dense block of twins.

The ids of true experts are dealt out in equal blocks, as many as the greatest common divisor of the
counts, each with its share of every kind: 0 0 1 0 0 1 above. So each of n devices, where n divides
every count, holds consecutive ids and its share of every kind, and ids mean the same on any mesh.
The ids of null experts follow.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from moe_vision.common.errors import UserError, at_most, positive, unread
from moe_vision.config import typed

SKIP = 'skip'  # an expert that takes no slot and adds nothing


@dataclasses.dataclass(frozen=True)
class Kind:
    """Equal experts among others."""

    expert: str = ''  # a name in EXPERTS, or 'skip'; '' is model.moe.expert with its arguments
    count: int = 1
    hidden: int = 0  # hidden width; 0 is that of model.moe.hidden, or of the block
    divide: int = 1  # divides that width, which is rounded up to what the expert allows
    args: Any = dataclasses.field(default_factory=dict)  # of the expert

    def __post_init__(self) -> None:
        positive(self, 'count', 'divide')
        at_most(self, 1_000_000, 'count', 'hidden', 'divide')
        if self.hidden < 0:
            raise UserError(f'hidden is {self.hidden}; it must not be negative.')
        for name in ('hidden', 'divide'):
            unread(self, name, self.expert != SKIP, f"expert is '{SKIP}'")


def as_kinds(given: Iterable[Any]) -> tuple[Kind, ...]:
    """Kinds from kinds or dictionaries.

    Raises:
      UserError: there is no such field, or a value has the wrong type.
    """
    return tuple(
        typed.build(Kind, k, 'kinds', 'key') if isinstance(k, Mapping) else k for k in given
    )


def true_kinds(kinds: Sequence[Kind]) -> tuple[Kind, ...]:
    """Those that compute something, in their order."""
    return tuple(k for k in kinds if k.expert != SKIP)


def skips(kinds: Sequence[Kind]) -> int:
    """How many null experts there are."""
    return sum(k.count for k in kinds if k.expert == SKIP)


def blocks_of(counts: Sequence[int]) -> int:
    """In how many equal blocks the ids of these kinds are dealt out."""
    return math.gcd(*counts)


def kind_of_id(kinds: Sequence[Kind]) -> tuple[int, ...]:
    """The number of the kind of each true expert, by id; () where all experts are alike."""
    counts = [k.count for k in true_kinds(kinds)]
    blocks = blocks_of(counts)
    return tuple(n for n, c in enumerate(counts) for _ in range(c // blocks)) * blocks
