"""Draws the legend of a study's figures, and says how to read their intervals.

All intervals of a study have the same two levels (`Analysis.levels`): an outer one, at which those
of all primary comparisons hold together, and an inner one, drawn as a thick bar.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from moe_vision.report import palette
from moe_vision.report.formats import share
from moe_vision.study.analysis.analyse import Analysis
from moe_vision.study.analysis.findings import Finding
from moe_vision.study.analysis.verdicts import registered
from moe_vision.study.report.document import clean_all

WIDTH = 760  # width of a picture, CSS pixels
LETTER = 6.4  # width of a letter in the legend, CSS pixels; a little too wide, to be safe
_MARKERS = 'osD^vPX*'
_DASHES: tuple[tuple[float, ...], ...] = ((), (5, 2), (1.5, 1.5), (6, 2, 1.5, 2))


@dataclasses.dataclass(frozen=True)
class Key:
    """What a mark means, beside the legend of series; `style` is that of a `Line2D`."""

    label: str
    style: Mapping[str, Any]


INNER: Mapping[str, Any] = {'linewidth': 5.0, 'alpha': 0.35, 'solid_capstyle': 'butt'}
SEED: Mapping[str, Any] = {'linestyle': 'none', 'marker': 'o', 'markersize': 2.8, 'alpha': 0.55}
_MEAN: Mapping[str, Any] = {'linestyle': 'none', 'marker': 'o', 'markersize': 7}


@dataclasses.dataclass(frozen=True)
class Look:
    """How a series is drawn."""

    colour: str
    marker: str
    dashes: tuple[float, ...]

    @property
    def line(self) -> dict[str, Any]:
        """Its line with markers, as `Line2D` takes it."""
        return {
            'color': self.colour,
            'marker': self.marker,
            'markersize': 5,
            'linewidth': 1.6,
            'dashes': self.dashes or (None, None),
        }


def look(index: int) -> Look:
    """How series number `index` is drawn: eight colours and markers, then they meet otherwise."""
    turn = index // 8 % 4
    return Look(palette.SERIES[index % 8], _MARKERS[(index + 3 * turn) % 8], _DASHES[turn])


def short(name: str, length: int = 30) -> str:
    """The name, without its middle if it is too long."""
    name = clean_all(name)
    half = (length - 1) // 2
    return name if len(name) <= length else f'{name[: length - 1 - half]}…{name[-half:]}'


def legend_lines(names: Sequence[str], width: float = WIDTH) -> list[list[str]]:
    """The names, cut into lines that fit the width."""
    lines: list[list[str]] = [[]]
    used = 0.0
    for name in names:
        need = 26 + LETTER * len(name) + 16
        if lines[-1] and used + need > width - 20:
            lines.append([])
            used = 0.0
        lines[-1].append(name)
        used += need
    return [line for line in lines if line]


def keys(analysis: Analysis, *, seeds: bool = False, gaps: Iterable[Finding] = ()) -> list[Key]:
    """What the marks mean: both intervals; dots of seeds; the margin and what is hollow (gaps)."""
    (outer, inner), (_, together) = analysis.levels, _family(analysis)
    also = '' if together == share(outer, 4) else f': {together} together'
    whisker = {'linewidth': 1.5, 'marker': '|', 'markersize': 7}
    found = [
        Key(f'{share(outer, 4)} interval{also}', whisker),
        Key(f'{share(inner, 4)} interval', INNER),
    ]
    if seeds:
        found.append(Key('one seed', SEED))
    if confirms := {g.confirms for g in gaps}:
        margin = {'color': palette.MUTED, 'linewidth': 10, 'alpha': 0.2, 'solid_capstyle': 'butt'}
        found.append(Key('margin of equivalence', margin))
    if True in confirms:
        found.append(Key('primary', _MEAN))
    if False in confirms:
        found.append(Key('exploratory', {**_MEAN, 'markerfacecolor': palette.PAPER}))
    return found


def intervals(analysis: Analysis, what: str = 'gap') -> str:
    """How to read the two intervals of a picture of gaps, or of another mean over seeds."""
    (outer, inner), (whose, together) = analysis.levels, _family(analysis)
    why = f', the level at which those of {whose} hold together with {together}' if whose else ''
    return (
        f'Whiskers: {share(outer, 4)} t-interval of the mean {what} over seeds{why}. Thick bars: '
        f'{share(inner, 4)}. '
    )


def _family(analysis: Analysis) -> tuple[str, str]:
    """Whose intervals hold together at the outer level ('' for a single one), and with what."""
    comparisons = registered(analysis.study).values()
    primary = sum(bool(c.get('primary')) for c in comparisons)
    family = primary or len(comparisons)
    kind = 'primary comparisons' if primary else 'comparisons'
    whose = f'all {family} {kind} of the study' if family > 1 else ''
    return whose, share(1 - (1 - analysis.levels[0]) * max(family, 1), 4)


def in_lines(entries: Sequence[Key], width: float) -> list[list[Key]]:
    """The keys, cut into lines that fit the width."""
    left = iter(entries)
    return [[next(left) for _ in line] for line in legend_lines([e.label for e in entries], width)]


def draw(whole: Figure, lines: list[list[Key]], width: int, height: int, left: int) -> None:
    """Draws the lines of keys at the top of a picture of this size, in CSS pixels."""
    for i, line in enumerate(lines):
        x, y = min(left, 20.0), 1 - (12 + 20 * i) / height
        for key in line:
            ends = [x + 10] if key.style.get('linestyle') == 'none' else [x, x + 20]
            style = {'color': palette.INK, **key.style}
            whole.add_artist(Line2D([at / width for at in ends], [y] * len(ends), **style))
            words: dict[str, Any] = {'va': 'center', 'fontsize': 10.5, 'color': palette.INK}
            whole.text((x + 26) / width, y, key.label, **words)
            x += 26 + LETTER * len(key.label) + 16
