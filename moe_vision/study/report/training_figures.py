"""Draws training: temperature, entropy and accuracy, and the agreement of routes."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from moe_vision.common.json_values import as_dict, as_list, number, value_at
from moe_vision.report import figure, formats
from moe_vision.study.analysis.analyse import Analysis
from moe_vision.study.analysis.statistics import estimate
from moe_vision.study.report import chart, numbers
from moe_vision.study.report.chart import NoData, Series
from moe_vision.study.report.document import Picture
from moe_vision.study.report.legend import Key, look

Points = dict[float, float]  # epoch -> value
Curves = dict[str, dict[int, Points]]  # name -> seed -> points
_QUANTITIES = {
    'temperature': 'temperature',
    'gate_entropy': 'gate entropy, nats',
    'accuracy': 'validation accuracy, %',
}
_LATE = 'late_accuracy'  # the accuracy again, on an axis of its own


def traces(analysis: Analysis, name: str, title: str, series: Series) -> Picture:
    """Temperature, gate entropy and validation accuracy over epochs, one colour per arm."""
    arms = {
        arm: label if len(names) == 1 else arm for label, names in series.items() for arm in names
    }
    rows = [
        [arms[arm], arm, seed, *_point(as_dict(point))]
        for arm in arms
        for known, seed, row in analysis.cells()
        if known == arm
        for point in as_list(row.get('curve'))
    ]
    drawn = [q for i, q in enumerate(_QUANTITIES) if any(math.isfinite(r[5 + i]) for r in rows)]
    if not drawn:
        raise NoData('none of its arms has a row with a curve yet')
    curves: dict[str, Curves] = {q: {} for q in drawn}
    for label, _, seed, _, epoch, *values in rows:
        for q, value in zip(_QUANTITIES, values, strict=True):
            if q in curves and math.isfinite(epoch) and math.isfinite(value):
                curves[q].setdefault(label, {}).setdefault(seed, {})[epoch] = value
    names = [label for label in arms.values() if any(label in c for c in curves.values())]
    shown = dict(curves)
    if late := _late(curves.get('accuracy', {})):
        shown[_LATE] = late

    def paint(panels: list[Axes]) -> None:
        for axes, (q, of) in zip(panels, shown.items(), strict=True):
            _lines(axes, of, names)
            axes.set_ylabel(_QUANTITIES.get(q, 'the same, later half'))
            axes.sharex(panels[0])
            axes.tick_params(labelbottom=axes is panels[-1])
        panels[-1].set_xlabel('epoch')

    svg = chart.picture(
        paint,
        f'{title}: ' + '; '.join(_ends(curves[q], q) for q in drawn),
        rows=len(shown),
        names=names,
        panel=150,
        between=(0, 18),
    )
    missing = [_QUANTITIES[q].split(',')[0] for q in _QUANTITIES if q not in drawn]
    how = 'Thin lines: one per seed; thick lines: mean over seeds; layers are averaged. '
    if late:
        how += 'The last panel shows the accuracy of the later half of training again, larger. '
    if missing:
        how += f'Not recorded: {formats.all_of(missing)}.'
    head = (
        'series',
        'arm',
        'seed',
        'step',
        'epoch',
        *(f'{q}_percent' if q == 'accuracy' else q for q in _QUANTITIES),
    )
    return Picture(name, title, svg, how.strip(), head, rows)


def _point(point: dict[str, Any]) -> list[Any]:
    layers = [as_dict(values) for values in as_dict(point.get('layers')).values()]
    return [
        point.get('step'),
        number(point.get('epoch')),
        *(numbers.mean(layer.get(q) for layer in layers) for q in list(_QUANTITIES)[:2]),
        100 * number(point.get('accuracy')),
    ]


def mean_curve(seeds: Mapping[int, Points]) -> Points:
    """epoch -> mean over the seeds with a value there, at epochs where more than half have one."""
    epochs = sorted({epoch for points in seeds.values() for epoch in points})
    return {
        e: numbers.mean(p[e] for p in seeds.values() if e in p)
        for e in epochs
        if 2 * sum(e in p for p in seeds.values()) > len(seeds)
    }


def _late(curves: Curves) -> Curves:
    """The points in the later half of the epochs."""
    last = max((e for seeds in curves.values() for of in seeds.values() for e in of), default=0)
    return {
        label: {seed: {e: v for e, v in of.items() if e >= last / 2} for seed, of in seeds.items()}
        for label, seeds in curves.items()
    }


def _lines(axes: Axes, curves: Curves, names: Sequence[str], band: float | None = None) -> None:
    """The mean of each curve, with a thin line per seed or with a band: its interval at a level."""
    for label, seeds in curves.items():
        style, mean = look(names.index(label)), mean_curve(seeds)
        if band is None:
            for points in seeds.values():
                axes.plot(
                    list(points),
                    list(points.values()),
                    color=style.colour,
                    linewidth=0.7,
                    alpha=0.3,
                    zorder=2,
                )
        else:
            low, high = zip(*(_interval(seeds, e, band) for e in mean), strict=True)
            axes.fill_between(list(mean), low, high, color=style.colour, alpha=0.13, linewidth=0)
        axes.plot(
            list(mean),
            list(mean.values()),
            color=style.colour,
            marker=style.marker,
            markersize=4.5,
            markevery=max(1, len(mean) // 8),
            zorder=3,
            dashes=style.dashes or (None, None),
        )
    axes.margins(x=0.02, y=0.1)
    axes.yaxis.set_major_locator(MaxNLocator(4))
    figure.write_ticks(axes.yaxis, '{:.4g}'.format)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))


def _interval(seeds: Mapping[int, Points], epoch: float, level: float) -> tuple[float, float]:
    """The t-interval of a mean of percentages at an epoch, within 0 and 100; else the mean."""
    e = estimate(numbers.finite(p[epoch] for p in seeds.values() if epoch in p), level)
    if not math.isfinite(e.low):
        return e.mean, e.mean
    return max(e.low, 0.0), min(e.high, 100.0)


def _ends(curves: Curves, what: str) -> str:
    means = {label: list(mean_curve(seeds).values()) for label, seeds in curves.items()}
    return f'{what} ' + ', '.join(
        f'{label} from {formats.signed(mean[0])} to {formats.signed(mean[-1])}'
        for label, mean in means.items()
        if mean
    )


def _few(analysis: Analysis, arms: list[str], most: int = 8) -> list[str]:
    """At most `most` of the arms, in their order; arms of primary comparisons are preferred."""
    primary = {arm for g in analysis.findings.values() if g.primary for arm in g.arms}
    chosen = sorted(arms, key=lambda arm: arm not in primary)[:most]
    return [arm for arm in arms if arm in chosen]


def agreement(analysis: Analysis, name: str, title: str) -> Picture:
    """Share of probe images with the same first choice as before, and as at the end."""
    rows: list[list[Any]] = []
    curves: dict[str, dict[str, dict[int, dict[float, list[float]]]]] = {
        'with_previous': {},
        'with_final': {},
    }
    for arm, seed, row in analysis.cells():
        for layer, probed in as_dict(value_at(row, 'mechanism', 'agreement')).items():
            epochs, *values = (as_list(as_dict(probed).get(key)) for key in ('epoch', *curves))
            for i, epoch in enumerate(epochs):
                point = [number(v[i]) if i < len(v) else math.nan for v in values]
                rows.append([arm, seed, layer, epoch, *point])
                for key, value in zip(curves, point, strict=True):
                    if math.isfinite(value):
                        of_seed = curves[key].setdefault(arm, {}).setdefault(seed, {})
                        of_seed.setdefault(epoch, []).append(100 * value)
    if not any(curves.values()):
        raise NoData('no cell was probed')
    known = [arm for arm in analysis.arms if any(arm in c for c in curves.values())]
    names = _few(analysis, known)
    level = formats.share(analysis.levels[1], 4)

    def paint(panels: list[Axes]) -> None:
        heads = ('compared with the previous validation', 'compared with the final routes')
        for axes, key, head in zip(panels, curves, heads, strict=True):
            means = {
                arm: {
                    seed: {e: numbers.mean(v) for e, v in points.items()}
                    for seed, points in seeds.items()
                }
                for arm, seeds in curves[key].items()
                if arm in names
            }
            _lines(axes, means, names, band=analysis.levels[1])
            axes.set_title(head)
            axes.set_ylabel('same first choice, %')
            axes.set_ylim(top=min(axes.get_ylim()[1], 102))
            axes.set_xlabel('epoch')

    svg = chart.picture(
        paint,
        f'{title}: arms {", ".join(names)}',
        columns=2,
        names=names,
        marks=[Key(f'band: {level} interval of the mean', {'linewidth': 10, 'alpha': 0.13})],
        panel=210,
        top=30,
    )
    how = (
        f'Lines: mean over seeds; bands: its {level} t-interval; layers are averaged. Routes that '
        'settle late had little time to specialise. '
    )
    if len(names) < len(known):
        how += (
            f'The picture shows {len(names)} of {len(known)} probed arms, those of primary '
            'comparisons first; the file has all of them.'
        )
    return Picture(
        name,
        title,
        svg,
        how.strip(),
        ('arm', 'seed', 'layer', 'epoch', 'with_previous', 'with_final'),
        rows,
    )
