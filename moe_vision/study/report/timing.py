"""Writes the page of everything that depends on a clock: training time, latency, throughput."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, NullFormatter

from moe_vision.common.json_values import as_dict, as_list, number, value_at
from moe_vision.report import figure, formats
from moe_vision.report.formats import NONE, signed
from moe_vision.study.analysis.analyse import Analysis
from moe_vision.study.analysis.summaries import ArmSummary
from moe_vision.study.report import chart, cost_figure, legend, numbers
from moe_vision.study.report.chart import NoData, Series
from moe_vision.study.report.document import (
    Block,
    Document,
    Name,
    Picture,
    Section,
    Table,
    Text,
    Words,
)
from moe_vision.study.report.legend import look
from moe_vision.study.report.tables import csv_text

_CELLS = (
    'arm',
    'cells',
    'seconds per cell',
    'shortest',
    'longest',
    'total, hours',
    'images per second',
    'device',
)
_KEYS = ('seconds', 'trained_flops', 'images_per_second', 'device', 'host_cores')
_LATENCY = (
    'arm',
    'FLOPs per image',
    'batch size',
    'median, ms',
    'low, ms',
    'high, ms',
    'images per second',
    'accuracy, %',
)


_RHO = (
    'arm',
    'batch size',
    'median, ms',
    'without its routed places, ms',
    'ρ in time, %',
    'low, %',
    'high, %',
    'ρ place, %',
    'ρ executed, %',
)


class Rho(NamedTuple):
    """What the routed places of an arm take of the time of a batch, beside its leverages."""

    arm: str
    batch: int
    median_ms: Any
    rest_ms: Any
    rho_time: Any
    rho_time_low: Any
    rho_time_high: Any
    rho_place: float
    rho_executed: float


class Latency(NamedTuple):
    """What was measured of an arm at one batch size; the accuracy is mean and sd over seeds."""

    arm: str
    flops: Any
    batch: int
    median_ms: Any
    low_ms: Any
    high_ms: Any
    images_per_second: Any
    accuracy_pp: float
    accuracy_sd_pp: float


def document(
    analysis: Analysis,
    timings: Mapping[str, Any],
    pictures: Sequence[Block],
    cost: Sequence[Block] = (),
) -> Document:
    """The page of timings, with pictures of latency and of what accuracy costs."""
    cells, latency = as_dict(timings.get('cells')), as_dict(timings.get('latency'))
    name = str(analysis.study.get('name', 'study'))
    device = str(latency.get('device', ''))
    rows = [_cell(arm, seeds) for arm, seeds in cells.items() if as_dict(seeds)]
    took: list[Block] = [Text('No cell was timed.', 'missing')]
    if rows:
        whole = 'Seconds are those of cells that were trained at one go, without an interruption.'
        took = [Text(whole), Table(_CELLS, rows)]
    command = Name('python -m moe_vision.study time')
    parts: list[Block] = [Text(['Not measured yet: run ', command, '.'], 'missing')]
    if latency:
        parts = [
            Text(
                [
                    'Inference on ',
                    Name(device or 'an unknown device'),
                    ': medians over '
                    'interleaved rounds; low and high are the first and third quartiles. They '
                    'hold only for this device and these batch sizes.',
                ]
            )
        ]
        parts.append(
            Table(
                _LATENCY,
                [
                    [
                        Name(row.arm),
                        formats.size(number(row.flops)),
                        str(row.batch),
                        *(signed(number(ms)) for ms in (row.median_ms, row.low_ms, row.high_ms)),
                        _speed(number(row.images_per_second)),
                        formats.pp(row.accuracy_pp, sign=False),
                    ]
                    for row in latency_rows(analysis, latency)
                ],
            )
        )
    rhos = rho_rows(analysis, latency)
    return Document(
        f'{name}: timings',
        'Timings of a study',
        ('Everything that depends on a clock is here and nowhere else in the report.'),
        (
            Section('training', 'Training', took),
            Section('latency', 'Inference', [*parts, *pictures]),
            *([_rho(rhos)] if rhos else []),
            *([Section('cost', 'What accuracy costs', cost)] if cost else []),
        ),
    )


def _rho(rows: Sequence[Rho]) -> Section:
    text = (
        'ρ in time is 1 − time without the branches at the routed places ÷ time, of a batch in '
        'inference: the median over rounds, in each of which both were timed, with the first and '
        'third quartiles. Of a same-width twin it is the counterpart of ρ place. Of a routed arm '
        'it is that of ρ executed, but holds routers and the moves into slots and back, too, and '
        'the slots of evaluation, where ρ executed counts those of training.'
    )

    def percent(value: Any) -> str:
        return formats.pp(100 * number(value), sign=False)

    table = [
        [
            Name(r.arm),
            str(r.batch),
            *(signed(number(ms)) for ms in (r.median_ms, r.rest_ms)),
            *map(percent, r[4:]),
        ]
        for r in rows
    ]
    return Section('rho', 'Leverage in time', [Text(text), Table(_RHO, table, 'rho in time')])


def _cell(arm: str, seeds: Mapping[Any, Any]) -> list[Words]:
    timed = [as_dict(cell) for cell in seeds.values()]
    seconds = numbers.finite(map(cost_figure.whole_seconds, timed))
    speed = numbers.finite(cell.get('images_per_second') for cell in timed)
    devices = sorted({str(cell['device']) for cell in timed if cell.get('device')})
    return [
        Name(arm),
        str(len(timed)),
        numbers.spread(seconds, signed),
        *(signed(f(seconds)) if seconds else NONE for f in (min, max)),
        signed(sum(seconds) / 3600) if seconds else NONE,
        numbers.spread(speed, _speed),
        ', '.join(devices),
    ]


def tables(analysis: Analysis, timings: Mapping[str, Any]) -> dict[str, str]:
    """The tables of timings, file name -> content."""
    cells = [
        [arm, seed, *(value_at(cell, key) for key in _KEYS)]
        for arm, seeds in as_dict(timings.get('cells')).items()
        for seed, cell in as_dict(seeds).items()
    ]
    measured = as_dict(timings.get('latency'))
    rhos = rho_rows(analysis, measured)
    return {
        'cells.csv': csv_text(('arm', 'seed', *_KEYS), cells),
        'latency.csv': csv_text(Latency._fields, latency_rows(analysis, measured)),
        **({'rho_in_time.csv': csv_text(Rho._fields, rhos)} if rhos else {}),
    }


def rho_rows(analysis: Analysis, latency: Mapping[str, Any]) -> list[Rho]:
    """The arms and batch sizes of which rho in time was measured."""
    rows = []
    for row in latency_rows(analysis, latency):
        times = as_dict(value_at(latency, 'arms', row.arm, 'batches', str(row.batch)))
        if math.isnan(number(times.get('rho_time'))):
            continue
        summary = analysis.arms.get(row.arm)
        counted = (summary.rho_place, summary.rho_executed) if summary else (math.nan, math.nan)
        measured = (times.get(key) for key in Rho._fields[3:7])
        rows.append(Rho._make([row.arm, row.batch, row.median_ms, *measured, *counted]))
    return rows


def latency_rows(analysis: Analysis, latency: Mapping[str, Any]) -> list[Latency]:
    """All that was measured, by arm and batch size."""
    rows = []
    for arm, measured in as_dict(latency.get('arms')).items():
        summary = analysis.arms.get(arm)
        accuracy = (summary.mean, summary.sd) if summary else (math.nan, math.nan)
        batches = as_dict(value_at(measured, 'batches'))
        for batch, times in sorted(batches.items(), key=lambda b: _int(b[0])):
            measures = (value_at(times, key) for key in Latency._fields[3:7])
            rows.append(
                Latency._make(
                    [str(arm), value_at(measured, 'flops'), _int(batch), *measures, *accuracy]
                )
            )
    return rows


def _speed(value: float) -> str:
    return f'{value:,.0f}' if value >= 100 else signed(value)


def _int(batch: Any) -> int:
    return int(batch) if str(batch).isdecimal() else 0


def wall_clock(
    analysis: Analysis, name: str, title: str, series: Series, latency: Mapping[str, Any]
) -> Picture:
    """Accuracy against latency (above) and throughput (below), a column per batch size."""
    wanted = [str(arm) for arms in series.values() for arm in as_list(list(arms))]
    rows = [r for r in latency_rows(analysis, latency) if not wanted or r.arm in wanted]
    rows = [
        r
        for r in rows
        if number(r.median_ms) > 0
        and number(r.images_per_second) > 0
        and math.isfinite(r.accuracy_pp)
    ]
    if not rows:
        raise NoData('none of its arms has both a latency and an accuracy yet')
    arms = list(dict.fromkeys(r.arm for r in rows))
    batches = sorted({r.batch for r in rows})
    span = chart.around([analysis.arms[arm] for arm in arms])

    def paint(panels: list[Axes]) -> None:
        for i, axes in enumerate(panels):
            batch, below = batches[i % len(batches)], i >= len(batches)
            of_batch = [r for r in rows if r.batch == batch]
            _panel(axes, of_batch, arms, analysis.arms, span, below)
            if not below:
                axes.set_title(f'batch size {batch}')
            axes.tick_params(labelleft=i % len(batches) == 0)
            axes.set_xlabel('images per second' if below else 'median latency, ms')
            if i % len(batches) == 0:
                axes.set_ylabel(f'{analysis.split} accuracy, %')
            axes.set_ylim(*span)

    label = f'{title}: ' + '; '.join(
        f'{r.arm} at batch size {r.batch} {signed(r.median_ms)} ms' for r in rows
    )
    svg = chart.picture(
        paint,
        label,
        rows=2,
        columns=len(batches),
        names=arms,
        marks=legend.keys(analysis),
        panel=180,
        width=max(legend.WIDTH, 62 + 190 * len(batches)),
        between=(30, 58),
        top=30,
    )
    how = (
        'Better is up and left in the upper row, up and right in the lower row. '
        + legend.intervals(analysis, 'accuracy')
        + 'Horizontal bars: quartiles of latency.'
    )
    head = (*Latency._fields, *cost_figure.ENDS)
    numbered = [[*r, *cost_figure.ends(analysis.arms[r.arm])] for r in rows]
    return Picture(name, title, svg, how, head, numbered)


def _panel(
    axes: Axes,
    rows: list[Latency],
    arms: list[str],
    summaries: Mapping[str, ArmSummary],
    span: tuple[float, float],
    below: bool,
) -> None:
    seen = []
    for row in rows:
        style, y = look(arms.index(row.arm)), row.accuracy_pp
        x = row.images_per_second if below else row.median_ms
        ends = [] if below else numbers.finite([row.low_ms, row.high_ms])
        if len(ends) == 2:
            axes.plot(ends, [y, y], color=style.colour, linewidth=1.2, alpha=0.7)
        chart.whisker(axes, x, summaries[row.arm], span, style.colour, style.marker)
        seen += [x, *ends]
    axes.grid(True, axis='x')
    if seen and max(seen) > 4 * min(seen):
        chart.log_ticks(axes, seen, formats.tick)
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        axes.xaxis.set_major_locator(MaxNLocator(3))
        axes.margins(x=0.15)
        figure.write_ticks(axes.xaxis, formats.tick)
