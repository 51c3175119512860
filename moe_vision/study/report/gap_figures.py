"""Draws gaps against a number of their arm: ρ, or the slots of a soft layer."""

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

from moe_vision.common.json_values import as_dict, number, value_at
from moe_vision.report import figure, formats, palette
from moe_vision.study.analysis.analyse import Analysis
from moe_vision.study.analysis.findings import Contrast, Finding, Gap
from moe_vision.study.report import chart, legend
from moe_vision.study.report.chart import NoData, Series
from moe_vision.study.report.document import Picture
from moe_vision.study.report.legend import look

_DRAWN = ('gap_pp', 'low_pp', 'high_pp', 'level', 'inner_low_pp', 'inner_high_pp', 'inner_level')
ORDER = (*_DRAWN, 'seeds', 'verdict', 'primary', 'cost')


def row_of(g: Finding) -> list[Any]:
    """The numbers of a gap in a figure's file, in the order of `ORDER`."""
    drawn = (v for e in (g.outer, g.inner) for v in (e.low, e.high, e.level))
    return [g.outer.mean, *drawn, g.outer.n, g.verdict, g.confirms, g.cost]


def edge(gaps: Sequence[Finding], span: tuple[float, float]) -> str:
    """The sentence on arrows at the edge, or '' if all gaps lie inside."""
    outside = any(not span[0] <= g.outer.mean <= span[1] for g in gaps)
    return (
        'Arrows at the edge: gaps with a diverged run that lie outside the picture. '
        if outside
        else ''
    )


def gaps_of(analysis: Analysis, series: Series) -> dict[str, list[Gap]]:
    """The gaps of each series that have a mean."""
    known = {n: g for n, g in analysis.gaps.items() if math.isfinite(g.outer.mean)}
    gaps = {s: [known[n] for n in names if n in known] for s, names in series.items()}
    if not any(gaps.values()):
        raise NoData('none of its comparisons has a pair of rows yet')
    return {s: members for s, members in gaps.items() if members}


def _curves(
    axes: Axes,
    curves: dict[str, list[Gap]],
    x: dict[str, float],
    span: tuple[float, float],
    trends: Mapping[str, Contrast],
) -> None:
    """Whiskers per series, shifted a little sideways, and a line: its trend, or through means."""
    for i, (name, gaps) in enumerate(curves.items()):
        style, shift = look(i), 8.0 * (i - (len(curves) - 1) / 2)
        known = sorted((g for g in gaps if g.name in x), key=lambda g: x[g.name])
        if trend := trends.get(name):
            places = np.linspace(min(trend.x), max(trend.x), 100)
            axes.plot(
                places,
                [trend.fitted(place) for place in places],
                color=style.colour,
                linewidth=1.4,
                zorder=2,
                dashes=style.dashes or (None, None),
            )
        for a, b in zip(known, known[1:], strict=False):
            if not trend and all(span[0] <= g.outer.mean <= span[1] for g in (a, b)):
                axes.plot(
                    [x[a.name], x[b.name]],
                    [a.outer.mean, b.outer.mean],
                    color=style.colour,
                    linewidth=1.1,
                    alpha=0.55,
                    zorder=2,
                    dashes=style.dashes or (None, None),
                )
        for g in known:
            chart.whisker(
                axes,
                x[g.name],
                g,
                span,
                style.colour,
                style.marker,
                filled=g.confirms,
                seeds=True,
                shift=shift,
            )


def _against(
    analysis: Analysis,
    name: str,
    title: str,
    curves: dict[str, list[Gap]],
    x: dict[str, float],
    column: str,
    finish: Callable[[Axes], None],
    how: str,
    trends: Mapping[str, Contrast] = MappingProxyType({}),
) -> Picture:
    """Gaps over a number of their arm, `x[comparison]`, which files and labels call `column`."""
    margin = number(analysis.study.get('margin'))
    gaps = [g for members in curves.values() for g in members if g.name in x]
    span = chart.limits(gaps, margin, seeds=True)

    def paint(panels: list[Axes]) -> None:
        axes = panels[0]
        chart.ground(axes, margin, span)
        finish(axes)
        _curves(axes, curves, x, span, trends)
        axes.set_ylabel('gap, pp')

    label = f'{title}: ' + '; '.join(
        f'{g.name} at {column} {x[g.name]:.4g}: {formats.pp(g.outer.mean)} pp' for g in gaps
    )
    marks = legend.keys(analysis, seeds=True, gaps=gaps)
    svg = chart.picture(paint, label, names=list(curves), marks=marks, panel=290)
    apart = 'Series are shifted sideways by a few pixels. ' if len(curves) > 1 else ''
    rows = [
        [s, g.name, g.arm, g.baseline, x[g.name], *row_of(g), _seeds(g)]
        for s, members in curves.items()
        for g in members
        if g.name in x
    ]
    head = ['series', 'comparison', 'arm', 'baseline', column, *ORDER, 'seed_gaps_pp']
    if trends:
        head += ['trend', 'trend_gap_pp']
        for row in rows:
            trend = trends.get(row[0])
            row += [trend.name, trend.fitted(row[4])] if trend else ['', None]
    how += legend.intervals(analysis) + apart + edge(gaps, span)
    return Picture(name, title, svg, how.strip(), head, rows)


def _seeds(g: Gap) -> str:
    """'8: +0.28, 9: −0.56', the gap of each seed in pp."""
    return ', '.join(f'{seed}: {formats.pp(value)}' for seed, value in g.by_seed.items())


def against_rho(analysis: Analysis, name: str, title: str, series: Series) -> Picture:
    """Gap against rho_place of the arm, one curve per family."""
    curves = gaps_of(analysis, series)
    x = {g.name: g.rho_place for members in curves.values() for g in members if g.rho_place > 0}
    if not x:
        raise NoData('none of its arms has a ρ above zero')
    log = max(x.values()) / min(x.values()) > 8

    def finish(axes: Axes) -> None:
        if log:
            chart.log_ticks(axes, list(x.values()), formats.share)
        else:
            axes.xaxis.set_major_locator(MaxNLocator(6))
            figure.write_ticks(axes.xaxis, formats.share)
            axes.margins(x=0.08)
        scale = ' (logarithmic)' if log else ''
        axes.set_xlabel(f'ρ: share of the dense twin’s FLOPs in the replaced blocks{scale}')

    trends = _trends(analysis, curves)
    how = (
        'The line of a series is its trend, fitted by least squares to the mean gaps'
        + (' (curved, because this axis is logarithmic): ' if log else ': ')
        + ', '.join(f'{t.name} {formats.pp(t.estimate.mean)} pp' for t in trends.values())
        + '. '
        if trends
        else ''
    )
    return _against(analysis, name, title, curves, x, 'rho_place', finish, how, trends)


def _trends(analysis: Analysis, curves: dict[str, list[Gap]]) -> dict[str, Contrast]:
    """series -> the first trend over ρ place whose comparisons are all in it, and have a slope."""
    drawn = {series: {g.name for g in gaps} for series, gaps in curves.items()}
    fitted = [
        t
        for t in analysis.contrasts.values()
        if t.kind == 'trend' and t.column == 'rho_place' and math.isfinite(t.estimate.mean)
    ]
    first: dict[str, Contrast] = {}
    for trend in fitted:
        for series, names in drawn.items():
            if names >= {part.name for part in trend.parts}:
                first.setdefault(series, trend)
    return first


def soft_axis(analysis: Analysis, name: str, title: str, series: Series) -> Picture:
    """Gap against E * slots per expert of the arm, one curve per axis; classes are marked."""
    curves = gaps_of(analysis, series)
    gaps = [g for members in curves.values() for g in members]
    x = {g.name: slots for g in gaps if (slots := _slots(analysis, g.arm))}
    if not x:
        raise NoData('no config of its arms gives the number of experts')
    arms = {g.arm for g in gaps}
    classes = sorted(
        {
            int(row['num_classes'])
            for arm, _, row in analysis.cells()
            if arm in arms and math.isfinite(number(row.get('num_classes')))
        }
    )

    def finish(axes: Axes) -> None:
        places = sorted({*x.values(), *classes})
        axes.set_xscale('log', base=2)
        for c in classes:
            axes.axvline(c, color=palette.MUTED, linewidth=1, dashes=(4, 3), zorder=1)
            axes.annotate(
                f'{c} classes',
                (c, 1),
                xycoords=axes.get_xaxis_transform(),
                xytext=(6, -3),
                textcoords='offset pixels',
                fontsize=9.5,
                color=palette.MUTED,
                va='top',
            )
        axes.set_xlim(places[0] / 1.35, places[-1] * 1.35)
        axes.xaxis.set_major_locator(FixedLocator(sorted(set(x.values()))))
        axes.xaxis.set_minor_locator(NullLocator())
        figure.write_ticks(axes.xaxis, '{:g}'.format)
        axes.set_xlabel('E · slots per expert (logarithmic)')

    how = 'Dashed line: the number of classes. ' if classes else ''
    return _against(analysis, name, title, curves, x, 'experts_times_slots', finish, how)


def moe_of(analysis: Analysis, arm: str) -> dict[str, Any]:
    """`model.moe` of an arm's config; {} if it is not known."""
    config = analysis.arms[arm].config if arm in analysis.arms else {}
    config = config or value_at(analysis.study, 'arms', arm, 'config')
    return as_dict(value_at(config, 'model', 'moe'))


def _slots(analysis: Analysis, arm: str) -> float:
    moe = moe_of(analysis, arm)
    per_expert = as_dict(moe.get('router_args')).get('slots_per_expert', 1)
    slots = number(moe.get('num_experts')) * number(per_expert)
    return slots if math.isfinite(slots) else 0.0
