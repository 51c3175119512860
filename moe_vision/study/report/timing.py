"""The page of everything that depends on a clock: how long cells took, latency, throughput."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, NullFormatter

from moe_vision.common.json_values import as_dict, as_list, number, value_at
from moe_vision.report import figure, formats
from moe_vision.report.formats import NONE, signed
from moe_vision.study.analysis.analyse import Analysis
from moe_vision.study.report import chart, numbers
from moe_vision.study.report.chart import look
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
from moe_vision.study.report.tables import csv_text

_CELLS = ('arm', 'cells', 'seconds per cell', 'shortest', 'longest', 'all, hours',
          'images per second', 'device')
_KEYS = ('seconds', 'images_per_second', 'device', 'host_cores')
_COLUMNS = ('arm', 'flops', 'batch', 'median_ms', 'low_ms', 'high_ms', 'images_per_second',
            'accuracy_pp', 'accuracy_sd_pp')  # of latency_rows
_LATENCY = ('arm', 'FLOPs per image', 'images at once', 'median, ms', 'low, ms', 'high, ms',
            'images per second', 'accuracy, %')


def document(analysis: Analysis, timings: Mapping[str, Any], pictures: Sequence[Block]) -> Document:
    """The page of timings."""
    cells, latency = as_dict(timings.get('cells')), as_dict(timings.get('latency'))
    name = str(analysis.study.get('name', 'study'))
    device = str(latency.get('device', ''))
    rows = [_cell(arm, seeds) for arm, seeds in cells.items() if as_dict(seeds)]
    took: Block = Table(_CELLS, rows) if rows else Text('No cell was timed.', 'missing')
    parts: list[Block] = [Text('Not measured yet: `study time` writes it.', 'missing')]
    if latency:
        parts = [Text(['Inference, medians of interleaved runs, on ', Name(device or 'an unknown '
                       'device'), '; low and high are the first and third quartiles. They '
                       'hold for this device and these batch sizes alone.'])]
        parts.append(Table(_LATENCY, [
            [Name(str(row[0])), formats.size(number(row[1])), str(row[2]),
             *(signed(number(v)) for v in row[3:6]), _speed(number(row[6])),
             formats.pp(number(row[7]), sign=False)]
            for row in latency_rows(analysis, latency)]))
    return Document(f'{name}: timings', 'Timings of a study', (
        'Whatever depends on a clock stands here and nowhere else in the report.'), (
            Section('training', 'Training', [took]),
            Section('latency', 'Inference', [*parts, *pictures])))


def _cell(arm: str, seeds: Mapping[Any, Any]) -> list[Words]:
    timed = [as_dict(cell) for cell in seeds.values()]
    seconds = numbers.finite(cell.get('seconds') for cell in timed)
    speed = numbers.finite(cell.get('images_per_second') for cell in timed)
    devices = sorted({str(cell['device']) for cell in timed if cell.get('device')})
    return [Name(arm), str(len(timed)), numbers.spread(seconds, signed),
            *(signed(f(seconds)) if seconds else NONE for f in (min, max)),
            signed(sum(seconds) / 3600) if seconds else NONE,
            numbers.spread(speed, _speed), ', '.join(devices)]


def tables(analysis: Analysis, timings: Mapping[str, Any]) -> dict[str, str]:
    """The tables of timings, file name -> content."""
    cells = [[arm, seed, *(value_at(cell, key) for key in _KEYS)]
             for arm, seeds in as_dict(timings.get('cells')).items()
             for seed, cell in as_dict(seeds).items()]
    latency = latency_rows(analysis, as_dict(timings.get('latency')))
    return {'cells.csv': csv_text(('arm', 'seed', *_KEYS), cells),
            'latency.csv': csv_text(_COLUMNS, latency)}


def latency_rows(analysis: Analysis, latency: Mapping[str, Any]) -> list[list[Any]]:
    """The numbers of `_COLUMNS` by arm and batch; accuracies are mean and sd over seeds."""
    rows = []
    for arm, measured in as_dict(latency.get('arms')).items():
        summary = analysis.arms.get(arm)
        accuracy = (summary.mean, summary.sd) if summary else (math.nan, math.nan)
        batches = as_dict(value_at(measured, 'batches'))
        for batch, times in sorted(batches.items(), key=lambda b: _int(b[0])):
            rows.append([arm, value_at(measured, 'flops'), _int(batch),
                         *(value_at(times, key) for key in _COLUMNS[3:7]), *accuracy])
    return rows


def _speed(value: float) -> str:
    return f'{value:,.0f}' if value >= 100 else signed(value)


def _int(batch: Any) -> int:
    return int(batch) if str(batch).isdecimal() else 0


def wall_clock(
    analysis: Analysis, latency: Mapping[str, Any], name: str, title: str,
    series: Mapping[str, Sequence[str]],
) -> Picture | Text:
    """Accuracy against latency (above) and throughput (below), a column per batch size."""
    wanted = [str(arm) for arms in series.values() for arm in as_list(list(arms))]
    rows = [r for r in latency_rows(analysis, latency) if not wanted or r[0] in wanted]
    rows = [r for r in rows if number(r[3]) > 0 and number(r[6]) > 0 and math.isfinite(r[7])]
    if not rows:
        return Text(f'Figure “{title}” is left out: none of its arms has both a latency and an '
                    'accuracy yet.', 'missing')
    arms = list(dict.fromkeys(r[0] for r in rows))
    batches = sorted({r[2] for r in rows})

    def paint(panels: list[Axes]) -> None:
        for i, axes in enumerate(panels):
            batch, below = batches[i % len(batches)], i >= len(batches)
            here = [r for r in rows if r[2] == batch]
            _times(axes, here, arms, below)
            if not below:
                axes.set_title(formats.several(batch, 'image') + ' at once')
            axes.tick_params(labelleft=i % len(batches) == 0)
            axes.set_xlabel('images per second' if below else 'median latency, ms')
            if i % len(batches) == 0:
                axes.set_ylabel('test accuracy, %')
            low = min(r[7] - _sd(r) for r in rows)
            high = max(r[7] + _sd(r) for r in rows)
            pad = 0.08 * (high - low) or 0.5
            axes.set_ylim(low - pad, high + pad)

    label = f'{title}: ' + '; '.join(f'{r[0]} {r[2]} at once {signed(r[3])} ms' for r in rows)
    svg = chart.picture(paint, label, rows=2, columns=len(batches), names=arms, panel=180,
                        width=max(chart.WIDTH, 62 + 190 * len(batches)), between=(30, 58),
                        top=30)
    how = ('Up and left is better above, up and right below. Vertical bars: sd of accuracy over '
           'seeds; horizontal: quartiles of latency.')
    return Picture(name, title, svg, how, _COLUMNS, rows)


def _sd(row: Sequence[Any]) -> float:
    return row[8] if math.isfinite(row[8]) else 0.0


def _times(axes: Axes, rows: list[list[Any]], arms: list[str], below: bool) -> None:
    seen = []
    for row in rows:
        style = look(arms.index(row[0]))
        speed, t, low, high = row[6], *row[3:6]
        x, ends = (speed, []) if below else (t, numbers.finite([low, high]))
        axes.plot([x, x], [row[7] - _sd(row), row[7] + _sd(row)], color=style.colour,
                  linewidth=1.2, alpha=0.7)
        if len(ends) == 2:
            axes.plot(ends, [row[7]] * 2, color=style.colour, linewidth=1.2, alpha=0.7)
        axes.plot([x], [row[7]], color=style.colour, marker=style.marker, markersize=7, zorder=4)
        seen += [x, *ends]
    axes.grid(True, axis='x')
    if seen and max(seen) > 4 * min(seen):
        chart.log_ticks(axes, seen, formats.tick)
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        axes.xaxis.set_major_locator(MaxNLocator(3))
        axes.margins(x=0.15)
        figure.write_ticks(axes.xaxis, formats.tick)
