"""Colours: one look for every page and figure, in light and in dark.

Experts keep one colour everywhere (curves, bars, chips, overlays). The ten base colours are
Petroff's sequence for people with and without colour-vision deficiency (arXiv:2107.02270), the one
Matplotlib calls `petroff10`; further experts take lighter and darker shades of it, and every mark
also carries the expert's number. Page colours are CSS variables, so that an inlined figure follows
the reader's colour scheme; `THEMED` maps stand-in colours, which Matplotlib can draw, to them.
"""

import colorsys
import math

_BASE = (
    '#3f90da',
    '#ffa90e',
    '#bd1f01',
    '#832db6',
    '#94a4a2',
    '#e76300',
    '#a96b59',
    '#92dadd',
    '#b9ac70',
    '#717581',
)

INK, MUTED, GRID, PAPER = '#010101', '#020202', '#030303', '#040404'
ACCENT, WARM = '#050505', '#060606'
THEMED = {
    INK: 'var(--ink)',
    MUTED: 'var(--muted)',
    GRID: 'var(--grid)',
    PAPER: 'var(--paper)',
    ACCENT: 'var(--accent)',
    WARM: 'var(--warm)',
}
HEAT = (47 / 255, 111 / 255, 186 / 255)  # of a full cell; others are more transparent
HEAT_WARM = (214 / 255, 96 / 255, 32 / 255)  # the same for what should not be there
SERIES = (ACCENT, WARM, '#2a9d74', '#a35bd0', '#b8961e', '#d1477d', '#5f8f9b', '#8a6d5a')
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
