"""Colours and number formats: one look for the whole page, in light and in dark.

Experts keep one colour everywhere (curves, bars, chips, overlays). The ten base colours are
Petroff's sequence for people with and without colour-vision deficiency (arXiv:2107.02270), the one
Matplotlib calls `petroff10`; further experts take lighter and darker shades of it, and every mark
also carries the expert's number. Page colours are CSS variables, so that an inlined figure follows
the reader's colour scheme; `THEMED` maps stand-in colours, which Matplotlib can draw, to them.
"""

import colorsys
import math
from collections.abc import Sequence

_BASE = ('#3f90da', '#ffa90e', '#bd1f01', '#832db6', '#94a4a2',
         '#e76300', '#a96b59', '#92dadd', '#b9ac70', '#717581')  # fmt: skip

INK, MUTED, GRID, PAPER = '#010101', '#020202', '#030303', '#040404'
ACCENT, WARM = '#050505', '#060606'
THEMED = {INK: 'var(--ink)', MUTED: 'var(--muted)', GRID: 'var(--grid)', PAPER: 'var(--paper)',
          ACCENT: 'var(--accent)', WARM: 'var(--warm)'}  # fmt: skip
HEAT = (47 / 255, 111 / 255, 186 / 255)  # full scale of heat maps; less is more transparent
HEAT_WARM = (214 / 255, 96 / 255, 32 / 255)  # the same for what should not be there
NO_EXPERT = '#9a9a9a'  # null experts and unknown ids


def expert(index: int) -> str:
    """The colour of an expert, `#rrggbb`."""
    red, green, blue = (int(_BASE[index % 10][i : i + 2], 16) / 255 for i in (1, 3, 5))
    hue, light, saturation = colorsys.rgb_to_hls(red, green, blue)
    light = (light, light + (1 - light) * 0.45, light * 0.62)[index // 10 % 3]
    rgb = colorsys.hls_to_rgb(hue, light, saturation)
    return '#' + ''.join(f'{round(255 * v):02x}' for v in rgb)


def ink_on(colour: str) -> str:
    """Black or white, whichever reads better on `#rrggbb` (WCAG relative luminance)."""
    channels = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return '#000' if 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] > 0.19 else '#fff'


def depth(index: int, count: int) -> str:
    """The colour of a layer: from teal (first) to magenta (last), readable on light and dark."""
    where = index / max(count - 1, 1)
    rgb = colorsys.hls_to_rgb((0.50 + 0.38 * where) % 1, 0.46 + 0.08 * math.sin(3 * where), 0.62)
    return '#' + ''.join(f'{round(255 * v):02x}' for v in rgb)


def percent(value: float, digits: int = 1) -> str:
    """0.123 as `12.3 %`; an en dash where there is no number."""
    return f'{100 * value:.{digits}f} %' if math.isfinite(value) else '–'


def axis_percent(value: float) -> str:
    """A share on an axis: 0.5 as `50 %`."""
    return f'{100 * value:.3g} %'


def short(value: float) -> str:
    """A size in words' length: 1,234 / 56.7 k / 8.90 M / 1.23 G / 4.5 T."""
    if not math.isfinite(value):
        return '–'
    for factor, unit in ((1e12, ' T'), (1e9, ' G'), (1e6, ' M'), (1e4, ' k')):
        if abs(value) >= factor:
            scaled = value / (1e3 if unit == ' k' else factor)
            return f'{scaled:.{2 if abs(scaled) < 10 else 1}f}{unit}'
    return count(value)


def count(value: float) -> str:
    """A number of things: whole if it is whole, else one decimal."""
    if not math.isfinite(value):
        return '–'
    return f'{value:,.0f}' if abs(value - round(value)) < 1e-6 else f'{value:,.1f}'


def tick(value: float) -> str:
    """A number on an axis, as short as it can be: 800, 2.5 k, 1.2 M."""
    for factor, unit in ((1e9, ' G'), (1e6, ' M'), (1e3, ' k')):
        if abs(value) >= factor:
            return f'{value / factor:.3g}{unit}'
    return f'{value:.3g}'


def plain(value: float, digits: int = 3) -> str:
    """A number with so many significant digits, never in powers of ten between 1e-3 and 1e6."""
    return f'{value:,.{digits}g}' if math.isfinite(value) else '–'


def tail(name: str, length: int = 16) -> str:
    """The end of a long name, which is where layers differ."""
    return name if len(name) <= length else '…' + name[1 - length :]


def apart(names: Sequence[str]) -> dict[str, str]:
    """Paths without the parts that all of them share at either end.

    >>> apart(['encoder/block_1/moe', 'encoder/block_3/moe'])
    {'encoder/block_1/moe': 'block_1', 'encoder/block_3/moe': 'block_3'}
    """
    parts = [name.split('/') for name in names]
    shortest = min(map(len, parts), default=0)
    start, end = 0, 0
    while start < shortest - 1 and len({p[start] for p in parts}) == 1:
        start += 1
    while start + end < shortest - 1 and len({p[-1 - end] for p in parts}) == 1:
        end += 1
    return {n: '/'.join(p[start : len(p) - end]) for n, p in zip(names, parts, strict=True)}
