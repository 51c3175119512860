"""Writes measurements of configs as a table, a CSV file and a picture.

A row holds the numbers of one config at one value of the swept key. It is a flat dictionary; every
field is a column of the CSV file.
"""

import csv
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

from moe_vision.common.csv_cells import shown
from moe_vision.leverage import table
from moe_vision.leverage.types import Leverage
from moe_vision.report import figure, formats, palette

Row = dict[str, Any]
_TABLE = {
    'rho_place': '',
    'rho_active': '',
    'rho_executed': '',
    'flops': 'FLOPs',
    'flops_executed': 'executed',
    'cost': '',
    'cost_executed': 'cost executed',
    'params_total': 'params',
    'params_active': 'active',
    'bytes': '',
}
NOTE = 'cost: FLOPs over those of the same_width twin'


def row_value(value: Any) -> Any:
    """A swept value as a row holds it: a number or a string."""
    return value if isinstance(value, int | float) else str(value)


def row(config: str, key: str, value: Any, leverage: Leverage) -> Row:
    """The numbers of one config; `cost` is its FLOPs divided by those of the same_width twin."""
    twin = leverage.sum('flops_twin')
    return {
        'config': config,
        'key': key,
        'value': value,
        'rho_place': leverage.rho_place,
        'rho_active': leverage.rho_active,
        'rho_executed': leverage.rho_executed,
        'flops': leverage.flops,
        'flops_executed': leverage.flops_executed,
        'flops_twin': twin,
        'cost': leverage.flops / twin,
        'cost_executed': leverage.flops_executed / twin,
        'params_total': leverage.params_total,
        'params_active': leverage.params_active,
        'bytes': leverage.sum('bytes'),
        'bytes_active': leverage.sum('bytes_active'),
        'bytes_buffers': leverage.sum('bytes_buffers'),
    }


def text(rows: Sequence[Row]) -> list[str]:
    """The rows as lines of a table."""

    def cell(name: str, value: Any) -> str:
        if isinstance(value, float):
            return f'{value:.4f}'
        return f'{value:,}' if name.startswith('params') else table.si(value)

    head = ('config', rows[0]['key'], *[title or name for name, title in _TABLE.items()])
    return table.aligned(
        [head, *[(r['config'], str(r['value']), *[cell(n, r[n]) for n in _TABLE]) for r in rows]]
    )


def write_csv(path: str, rows: Sequence[Row]) -> None:
    with open(path, 'w', newline='', encoding='utf-8') as f:
        out = csv.DictWriter(f, list(rows[0]), lineterminator='\n')
        out.writeheader()
        out.writerows(
            {name: shown(value) if isinstance(value, str) else value for name, value in row.items()}
            for row in rows
        )


def write_svg(path: str, rows: Sequence[Row], rho: str) -> None:
    """Plots `rho` against the value, a curve per config. Values are spaced evenly unless all are
    numbers."""
    curves: dict[str, list[Row]] = {}
    for r in rows:
        curves.setdefault(r['config'], []).append(r)
    values = list(dict.fromkeys(r['value'] for r in rows))
    numbers = all(isinstance(v, int | float) and np.isfinite(v) for v in values)
    position = {v: v if numbers else i for i, v in enumerate(values)}

    def paint(axes: Axes) -> None:
        for i, (name, points) in enumerate(curves.items()):
            points = sorted(points, key=lambda r: position[r['value']])
            axes.plot(
                [position[r['value']] for r in points],
                [r[rho] for r in points],
                marker='osD^vPX*'[i % 8],
                markersize=4,
                color=palette.expert(i),
                label=name,
            )
        if numbers and min(values) > 0 and max(values) >= 8 * min(values):
            axes.set_xscale('log')
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticks([position[v] for v in values], [str(v) for v in values])
        figure.write_ticks(axes.yaxis, formats.share)
        axes.set_ylim(bottom=0)
        axes.set_xlabel(rows[0]['key'], loc='right')
        axes.set_ylabel(rho)
        axes.legend(frameon=False, fontsize=10, labelcolor='linecolor')

    label = (
        f'{rho} against {rows[0]["key"]}: '
        + '; '.join(
            f'{name} from {points[0][rho]:.3f} to {points[-1][rho]:.3f}'
            for name, points in curves.items()
        )
        + '.'
    )
    picture = figure.draw(paint, label, width=560, height=320, left=64, bottom=40)
    with open(path, 'w', encoding='utf-8') as f:
        f.write(figure.alone(picture))
