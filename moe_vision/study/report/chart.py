"""Draws what all figures of a study share: size, panels and intervals.

Figures can be read without colours: series also differ in marker and line, verdicts in marker and
word (`legend`).
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator
from matplotlib.transforms import Affine2D

from moe_vision.report import figure, palette
from moe_vision.report.formats import MINUS, pp
from moe_vision.report.markup import Markup
from moe_vision.study.analysis.findings import Finding
from moe_vision.study.analysis.statistics import Estimate
from moe_vision.study.report.document import clean_all
from moe_vision.study.report.legend import INNER, SEED, WIDTH, Key, draw, in_lines, look, short
from moe_vision.study.report.numbers import finite

Series = Mapping[str, Sequence[str]]  # name of a series -> its comparisons or arms


class Measured(Protocol):
    """A gap or an arm, with the two intervals of its mean."""

    @property
    def outer(self) -> Estimate: ...
    @property
    def inner(self) -> Estimate: ...
    @property
    def diverged(self) -> int | tuple[int, ...]: ...  # runs, or their seeds


class NoData(Exception):
    """There is nothing to draw; the message says why."""


def picture(
    paint: Callable[[list[Axes]], None],
    label: str,
    *,
    rows: int = 1,
    columns: int = 1,
    names: Sequence[str] = (),
    marks: Sequence[Key] = (),
    width: int = WIDTH,
    panel: int = 250,
    left: int = 62,
    right: int = 18,
    between: tuple[int, int] = (62, 30),
    bottom: int = 42,
    top: int = 12,
) -> Markup:
    """Panels under one legend.

    Args:
        paint: draws on the axes, given row by row.
        label: the alternative text.
        rows, columns: number of panels down and across.
        names: series in the legend; number i is drawn as `look(i)` says.
        marks: keys below the series.
        panel: height of the axes of a panel, CSS pixels.
        between: pixels between neighbouring panels, across and down.
    """
    series = [Key(short(name), look(i).line) for i, name in enumerate(names)]
    lines = [*in_lines(series, width), *in_lines(marks, width)]
    top += 20 * len(lines)
    height = top + rows * panel + (rows - 1) * between[1] + bottom
    inner = (width - left - right - (columns - 1) * between[0]) / columns

    def all_panels(whole: Figure) -> None:
        panels = [
            whole.add_axes(
                (
                    (left + c * (inner + between[0])) / width,
                    1 - (top + r * (panel + between[1]) + panel) / height,
                    inner / width,
                    panel / height,
                )
            )
            for r in range(rows)
            for c in range(columns)
        ]
        draw(whole, lines, width, height, left)
        paint(panels)

    return figure.compose(all_panels, clean_all(label), width=width, height=height)


def limits(gaps: Iterable[Finding], margin: float, *, seeds: bool = False) -> tuple[float, float]:
    """The range of gaps (pp) that a picture shows: it holds intervals, zero and margin.

    It holds the gaps of single seeds if the picture draws them (`seeds`). If there are others, gaps
    with a diverged run do not stretch it; they are marked at its edge.
    """
    return around(list(gaps), [0.0, -margin, margin], seeds=seeds)


def around(
    measured: Sequence[Measured], also: Iterable[float] = (), *, seeds: bool = False
) -> tuple[float, float]:
    """The range that holds the intervals of gaps or arms, and other values; see `limits`."""
    known = [m for m in measured if math.isfinite(m.outer.mean)]
    calm = [m for m in known if not m.diverged] or known
    ends = [v for m in calm for v in (m.outer.low, m.outer.high, m.inner.low, m.inner.high)]
    ends += [v for m in calm for v in (m.outer.values if seeds else [m.outer.mean])]
    ends = finite([*ends, *also])
    pad = 0.06 * (max(ends) - min(ends)) or 1.0
    return min(ends) - pad, max(ends) + pad


def ground(axes: Axes, margin: float, span: tuple[float, float], *, across: bool = False) -> None:
    """Zero line and margin band, gaps on the y axis (`across`: on the x axis)."""
    line = axes.axvline if across else axes.axhline
    if math.isfinite(margin):
        (axes.axvspan if across else axes.axhspan)(
            -margin, margin, color=palette.MUTED, alpha=0.13, linewidth=0, zorder=0
        )
    line(0, color=palette.INK, linewidth=1, zorder=1)
    (axes.set_xlim if across else axes.set_ylim)(*span)
    axis = axes.xaxis if across else axes.yaxis
    figure.write_ticks(
        axis, lambda gap: f'{gap:+.3g}'.replace('-', MINUS) if abs(gap) > 1e-9 else '0'
    )


def whisker(
    axes: Axes,
    at: float,
    measured: Measured,
    span: tuple[float, float],
    colour: str,
    marker: str,
    *,
    filled: bool = True,
    across: bool = False,
    seeds: bool = False,
    shift: float = 0.0,
) -> None:
    """One mean with both intervals; if it lies outside, an arrow at the edge with its number.

    Args:
        at: its place on the other axis.
        seeds: whether to draw a dot for each seed beside it.
        shift: pixels by which it is moved along that axis.
    """
    e, inner = measured.outer, measured.inner
    if not math.isfinite(e.mean):
        return
    by = (0, shift) if across else (shift, 0)
    move = axes.transData + Affine2D().translate(*by)
    axes.update_datalim([(e.mean, at) if across else (at, e.mean)])  # moved lines do not
    axes.autoscale_view()

    def plot(values: Sequence[float], **kind: Any) -> None:
        other = [at] * len(values)
        kind = {'transform': move, 'color': colour, **kind}
        axes.plot(*((values, other) if across else (other, values)), **kind)

    if seeds:
        away = shift + 6 if shift >= 0 else shift - 6
        beside = axes.transData + Affine2D().translate(*((0, away) if across else (away, 0)))
        known = [v for v in e.values if span[0] <= v <= span[1]]
        plot(known, **SEED, zorder=2.5, transform=beside)
    if math.isfinite(inner.low) and math.isfinite(inner.high):
        low, high = (min(max(v, span[0]), span[1]) for v in (inner.low, inner.high))
        plot([low, high], **INNER, zorder=2.8)
    if math.isfinite(e.low) and math.isfinite(e.high):
        low, high = (min(max(v, span[0]), span[1]) for v in (e.low, e.high))
        plot([low, high], linewidth=1.5, zorder=3)
        ends = [v for v in (e.low, e.high) if span[0] <= v <= span[1]]
        plot(ends, linestyle='none', marker='|' if across else '_', markersize=7, zorder=3)
    inside = span[0] <= e.mean <= span[1]
    room = 0 if inside else 0.015 * (span[1] - span[0])
    mean = min(max(e.mean, span[0] + room), span[1] - room)
    edge = {(False, False): '^', (False, True): '>'}.get((e.mean < mean, across)) or (
        '<' if across else 'v'
    )
    plot(
        [mean],
        marker=marker if inside else edge,
        markersize=7,
        zorder=4,
        clip_on=inside,
        markerfacecolor=colour if filled else palette.PAPER,
        markeredgewidth=1.5,
    )
    if not inside and not across:
        aside = (8 + shift, 6 if e.mean < mean else -6)
        axes.annotate(
            f'{pp(e.mean)} pp',
            (at, mean),
            xytext=aside,
            textcoords='offset pixels',
            fontsize=9,
            color=colour,
            va='center',
        )


def log_ticks(
    axes: Axes, values: Sequence[float], form: Callable[[float], str], *, many: bool = False
) -> None:
    """A logarithmic x axis with round numbers at its ticks: fewer if the range is wide.

    Args:
        many: whether the axis is long enough for more of them where the range is narrow.
    """
    low, high = min(values), max(values)
    axes.set_xscale('log')
    axes.set_xlim(low / (high / low) ** 0.06 / 1.08, high * (high / low) ** 0.06 * 1.08)
    left, right = axes.get_xlim()
    ratio = right / left
    steps: tuple[float, ...] = (1, 2, 5) if ratio < 300 else (1, 3) if ratio < 3000 else (1,)
    if many and ratio < 6:
        steps = (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8)
    powers = range(math.floor(math.log10(left)), math.ceil(math.log10(right)) + 1)
    ticks = [s * 10.0**n for n in powers for s in steps]
    axes.xaxis.set_major_locator(FixedLocator([t for t in ticks if left <= t <= right]))
    axes.xaxis.set_minor_locator(NullLocator())
    figure.write_ticks(axes.xaxis, form)
