"""Draws gaps of several studies: side by side, and against what networks learned by heart."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, MaxNLocator

from moe_vision.report import formats, palette
from moe_vision.report.markup import Markup
from moe_vision.study.analysis import statistics
from moe_vision.study.analysis.findings import Gap
from moe_vision.study.analysis.statistics import Estimate
from moe_vision.study.report import chart
from moe_vision.study.report.legend import Key, look, short

LEVEL = 0.95
HEAD = (
    *('setting', 'study', 'comparison', 'series', 'gap_pp', 'low_pp', 'high_pp', 'level'),
    *('seeds', 'diverged', 'cost', 'fit_arm', 'training_less_validation_pp'),
)
_COLUMNS = {'gap, pp, and 95 % interval': 10, 'FLOPs': 158, 'seeds': 208}  # pixels from the axes
_LINE = 19  # pixels from one gap of a setting to the next


@dataclasses.dataclass(frozen=True)
class Point:
    """The gap of one setting in one series."""

    setting: str
    study: str
    series: int
    gap: Gap
    fit_arm: str
    fit: float  # accuracy of that arm on training images less that on validation, pp

    @property
    def outer(self) -> Estimate:
        return statistics.estimate(self.gap.estimate.values, LEVEL)

    @property
    def inner(self) -> Estimate:
        return statistics.estimate((), LEVEL)  # one interval is enough here

    @property
    def diverged(self) -> int:
        return self.gap.diverged

    def row(self, names: Sequence[str]) -> list[Any]:
        """The numbers, in the order of the file's head."""
        e = self.outer
        return [
            self.setting,
            self.study,
            self.gap.name,
            names[self.series],
            *(e.mean, e.low, e.high, LEVEL, e.n, self.diverged, self.gap.cost),
            *(self.fit_arm, self.fit),
        ]


def _keys(names: Sequence[str], used: set[int]) -> list[Key]:
    line = {'linewidth': 1.5, 'markersize': 7}
    return [
        Key(short(name, 90), {**look(i).line, **line, 'dashes': (None, None)})
        for i, name in enumerate(names)
        if i in used
    ]


def _told(points: Sequence[Point], names: Sequence[str]) -> str:
    """The alternative text."""
    return '; '.join(
        f'{p.setting}, {names[p.series]}: {formats.pp(p.outer.mean)} pp '
        f'({formats.interval(p.outer.low, p.outer.high)})'
        for p in points
    )


def gaps(points: Sequence[Point], names: Sequence[str]) -> Markup:
    """Every setting with its gaps below each other, and their numbers on the right."""
    span = chart.around(points, [0.0])
    places: list[float] = []
    for before, p in zip([None, *points], points, strict=False):
        new = before is None or before.setting != p.setting
        places.append((places[-1] if places else 0.0) + (1.7 if new and places else 1.0))
    middles = {
        s: float(np.mean([y for y, p in zip(places, points, strict=True) if p.setting == s]))
        for s in dict.fromkeys(p.setting for p in points)
    }

    def paint(panels: list[Axes]) -> None:
        axes = panels[0]
        axes.grid(False, axis='y')
        axes.grid(True, axis='x')
        chart.ground(axes, math.nan, span, across=True)
        lines = [(0.0, palette.MUTED, tuple(_COLUMNS))]
        for y, p in zip(places, points, strict=True):
            style, e = look(p.series), p.outer
            chart.whisker(axes, y, p, span, style.colour, style.marker, across=True)
            gap = f'{formats.pp(e.mean)} [{formats.pp(e.low)}, {formats.pp(e.high)}]'
            lines.append((y, palette.INK, (gap, formats.times(p.gap.cost), str(e.n))))
        for y, colour, words in lines:
            for x, word in zip(_COLUMNS.values(), words, strict=True):
                axes.annotate(
                    word,
                    (1, y),
                    xycoords=axes.get_yaxis_transform(),
                    xytext=(x, 0),
                    textcoords='offset pixels',
                    va='center',
                    fontsize=10,
                    color=colour,
                )
        axes.set_ylim(places[-1] + 1, -0.3)
        axes.yaxis.set_major_locator(FixedLocator(list(middles.values())))
        axes.set_yticklabels([short(s, 40) for s in middles])
        axes.xaxis.set_major_locator(MaxNLocator(6))
        axes.set_xlabel('gap, pp: right of zero, experts are better')

    left = 24 + round(6.1 * max(len(short(s, 40)) for s in middles))
    return chart.picture(
        paint,
        'Gaps by setting: ' + _told(points, names),
        marks=_keys(names, {p.series for p in points}),
        panel=max(60, round(_LINE * (places[-1] + 1.3))),
        left=left,
        right=250,
        width=left + 250 + 400,
    )


def against_fit(points: Sequence[Point], names: Sequence[str]) -> Markup:
    """The gaps against what the dense network learned by heart."""
    known = [p for p in points if math.isfinite(p.fit)]
    span = chart.around(known, [0.0])
    used = sorted({p.series for p in known})

    def paint(panels: list[Axes]) -> None:
        axes = panels[0]
        chart.ground(axes, math.nan, span)
        for p in known:
            style, shift = look(p.series), 7.0 * (used.index(p.series) - (len(used) - 1) / 2)
            chart.whisker(axes, p.fit, p, span, style.colour, style.marker, shift=shift)
        tops = {
            p.setting: max(known, key=lambda q: (q.setting == p.setting, q.outer.high))
            for p in known
        }
        for setting, p in tops.items():
            axes.annotate(
                short(setting, 24),
                (p.fit, p.outer.high if math.isfinite(p.outer.high) else p.outer.mean),
                xytext=(0, 9),
                textcoords='offset pixels',
                ha='center',
                fontsize=9,
                color=palette.INK,
            )
        low, high = min(p.fit for p in known), max(p.fit for p in known)
        beside = max(0.1, (high - low) / 4)  # room for the names
        axes.set_xlim(low - beside, high + beside)
        axes.set_xlabel('dense network: accuracy on training less validation images, pp')
        axes.set_ylabel('gap, pp')

    return chart.picture(
        paint,
        'Gaps against what was learned by heart: ' + _told(known, names),
        marks=_keys(names, set(used)),
        panel=300,
    )
