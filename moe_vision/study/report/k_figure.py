"""Draws an ablation over k, with one line per seed."""

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator

from moe_vision.common.json_values import number
from moe_vision.report import formats, palette
from moe_vision.study.analysis.analyse import Analysis
from moe_vision.study.analysis.findings import Gap
from moe_vision.study.report import chart, gap_figures, legend
from moe_vision.study.report.chart import Series
from moe_vision.study.report.document import Picture
from moe_vision.study.report.legend import short


def k_ablation(analysis: Analysis, name: str, title: str, series: Series) -> Picture:
    """Gaps in order of k: one thin line per seed, the mean with its interval; a panel each."""
    panels_of = gap_figures.gaps_of(analysis, series)
    margin = number(analysis.study.get('margin'))
    every = [g for gaps in panels_of.values() for g in gaps]
    span = chart.limits(every, margin, seeds=True)
    columns = min(3 if max(map(len, panels_of.values())) < 5 else 2, len(panels_of))
    rows = -(-len(panels_of) // columns)

    def paint(panels: list[Axes]) -> None:
        for axes, (head, gaps) in zip(panels, panels_of.items(), strict=False):
            _k_panel(analysis, axes, gaps, margin, span)
            if len(panels_of) > 1:
                axes.set_title(short(head, 34))
        for axes in panels[len(panels_of) :]:
            axes.set_visible(False)

    label = f'{title}: ' + '; '.join(f'{g.name} {formats.pp(g.estimate.mean)} pp' for g in every)
    low = max(_slope(analysis, gaps)[1] for gaps in panels_of.values())
    svg = chart.picture(
        paint,
        label,
        marks=legend.keys(analysis, seeds=True, gaps=every),
        rows=rows,
        columns=columns,
        between=(46, low + 30),
        bottom=low,
        top=30 if len(panels_of) > 1 else 12,
    )
    how = (
        (
            'Thin lines: one per seed; a dot is a gap, a cross a gap with a diverged run. Thick '
            'line: mean over seeds. '
        )
        + legend.intervals(analysis)
        + gap_figures.edge(every, span)
    )
    return Picture(
        name,
        title,
        svg,
        how.strip(),
        ('series', 'comparison', 'label', 'seed', 'seed_gap_pp', *gap_figures.ORDER),
        [
            [s, g.name, _label(analysis, g, gaps), seed, value, *gap_figures.row_of(g)]
            for s, gaps in panels_of.items()
            for g in gaps
            for seed, value in g.by_seed.items()
        ],
    )


def _label(analysis: Analysis, g: Gap, gaps: Sequence[Gap]) -> str:
    """`k = 2` if every gap has another k, else the name of the arm."""
    ks = [gap_figures.moe_of(analysis, other.arm).get('k') for other in gaps]
    k = gap_figures.moe_of(analysis, g.arm).get('k')
    return f'k = {k}' if None not in ks and len(set(map(str, ks))) == len(ks) else g.arm


def _k_panel(
    analysis: Analysis, axes: Axes, gaps: list[Gap], margin: float, span: tuple[float, float]
) -> None:
    chart.ground(axes, margin, span)
    for seed in sorted({s for g in gaps for s in g.seeds}):
        y = [g.by_seed.get(seed, math.nan) for g in gaps]
        axes.plot(
            range(len(gaps)),
            y,
            color=palette.ACCENT,
            linewidth=0.9,
            alpha=0.5,
            marker='o',
            markersize=2.6,
            zorder=2,
        )
        for i, g in enumerate(gaps):
            if seed in (*analysis.diverged(g.arm), *analysis.diverged(g.baseline)):
                axes.plot(
                    [i],
                    [min(max(y[i], span[0]), span[1])],
                    marker='x',
                    clip_on=False,
                    color=palette.WARM,
                    markersize=6,
                    zorder=5,
                )
    known = [g.outer.mean if span[0] <= g.outer.mean <= span[1] else math.nan for g in gaps]
    axes.plot(range(len(gaps)), known, color=palette.INK, linewidth=1.8, zorder=3)
    for i, g in enumerate(gaps):
        chart.whisker(axes, i, g, span, palette.INK, 's', filled=g.confirms)
    axes.set_xlim(-0.4, len(gaps) - 0.6)
    axes.xaxis.set_major_locator(FixedLocator(range(len(gaps))))
    slope, _ = _slope(analysis, gaps)
    axes.set_xticklabels(
        [short(_label(analysis, g, gaps), 22) for g in gaps],
        rotation=slope,
        ha='right' if slope else 'center',
        rotation_mode='anchor',
    )
    axes.set_ylabel('gap, pp')


def _slope(analysis: Analysis, gaps: Sequence[Gap]) -> tuple[int, int]:
    """Degrees by which labels are turned, and the pixels that they need below the axes."""
    longest = max(min(len(_label(analysis, g, gaps)), 22) for g in gaps)
    return (0, 34) if longest * len(gaps) < 34 else (28, 30 + 3 * longest)
