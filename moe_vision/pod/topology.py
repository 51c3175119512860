"""Reads the names of TPU slices, such as v5e:16x16, and knows which slices exist."""

import dataclasses
import math
import re

from moe_vision.common.chips import TPUS, Chip
from moe_vision.common.errors import UserError, nearest

_SQUARES = ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))
_SMALL_CUBES = ((1, 2, 2), (2, 2, 2), (2, 2, 4), (2, 4, 4))  # smaller than a cube of 4x4x4


@dataclasses.dataclass(frozen=True)
class Topology:
    """One or more equal slices; `shape` counts the chips along each axis of the torus."""

    chip: str  # a name in TPUS
    shape: tuple[int, ...]
    slices: int = 1

    def __str__(self) -> str:
        return f'{self.slices} × {self.slice}' if self.slices > 1 else self.slice

    @property
    def slice(self) -> str:
        return f'{self.chip}:{"x".join(map(str, self.shape))}'

    @property
    def chips(self) -> int:
        """Chips in one slice."""
        return math.prod(self.shape)


def parse(name: str) -> Topology:
    """The slice called `name`, such as 'v5e:16x16' or 'v4:8x8x4'.

    Raises:
      UserError: there is no such chip, or no such slice of it.
    """
    match = re.fullmatch(r'(\w+):(\d+(?:x\d+)*)', name.strip().lower())
    if match and match[1] in TPUS:
        shape = tuple(int(n) for n in match[2].split('x'))
        if _exists(TPUS[match[1]], shape):
            return Topology(match[1], shape)
    raise UserError(f"unknown topology '{name}'.{nearest(name, _names())} Known: {_known()}.")


def _exists(chip: Chip, shape: tuple[int, ...]) -> bool:
    if len(shape) != chip.axes or math.prod(shape) > chip.most:
        return False
    if chip.axes == 2:
        return tuple(sorted(shape)) in _SQUARES
    return tuple(sorted(shape)) in _SMALL_CUBES or all(n and n % 4 == 0 for n in shape)


def _names() -> list[str]:
    """Names that a misspelt one may mean."""
    cubes = [tuple(reversed(s)) for s in _SMALL_CUBES]
    cubes += [(a, b, c) for c in (4, 8, 16) for b in (4, 8, 16) for a in (4, 8, 16)]
    return [
        str(Topology(n, s)) for n, c in TPUS.items() for s in (_SQUARES if c.axes == 2 else cubes)
    ]


def _known() -> str:
    flat = [n for n, c in TPUS.items() if c.axes == 2]
    deep = [n for n, c in TPUS.items() if c.axes == 3]
    squares = ', '.join('x'.join(map(str, s)) for s in _SQUARES)
    return (
        f'{" and ".join(flat)} as {squares}; {", ".join(deep)} as 2x2x1, 2x2x2, 2x2x4, 2x4x4 '
        f'or three multiples of 4 ({", ".join(f"{n} to {TPUS[n].most} chips" for n in deep)})'
    )
