"""Draws all comparisons of a study, one line each, in groups."""

import math
from collections import Counter
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, MaxNLocator

from moe_vision.common.json_values import number
from moe_vision.report import formats, palette
from moe_vision.study.analysis.analyse import Analysis
from moe_vision.study.analysis.findings import Finding, Gap
from moe_vision.study.report import chart, legend
from moe_vision.study.report.chart import NoData, Series
from moe_vision.study.report.document import Picture
from moe_vision.study.report.gap_figures import ORDER, edge, row_of
from moe_vision.study.report.legend import short

_MARKS = {
    'positive': (palette.ACCENT, '^'),
    'negative': (palette.WARM, 'v'),
    'positive, within the margin': (palette.INK, '^'),
    'negative, within the margin': (palette.INK, 'v'),
    'equivalent': (palette.INK, 's'),
    'inconclusive': (palette.MUTED, 'o'),
}
_FEW = 3  # comparisons that share an arm or a baseline and make a group


def groups(analysis: Analysis, gaps: Sequence[Finding]) -> dict[str, list[Finding]]:
    """Heading -> comparisons: the primary ones, then those that share a baseline or an arm.

    The side that most of the exploratory comparisons share makes the first group of them, and so on
    while a side has at least three; routed and dense arms against one baseline are apart. Trends
    and family differences come last.
    """
    found: dict[str, list[Finding]] = {'primary': [g for g in gaps if g.confirms]}
    rest = [g for g in gaps if not g.confirms and isinstance(g, Gap)]
    while rest:
        sides = Counter(side for g in rest for side in (('', g.baseline), (g.arm, '')))
        (arm, baseline), shared = sides.most_common(1)[0]
        if shared < _FEW:
            break
        members = [g for g in rest if baseline in ('', g.baseline) and arm in ('', g.arm)]
        dense = [g for g in members if baseline and not analysis.arms[g.arm].rho_active > 0]
        if 2 <= len(dense) <= len(members) - 2:
            found[f'exploratory: routed arms − {baseline}'] = [g for g in members if g not in dense]
            found[f'exploratory: dense arms − {baseline}'] = [*dense]
        else:
            pair = f'{arm} − others' if arm else f'others − {baseline}'
            found[f'exploratory: {pair}'] = [*members]
        rest = [g for g in rest if g not in members]
    found['exploratory: other pairs' if len(found) > 1 else 'exploratory'] = [*rest]
    combined = [g for g in gaps if not g.confirms and not isinstance(g, Gap)]
    found['exploratory: trends and family differences'] = combined
    return {head: members for head, members in found.items() if members}


def verdicts(analysis: Analysis, name: str, title: str, series: Series) -> Picture:
    """Every comparison with its intervals, one line each, in groups: primary ones first."""
    del series
    known = [g for g in analysis.findings.values() if math.isfinite(g.outer.mean)]
    if not known:
        raise NoData('no comparison has a pair of rows yet')
    grouped = groups(analysis, known)
    gaps = [g for members in grouped.values() for g in members]
    heads = {members[0].name: head for head, members in grouped.items()}
    margin = number(analysis.study.get('margin'))
    span = chart.limits(gaps, margin)
    places: list[float] = []
    for g in gaps:
        places.append((places[-1] + 1 if places else 0) + (1.3 if g.name in heads else 0))
    longest = max(len(short(g.name, 34)) for g in gaps)
    columns = (10, 24 + round(5.4 * max(len(g.verdict) for g in gaps)))
    right = columns[1] + 210

    def paint(panels: list[Axes]) -> None:
        axes = panels[0]
        axes.grid(False, axis='y')
        axes.grid(True, axis='x')
        chart.ground(axes, margin, span, across=True)
        for place, g in zip(places, gaps, strict=True):
            if g.name in heads:
                axes.annotate(
                    short(heads[g.name], 60),
                    (0, place - 1),
                    xycoords=axes.get_yaxis_transform(),
                    xytext=(-left + 10, 0),
                    textcoords='offset pixels',
                    va='center',
                    fontsize=10.5,
                    fontweight='bold',
                    color=palette.INK,
                )
            colour, marker = _MARKS.get(g.verdict, (palette.MUTED, 'o'))
            chart.whisker(axes, place, g, span, colour, marker, across=True, filled=g.confirms)
            gap = formats.pp(g.outer.mean)
            if math.isfinite(g.outer.low):
                gap += f' [{formats.pp(g.outer.low)}, {formats.pp(g.outer.high)}]'
            told = (g.verdict, gap, formats.times(g.cost))
            for x, words in zip((*columns, right - 56), told, strict=True):
                axes.annotate(
                    words,
                    (1, place),
                    xycoords=axes.get_yaxis_transform(),
                    xytext=(x, 0),
                    textcoords='offset pixels',
                    va='center',
                    fontsize=10,
                    color=palette.INK if g.confirms else palette.MUTED,
                )
        axes.set_ylim(places[-1] + 0.7, -0.4)
        axes.yaxis.set_major_locator(FixedLocator(places))
        axes.set_yticklabels([short(g.name, 34) for g in gaps])
        axes.xaxis.set_major_locator(MaxNLocator(6))
        axes.set_xlabel('gap, pp')

    left = 24 + round(6.1 * longest)
    svg = chart.picture(
        paint,
        f'{title}: '
        + '; '.join(f'{g.name} {g.verdict} {formats.pp(g.outer.mean)} pp' for g in gaps),
        marks=legend.keys(analysis, gaps=gaps),
        panel=max(60, round(24 * (places[-1] + 1.1))),
        left=left,
        right=right,
        width=left + right + 430,
    )
    how = (
        legend.intervals(analysis)
        + 'A verdict rests on the level of its own test, which the table of verdicts gives. On '
        'the right: verdict, gap with its outer interval, FLOPs ÷ those of the baseline. '
        + (
            'Of a trend it is the change of the gap along ρ, of a family difference the mean '
            'difference of gaps. '
            if analysis.contrasts
            else ''
        )
        + edge(gaps, span)
    )
    rows = [[g.name, *row_of(g), head] for head, members in grouped.items() for g in members]
    return Picture(name, title, svg, how.strip(), ('comparison', *ORDER, 'group'), rows)
