"""Draws the kinds of pictures: lines over steps, shares over steps, bars.

Axis letters: N points in time, E experts.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from moe_vision.report import figure, formats, heatmaps, palette
from moe_vision.report.markup import Markup

POINTS = 240  # most points per curve; more are averaged in equal runs
BANDS = 100  # most points for bands, whose edges hide each other sooner
MANY = 16  # most experts that pictures tell apart by colour


@dataclasses.dataclass(frozen=True)
class Series:
    """One curve: `y[N]` over `x[N]` steps; NaN leaves a gap."""

    name: str
    x: np.ndarray
    y: np.ndarray
    colour: str = palette.ACCENT
    marks: bool = False
    dots: bool = False  # points without a line and without a name at its end

    def __bool__(self) -> bool:
        return bool(np.isfinite(self.y).any())


def thin(x: np.ndarray, y: np.ndarray, points: int = POINTS) -> tuple[np.ndarray, np.ndarray]:
    """At most `points` points: means over equal runs of neighbours, NaN if all are NaN."""
    if len(x) <= points:
        return x, y
    starts = np.linspace(0, len(x), points, endpoint=False).astype(int)
    known = np.isfinite(y)
    number = np.add.reduceat(known.astype(int), starts)
    total = np.add.reduceat(np.where(known, y, 0), starts)
    mean = np.where(number > 0, total / np.maximum(number, 1), np.nan)
    return np.add.reduceat(x, starts) / np.diff(starts, append=len(x)), mean


def lines(
    series: Sequence[Series],
    title: str,
    form: Callable[[float], str] = formats.significant,
    *,
    reference: tuple[float, str] | None = None,
    low: float | None = None,
    high: float | None = None,
    log: bool = False,
) -> Markup:
    """Curves with their names at their ends, and a dashed reference line if one is given."""
    shown = [s for s in series if s]
    lined = [s for s in shown if not s.dots]
    names = [formats.tail(s.name) for s in lined] if len(lined) > 1 else []
    if reference:
        names.append(reference[1])
    ends = [
        f'{s.name or "the value"} from {form(s.y[np.isfinite(s.y)][0])} to '
        f'{form(s.y[np.isfinite(s.y)][-1])}'
        for s in shown
    ]
    shown = [dataclasses.replace(s, x=x, y=y) for s in shown for x, y in [thin(s.x, s.y)]]

    def paint(axes: Axes) -> None:
        for s in shown:
            marks = 'o' if s.marks and len(s.x) <= 40 or np.isfinite(s.y).sum() == 1 else None
            line = 'none' if s.dots else '-'
            axes.plot(
                s.x,
                s.y,
                color=s.colour,
                marker='o' if s.dots else marks,
                markersize=4.2 if s.dots else 3.4,
                linestyle=line,
                zorder=4 if s.dots else 3,
            )
        if reference:
            axes.axhline(reference[0], color=palette.MUTED, linewidth=1, dashes=(4, 3), zorder=2)
        if log:
            axes.set_yscale('log')
            axes.minorticks_off()
        else:
            axes.set_ylim(*_limits(shown, reference, low, high))
            axes.yaxis.set_major_locator(MaxNLocator(4))
        figure.write_ticks(axes.yaxis, form)
        _steps(axes)
        if names:
            _end_labels(axes, shown, reference)

    room = 14 + (round(6.2 * max(map(len, names))) if names else 0)
    return figure.draw(paint, f'{title}: ' + '; '.join(ends) + '.', right=room, left=52)


def _limits(
    series: Sequence[Series],
    reference: tuple[float, str] | None,
    low: float | None,
    high: float | None,
) -> tuple[float, float]:
    values = np.concatenate([s.y[np.isfinite(s.y)] for s in series])
    bottom, top = float(values.min()), float(values.max())
    if reference:
        bottom, top = min(bottom, reference[0]), max(top, reference[0])
    pad = 0.06 * (top - bottom) or 0.05 * abs(top) or 0.05
    bottom, top = bottom - pad, top + pad
    if low is not None:
        bottom = low
    if high is not None and top > high - 0.3 * (high - bottom):
        top = high
    return bottom, max(top, bottom + 1e-9)


def _steps(axes: Axes) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True, steps=[1, 2, 2.5, 5, 10]))
    figure.write_ticks(axes.xaxis, formats.tick)
    axes.set_xlabel('step', loc='right')


def _end_labels(axes: Axes, series: Sequence[Series], reference: tuple[float, str] | None) -> None:
    """Names at the right edge, where each curve ends, moved apart if they would touch."""
    to_axes = axes.transData + axes.transAxes.inverted()
    wanted = []
    lined = [s for s in series if not s.dots]
    for s in lined:
        known = np.isfinite(s.y)
        end = to_axes.transform((s.x[known][-1], s.y[known][-1]))
        wanted.append((end[1], formats.tail(s.name), s.colour))
    if len(lined) == 1:
        wanted = []
    if reference:
        y = to_axes.transform((axes.get_xlim()[0], reference[0]))[1]
        wanted.append((y, reference[1], palette.MUTED))
    wanted.sort(key=lambda w: w[0])
    gap = 12.5 / axes.bbox.height
    places = spread([w[0] for w in wanted], gap)
    for place, (_, name, colour) in zip(places, wanted, strict=True):
        axes.text(
            1.02, place, name, color=colour, transform=axes.transAxes, va='center', fontsize=10.5
        )


def spread(places: Sequence[float], gap: float) -> list[float]:
    """Sorted places in 0..1 moved apart to at least `gap`, staying as near as they can."""
    clusters: list[list[float]] = []
    for place in places:
        clusters.append([place])
        while len(clusters) > 1 and _span(clusters[-1], gap)[0] < _span(clusters[-2], gap)[1] + gap:
            last = clusters.pop()
            clusters[-1] += last
    return [_span(c, gap)[0] + i * gap for c in clusters for i in range(len(c))]


def _span(cluster: list[float], gap: float) -> tuple[float, float]:
    """Lowest and highest place of a cluster centred on its mean, kept above 0 and below 1."""
    length = gap * (len(cluster) - 1)
    start = min(max(sum(cluster) / len(cluster) - length / 2, 0.01), max(1.0 - length, 0.01))
    return start, start + length


def shares(x: np.ndarray, load: np.ndarray, title: str, width: int = figure.WIDTH) -> Markup:
    """Load of each expert over time, `load[N, E]`: bands that fill the whole, or a heat map."""
    experts = load.shape[1]
    whole = load.sum(1, keepdims=True)
    points = POINTS if experts > MANY else BANDS
    x, load = thin(x, load / np.where(whole > 0, whole, np.nan), points)
    if len(x) == 1:
        x, load = np.array([x[0] - 0.5, x[0] + 0.5]), np.repeat(load, 2, 0)
    final = load[np.isfinite(load).all(1)][-1]
    label = f'{title}: at the end, ' + _extremes(final) + '.'
    if experts > MANY:
        return _shares_map(x, load, label, width)

    def paint(axes: Axes) -> None:
        axes.grid(False)
        axes.stackplot(
            x,
            load.T,
            colors=[palette.expert(e) for e in range(experts)],
            edgecolor=palette.PAPER,
            linewidth=0.5,
        )
        for e in range(1, experts):
            axes.axhline(e / experts, color=palette.INK, linewidth=0.6, dashes=(2, 3), alpha=0.6)
        tops = np.cumsum(final)
        for e in range(experts):
            if final[e] >= 0.045:
                axes.text(
                    1.015,
                    tops[e] - final[e] / 2,
                    str(e),
                    transform=axes.transAxes,
                    va='center',
                    fontsize=10,
                    color=palette.INK,
                )
        axes.set(xlim=(x[0], x[-1]), ylim=(0, 1), yticks=[0, 0.5, 1])
        axes.set_yticklabels(['0 %', '50 %', '100 %'])
        _steps(axes)

    return figure.draw(paint, label, right=26, left=44, width=width)


def _shares_map(x: np.ndarray, load: np.ndarray, label: str, width: int) -> Markup:
    grid = np.linspace(x[0], x[-1], min(len(x), POINTS))
    image = load[np.clip(np.searchsorted(x, grid), 0, len(x) - 1)].T
    experts = len(image)

    def paint(axes: Axes) -> None:
        axes.grid(False)
        axes.imshow(
            heatmaps.rgba(image / np.nanmax(image)),
            aspect='auto',
            interpolation='none',
            extent=(x[0], x[-1], experts - 0.5, -0.5),
        )
        axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.set_ylim(experts - 0.5, -0.5)
        axes.set_ylabel('expert')
        _steps(axes)

    return figure.draw(paint, label, left=42, height=230, width=width)


def _extremes(load: np.ndarray) -> str:
    return (
        f'expert {int(load.argmax())} takes most ({formats.percent(load.max())}) and expert '
        f'{int(load.argmin())} least ({formats.percent(load.min())})'
    )


def bars(load: np.ndarray, kept: np.ndarray, title: str, width: int = figure.WIDTH) -> Markup:
    """Load per expert: `load[E]` as a pale bar; `kept[E]`, which found room, as a full one."""
    experts = len(load)

    def paint(axes: Axes) -> None:
        if experts <= MANY:
            colours = [palette.expert(e) for e in range(experts)]
            axes.bar(range(experts), load, color=colours, alpha=0.32, width=0.78)
            axes.bar(range(experts), kept, color=colours, width=0.78)
            axes.set_xticks(range(experts))
        else:
            edges = np.arange(experts + 1) - 0.5
            axes.stairs(load, edges, fill=True, color=palette.ACCENT, alpha=0.32)
            axes.stairs(kept, edges, fill=True, color=palette.ACCENT)
        axes.axhline(1 / experts, color=palette.INK, linewidth=1, dashes=(4, 3))
        axes.text(
            1.015,
            1 / experts,
            'even',
            transform=axes.get_yaxis_transform(),
            va='center',
            fontsize=10,
            color=palette.MUTED,
        )
        axes.set(xlim=(-0.6, experts - 0.4), ylim=(0, 1.08 * max(np.nanmax(load), 1.5 / experts)))
        axes.yaxis.set_major_locator(MaxNLocator(4))
        figure.write_ticks(axes.yaxis, lambda share: f'{100 * share:g} %')
        axes.set_xlabel('expert', loc='right')

    return figure.draw(
        paint, f'{title}: ' + _extremes(np.nan_to_num(load)) + '.', right=40, width=width
    )
