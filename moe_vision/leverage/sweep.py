"""One number per config and value of a key: rows, as a table, as CSV, as a picture.

A row is a flat dictionary; every field is a column of the CSV.
"""

import csv
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

from moe_vision.leverage import table
from moe_vision.leverage.types import Leverage
from moe_vision.report import figure, formats, palette

Row = dict[str, Any]
_TABLE = {'rho_place': '', 'rho_active': '', 'rho_executed': '', 'flops': 'FLOPs',
          'flops_executed': 'executed', 'cost': '', 'cost_executed': 'cost executed',
          'params_total': 'params', 'params_active': 'active', 'bytes': ''}
NOTE = 'cost: FLOPs over those of the same_width twin'


def said(value: Any) -> Any:
    """A value of a sweep as a row holds it: a number, or text."""
    return value if isinstance(value, int | float) else str(value)


def row(config: str, key: str, value: Any, found: Leverage) -> Row:
    """The numbers of one config; `cost` is its FLOPs over those of the same_width twin."""
    twin = found.sum('flops_twin')
    return {
        'config': config, 'key': key, 'value': value,
        'rho_place': found.rho_place, 'rho_active': found.rho_active,
        'rho_executed': found.rho_executed, 'flops': found.flops,
        'flops_executed': found.flops_executed, 'flops_twin': twin,
        'cost': found.flops / twin, 'cost_executed': found.flops_executed / twin,
        'params_total': found.params_total, 'params_active': found.params_active,
        'bytes': found.sum('bytes'), 'bytes_active': found.sum('bytes_active'),
        'bytes_buffers': found.sum('bytes_buffers')}


def text(rows: Sequence[Row]) -> list[str]:
    """The rows as an aligned table."""
    def cell(name: str, value: Any) -> str:
        if isinstance(value, float):
            return f'{value:.4f}'
        return f'{value:,}' if name.startswith('params') else table.si(value)

    head = ('config', rows[0]['key'], *[title or name for name, title in _TABLE.items()])
    return table.aligned([head, *[
        (r['config'], str(r['value']), *[cell(n, r[n]) for n in _TABLE]) for r in rows]])


def write_csv(path: str, rows: Sequence[Row]) -> None:
    with open(path, 'w', newline='', encoding='utf-8') as f:
        out = csv.DictWriter(f, list(rows[0]), lineterminator='\n')
        out.writeheader()
        out.writerows(rows)


def write_svg(path: str, rows: Sequence[Row], rho: str) -> None:
    """`rho` against the value, one curve per config; values that are no numbers are evenly laid."""
    curves: dict[str, list[Row]] = {}
    for r in rows:
        curves.setdefault(r['config'], []).append(r)
    values = list(dict.fromkeys(r['value'] for r in rows))
    numbers = all(isinstance(v, int | float) and np.isfinite(v) for v in values)
    place = {v: v if numbers else i for i, v in enumerate(values)}

    def paint(axes: Axes) -> None:
        for i, (name, points) in enumerate(curves.items()):
            points = sorted(points, key=lambda r: place[r['value']])
            axes.plot([place[r['value']] for r in points], [r[rho] for r in points],
                      marker='osD^vPX*'[i % 8], markersize=4, color=palette.expert(i), label=name)
        if numbers and min(values) > 0 and max(values) >= 8 * min(values):
            axes.set_xscale('log')
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticks([place[v] for v in values], [str(v) for v in values])
        figure.write_ticks(axes.yaxis, formats.share)
        axes.set_ylim(bottom=0)
        axes.set_xlabel(rows[0]['key'], loc='right')
        axes.set_ylabel(rho)
        axes.legend(frameon=False, fontsize=10, labelcolor='linecolor')

    label = f'{rho} against {rows[0]["key"]}: ' + '; '.join(
        f'{name} from {points[0][rho]:.3f} to {points[-1][rho]:.3f}'
        for name, points in curves.items()) + '.'
    picture = figure.draw(paint, label, width=560, height=320, left=64, bottom=40)
    with open(path, 'w', encoding='utf-8') as f:
        f.write(figure.alone(picture))
