"""Published numbers of TPU chips, and the slices that are made of them.

Source: Google Cloud's TPU documentation, its pages v4, v5e, v5p, v6e and tpu7x as of 2026: peak
bfloat16 compute, capacity and bandwidth of the memory, and half of the "bidirectional inter-chip
interconnect bandwidth", which is what a chip can send over all its links together. For v4, whose
page does not give the latter: six links of 50 GB/s in each direction (Jouppi et al., "TPU v4",
ISCA 2023). Where the page says GB of a memory, GiB is meant.
"""

import dataclasses
import math
import re

from moe_vision.errors import UserError, nearest

_GIB = 2**30
_SQUARES = ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))
_SMALL_CUBES = ((1, 2, 2), (2, 2, 2), (2, 2, 4), (2, 4, 4))  # below a cube of 4x4x4


@dataclasses.dataclass(frozen=True)
class Chip:
    """Of one chip; `per_device` gives the share of each device that jax sees in it."""

    flops: float  # bfloat16 FLOP/s at its peak
    hbm: int  # bytes
    hbm_bandwidth: float  # bytes/s
    ici_bandwidth: float  # bytes/s it sends, over all links
    axes: int  # of its torus
    most: int  # chips of the largest slice
    devices: int = 1

    def per_device(self) -> 'Chip':
        n = self.devices
        return dataclasses.replace(
            self, flops=self.flops / n, hbm=self.hbm // n, hbm_bandwidth=self.hbm_bandwidth / n,
            ici_bandwidth=self.ici_bandwidth / n, devices=1)


CHIPS = {
    'v4': Chip(275e12, 32 * _GIB, 1200e9, 300e9, axes=3, most=4096),
    'v5e': Chip(197e12, 16 * _GIB, 819e9, 200e9, axes=2, most=256),
    'v5p': Chip(459e12, 95 * _GIB, 2765e9, 600e9, axes=3, most=6144),
    'v6e': Chip(918e12, 32 * _GIB, 1638e9, 400e9, axes=2, most=256),
    'tpu7x': Chip(2307e12, 192 * _GIB, 7380e9, 600e9, axes=3, most=9216, devices=2),
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """A slice: so many chips of a kind along each axis of the torus."""

    chip: str  # a name in CHIPS
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f'{self.chip}:{"x".join(map(str, self.shape))}'

    @property
    def chips(self) -> int:
        return math.prod(self.shape)


def parse(name: str) -> Topology:
    """The slice called `name`, such as 'v5e:16x16' or 'v4:8x8x4'.

    Raises:
      UserError: there is no such chip, or no such slice of it; lists what there is.
    """
    match = re.fullmatch(r'(\w+):(\d+(?:x\d+)*)', name.strip().lower())
    if match and match[1] in CHIPS:
        shape = tuple(int(n) for n in match[2].split('x'))
        if _exists(CHIPS[match[1]], shape):
            return Topology(match[1], shape)
    raise UserError(f"unknown topology '{name}'.{nearest(name, _names())} Known: {_known()}.")


def _exists(chip: Chip, shape: tuple[int, ...]) -> bool:
    if len(shape) != chip.axes or math.prod(shape) > chip.most:
        return False
    if chip.axes == 2:
        return tuple(sorted(shape)) in _SQUARES
    return tuple(sorted(shape)) in _SMALL_CUBES or all(n and n % 4 == 0 for n in shape)


def _names() -> list[str]:
    """Names to compare a misspelt one with."""
    cubes = [tuple(reversed(s)) for s in _SMALL_CUBES]
    cubes += [(a, b, c) for c in (4, 8, 16) for b in (4, 8, 16) for a in (4, 8, 16)]
    return [str(Topology(n, s)) for n, c in CHIPS.items()
            for s in (_SQUARES if c.axes == 2 else cubes)]


def _known() -> str:
    flat = [n for n, c in CHIPS.items() if c.axes == 2]
    deep = [n for n, c in CHIPS.items() if c.axes == 3]
    squares = ', '.join('x'.join(map(str, s)) for s in _SQUARES)
    return (f'{" and ".join(flat)} as {squares}; {", ".join(deep)} as 2x2x1, 2x2x2, 2x2x4, 2x4x4 '
            f'or three multiples of 4 ({", ".join(f"{n} to {CHIPS[n].most} chips" for n in deep)})')
