"""Draws what accuracy costs: every arm against its FLOPs and, where it was timed, its time.

Dense arms that differ only in width are joined by a line, so that one sees whether a routed arm
lies above what its cost buys in a dense network.
"""

import json
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from moe_vision.common.json_values import as_dict, number, value_at
from moe_vision.report import figure, formats, palette
from moe_vision.study.analysis.analyse import Analysis
from moe_vision.study.analysis.summaries import ArmSummary
from moe_vision.study.report import chart, legend, numbers
from moe_vision.study.report.chart import NoData
from moe_vision.study.report.document import Picture
from moe_vision.study.report.legend import Key, Look, look, short

_APART = 9.0  # pixels between neighbouring points
_MANY = 24  # arms above which a legend of all of them would be larger than the picture
_INNER_WIDTH = legend.WIDTH - 80
ENDS = ('low_pp', 'high_pp', 'level', 'inner_low_pp', 'inner_high_pp', 'inner_level')
_SIZES = ('widths', 'width', 'hidden', 'heads')  # of a backbone; heads cost nothing


class Cost(NamedTuple):
    """One panel: what its x axis shows, as a column of the file and in words."""

    column: str
    words: str
    of_arm: Mapping[str, float]


def flops(analysis: Analysis) -> Cost:
    """FLOPs per image of the active experts."""
    known = {a.name: a.flops for a in analysis.arms.values()}
    return Cost('flops', 'FLOPs per image', known)


def times(analysis: Analysis, timings: Mapping[str, Any]) -> list[Cost]:
    """Training time per cell, and latency at the smallest and the largest batch size."""
    costs = []
    cells = as_dict(timings.get('cells'))
    trained = {
        arm: statistics.median(seconds)
        for arm in analysis.arms
        if (seconds := numbers.finite(whole_seconds(c) for c in _each(cells.get(arm))))
    }
    if trained:
        costs.append(Cost('training_seconds', 'seconds of training, median of cells', trained))
    arms = as_dict(as_dict(timings.get('latency')).get('arms'))
    batches = {b for arm in arms for b in as_dict(value_at(arms, arm, 'batches'))}
    sizes = {int(b) for b in batches if str(b).isdecimal()}
    for batch in sorted({min(sizes), max(sizes)} if sizes else ()):
        measured = {
            arm: number(value_at(arms, arm, 'batches', str(batch), 'median_ms')) for arm in arms
        }
        images = formats.several(batch, 'image')
        costs.append(Cost(f'latency_ms_{batch}', f'median latency of {images}, ms', measured))
    return costs


def whole_seconds(cell: Any) -> Any:
    """Seconds of a cell that was trained at one go; None of one that was continued or diverged,
    whose seconds are those of its last part."""
    cell = as_dict(cell)
    return cell.get('seconds') if cell.get('trained_flops') else None


def _each(cells: Any) -> Sequence[Any]:
    return list(as_dict(cells).values())


def accuracy_against(analysis: Analysis, name: str, title: str, costs: Sequence[Cost]) -> Picture:
    """Mean accuracy of every arm against each cost, a panel below the other."""
    arms = [a for a in analysis.arms.values() if a.values and _has(a, costs)]
    drawn = [c for c in costs if any(_has(a, [c]) for a in arms)]
    if not drawn:
        raise NoData('no arm has both an accuracy and such a cost yet')
    dense, routed = ([a for a in arms if (a.rho_active > 0) == kind] for kind in (False, True))
    many = len(arms) > _MANY
    looks = {a.name: look(0 if many else i) for i, a in enumerate(routed)}
    looks |= {
        a.name: Look(palette.INK, look(0 if many else i).marker, ()) for i, a in enumerate(dense)
    }
    lines = _lines(analysis, dense)
    span = chart.around(arms)

    def paint(panels: list[Axes]) -> None:
        for axes, cost in zip(panels, drawn, strict=True):
            _panel(
                axes, cost, [a for a in arms if _has(a, [cost])], lines, looks, span, analysis.split
            )

    named = [a for kind in (dense, routed) for a in (kind[:1] if many else kind)]
    series = [
        Key(
            short(a.name) if not many else 'routed' if a in routed else 'dense',
            _point(looks[a.name], a in routed),
        )
        for a in named
    ]
    if any(len({a.flops for a in line}) > 1 for line in lines):
        series.append(Key('dense, by width', {'color': palette.MUTED, 'linewidth': 1.3}))
    label = f'{title}: ' + '; '.join(
        f'{a.name} {formats.pp(a.mean, sign=False)} % at {formats.size(a.flops)} FLOPs'
        for a in arms
    )
    svg = chart.picture(
        paint,
        label,
        rows=len(drawn),
        marks=[*series, *legend.keys(analysis)],
        panel=270 if len(drawn) == 1 else 200,
        between=(62, 52),
        bottom=42,
    )
    how = (
        'Better is up and left. Filled: routed arms; hollow: dense ones. The line joins dense arms '
        'that differ only in width, so a routed arm above it is more accurate than a dense network '
        'of its cost, as far as the intervals show it. '
        + legend.intervals(analysis, 'accuracy')
        + 'A gap between two arms is paired by seed and known better than its two ends. Points '
        'with almost the same cost are moved sideways, and the line with them. '
        + (
            'Arrows at the edge: arms with a diverged run. '
            if any(not span[0] <= a.mean <= span[1] for a in arms)
            else ''
        )
    )
    head = ('arm', 'routed', 'line', *(c.column for c in drawn), 'accuracy_pp', *ENDS)
    line_of = {a.name: i for i, line in enumerate(lines) for a in line}
    rows = [
        [
            a.name,
            a in routed,
            line_of.get(a.name),
            *(c.of_arm.get(a.name) for c in drawn),
            a.mean,
            *ends(a),
        ]
        for a in arms
    ]
    return Picture(name, title, svg, how.strip(), head, rows)


def ends(a: ArmSummary) -> list[float]:
    """Both intervals of an arm's accuracy, in the order of `ENDS`."""
    return [v for e in (a.outer, a.inner) for v in (e.low, e.high, e.level)]


def _has(a: ArmSummary, costs: Sequence[Cost]) -> bool:
    return any(number(c.of_arm.get(a.name)) > 0 for c in costs)


def _lines(analysis: Analysis, dense: Sequence[ArmSummary]) -> list[list[ArmSummary]]:
    """Dense arms in groups that differ in width and seeds alone."""
    found: dict[str, list[ArmSummary]] = {}
    for a in dense:
        config = a.config or as_dict(value_at(analysis.study, 'arms', a.name, 'config'))
        model = as_dict(config.get('model'))
        sizes = {k: v for k, v in as_dict(model.get('args')).items() if k not in _SIZES}
        twin = str(model.get('twin'))
        apart = twin if twin == 'ensemble' or 'drops' in twin else ''  # others are one block
        place = as_dict(model.get('moe')).get('placement')
        rest = {k: v for k, v in config.items() if k not in ('model', 'seed')}
        kind = [model.get('name'), model.get('dtype'), sizes, apart, place]
        key = json.dumps([kind, rest], sort_keys=True)
        found.setdefault(key, []).append(a)
    return list(found.values())


def _point(of: Look, filled: bool) -> dict[str, Any]:
    face = of.colour if filled else palette.PAPER
    style = {'color': of.colour, 'marker': of.marker, 'markerfacecolor': face}
    return {**style, 'markersize': 7, 'linestyle': 'none'}


def _panel(
    axes: Axes,
    cost: Cost,
    arms: Sequence[ArmSummary],
    lines: Sequence[Sequence[ArmSummary]],
    looks: Mapping[str, Look],
    span: tuple[float, float],
    split: str,
) -> None:
    x = {a.name: number(cost.of_arm[a.name]) for a in arms}
    chart.log_ticks(axes, list(x.values()), formats.tick, many=True)
    axes.set_ylim(*span)
    axes.grid(True, axis='x')
    axes.yaxis.set_major_locator(MaxNLocator(6))
    figure.write_ticks(axes.yaxis, '{:.4g}'.format)
    axes.set_xlabel(f'{cost.words} (logarithmic)')
    axes.set_ylabel(f'{split} accuracy, %')
    pixels = {
        name: _INNER_WIDTH * float(axes.transAxes.inverted().transform(point)[0])
        for name, value in x.items()
        for point in [axes.transData.transform((value, span[0]))]
    }
    shifts = apart(pixels, _APART if len(arms) <= _MANY else 0.0)
    for line in lines:
        at: dict[float, list[ArmSummary]] = {}  # arms of one width, such as two sets of seeds
        for a in line:
            if a.name in x and span[0] <= a.mean <= span[1]:
                at.setdefault(a.flops, []).append(a)
        points = [
            (
                numbers.mean((pixels[a.name] + shifts[a.name]) / _INNER_WIDTH for a in of),
                numbers.mean(a.mean for a in of),
            )
            for of in at.values()
        ]
        if len(points) > 1:
            places, means = zip(*sorted(points), strict=True)
            axes.plot(
                places,
                means,
                transform=axes.get_yaxis_transform(),
                color=palette.MUTED,
                linewidth=1.3,
                zorder=1.5,
            )
    for a in arms:
        of, filled = looks[a.name], a.rho_active > 0
        shift = shifts[a.name]
        chart.whisker(axes, x[a.name], a, span, of.colour, of.marker, filled=filled, shift=shift)


def apart(at: Mapping[str, float], least: float = _APART) -> dict[str, float]:
    """How far to move each point so that neighbours are `least` apart, and as little as can be."""
    clusters: list[tuple[list[str], float]] = []  # names, and their mean place
    for name in sorted(at, key=lambda n: at[n]):
        names, centre = [name], at[name]
        while clusters:
            before, middle = clusters[-1]
            if centre - middle >= least * (len(names) + len(before)) / 2:
                break
            clusters.pop()
            total = middle * len(before) + centre * len(names)
            names = before + names
            centre = total / len(names)
        clusters.append((names, centre))
    return {
        name: centre + least * (i - (len(names) - 1) / 2) - at[name]
        for names, centre in clusters
        for i, name in enumerate(names)
    }
