"""Tests whether gaps rise along ρ, and whether the backbone family matters at equal ρ.

Both are exploratory: only the verdicts on the ends of a sweep were registered.
"""

import itertools
import math
from collections.abc import Iterator, Sequence

from moe_vision.common.json_values import number
from moe_vision.report.formats import interval, p_value, pp, share, signed
from moe_vision.study.analysis.analyse import Analysis, Gap
from moe_vision.study.analysis.statistics import family_difference, spearman
from moe_vision.study.report.chart import Series
from moe_vision.study.report.document import Block, Name, Section, Table, Text, Words

NEAR = 0.1  # two ρ that differ by less than this share count as one level
HEAD = ('what', 'series', 'levels of ρ', 'value', 'low', 'high', 'p')
Line = tuple[str, str, str, float, float, float, float]


def section(analysis: Analysis, figures: Sequence[Series]) -> Section | None:
    """The trend of each family along ρ, and family against family; None without such a figure.

    Args:
      figures: the series of every figure of gaps against ρ.
    """
    trends = list(lines(analysis, figures))
    if not trends:
        return None
    blocks: list[Block] = [
        Text(
            'Exploratory. “trend” is the rank correlation (Spearman) of the mean gap with ρ over '
            'the levels of one family; p is exact for up to 8 levels. “family” is the gap of one '
            'family minus that of the other at the same ρ, paired by seed, with its 90 % interval '
            'at α = 0.05; p is from two one-sided tests against the margin. A small p means that '
            'the families differ by less than the margin there; a large p means nothing.'
        ),
        Table(
            ('what', 'families', 'ρ', 'value', 'interval, pp', 'p'),
            [_row(x) for x in trends],
            'trend',
        ),
    ]
    return Section('trend', 'Gaps along ρ', blocks)


def _row(line: Line) -> list[Words]:
    what, series, levels, value, low, high, p = line
    shown = signed(value) if what == 'trend' else f'{pp(value)} pp'
    return [what, Name(series), levels, shown, interval(low, high), p_value(p)]


def lines(analysis: Analysis, figures: Sequence[Series]) -> Iterator[Line]:
    """Each (what, series, levels, value, low, high, p); value is a correlation, or pp."""
    alpha = number(analysis.study.get('alpha', 0.05))
    margin = number(analysis.study.get('margin'))
    for series in figures:
        families = {name: _levels(analysis, names) for name, names in series.items()}
        for name, gaps in families.items():
            if len(gaps) > 2:
                value, p = spearman([g.rho_place for g in gaps], [g.estimate.mean for g in gaps])
                span = f'{share(gaps[0].rho_place)} to {share(gaps[-1].rho_place)}'
                yield 'trend', name, span, value, math.nan, math.nan, p
        for one, other in itertools.combinations(families, 2):
            for a, b in itertools.product(families[one], families[other]):
                if abs(a.rho_place - b.rho_place) < NEAR * a.rho_place:
                    values = [dict(zip(g.seeds, g.estimate.values, strict=True)) for g in (a, b)]
                    e, p = family_difference(values[0], values[1], margin, alpha)
                    yield (
                        'family',
                        f'{one} - {other}',
                        share(a.rho_place),
                        e.mean,
                        e.low,
                        e.high,
                        p,
                    )


def _levels(analysis: Analysis, names: Sequence[str]) -> list[Gap]:
    """The comparisons that have a mean and a ρ, in order of ρ."""
    gaps = [analysis.gaps[n] for n in names if n in analysis.gaps]
    return sorted(
        (g for g in gaps if math.isfinite(g.estimate.mean) and g.rho_place > 0),
        key=lambda g: g.rho_place,
    )
