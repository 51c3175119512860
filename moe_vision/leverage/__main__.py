r"""Prints what a config computes: its FLOPs, its parameters, and the share that is routed (rho).

    python -m moe_vision.leverage --config=configs/digits_k2.py [--training]
    python -m moe_vision.leverage --config=a.py,b.py --sweep=model.moe.hidden=64,256,1024 --out=DIR
    python -m moe_vision.leverage --config=a.py --solve=model.moe.hidden --target_rho=0.2 \
        --multiple_of=64

Nothing is trained and no data are read. Any key of a config can be set: `--config.model.moe.k=1`.
"""

import dataclasses
import json
import os
import sys
import time
from collections.abc import Sequence
from typing import Any

import input_pipeline
from input_pipeline import DataError
from moe_vision.common.errors import UserError
from moe_vision.common.json_values import finite
from moe_vision.config import source
from moe_vision.config.command_line import exit_code
from moe_vision.config.schema import Config
from moe_vision.leverage.options import Request, parse

_PATIENCE = 2.0  # seconds after which each measurement of --solve and --sweep is told on stderr


def main(arguments: Sequence[str]) -> int:
    """Runs the command; returns the exit code."""
    return exit_code(lambda: _run(arguments))


def _run(arguments: Sequence[str]) -> int:
    request = parse(arguments, __doc__)
    answer = _sweep if request.sweep else _solve if request.solve else _tables
    lines, records = answer(request)
    print(json.dumps(finite(records), indent=2) if request.json else '\n'.join(lines))
    return 0


def _tables(request: Request) -> tuple[list[str], Any]:
    """A table of the blocks of each config, as lines and as values that JSON can hold."""
    from moe_vision.leverage import measure, measure_step, sweep, table, twins

    lines, records = [], []
    for file in request.files:
        config = request.configs[file, None]
        info = _info(config)
        cost, its_twins = measure(config, info), twins(config, info)
        step = measure_step(config, info, cost) if request.training else None
        h, w, c = info.image_shape
        lines += [
            '',
            f'{file}: {config.model.name}, {table.network(config)}; '
            f'{info.name}, {h}×{w}×{c}, {info.num_classes} classes; {config.model.dtype}',
            '',
            *table.text(config, cost),
            *([table.step(cost, step)] if step else []),
            *table.twins(cost, its_twins),
        ]
        numbers = sweep.row(file, '', None, cost)
        records.append(
            {k: v for k, v in numbers.items() if k not in ('key', 'value')}
            | {
                'blocks': [dataclasses.asdict(b) for b in cost.blocks],
                'capacity': {n: dataclasses.asdict(x) for n, x in cost.capacities.items()},
                'twins': {
                    t.name: {
                        'flops': t.flops,
                        'params': t.params,
                        'cost': cost.flops / t.flops,
                        'cost_executed': cost.flops_executed / t.flops,
                    }
                    if not t.refused
                    else {'refused': t.refused}
                    for t in its_twins
                },
            }
            | (
                {'training': dataclasses.asdict(step) | {'rho_train': step.rho_train}}
                if step
                else {}
            )
        )
    return lines[1:], records


def _sweep(request: Request) -> tuple[list[str], Any]:
    """A row for each config and swept value; also writes sweep.csv and sweep.svg."""
    from moe_vision.leverage import measure, sweep

    rows, begin = [], time.monotonic()
    for (file, value), config in request.configs.items():
        shown = sweep.row_value(source.literal(value))
        rows.append(sweep.row(file, request.sweep, shown, measure(config, _info(config))))
        if time.monotonic() - begin > _PATIENCE:
            told = f'{file}: {request.sweep}={value} gives {rows[-1][request.rho]:.4f}'
            print(told, file=sys.stderr, flush=True)
    paths = [os.path.join(request.out, f'sweep.{kind}') for kind in ('csv', 'svg')]
    try:
        os.makedirs(request.out, exist_ok=True)
        sweep.write_csv(paths[0], rows)
        sweep.write_svg(paths[1], rows, request.rho)
    except OSError as e:
        raise UserError(
            f"--out is '{request.out}', which cannot be written: {e.strerror}; give a "
            'folder of your own.'
        ) from e
    return [*sweep.text(rows), sweep.NOTE, '', *[f'wrote {p}' for p in paths]], rows


def _solve(request: Request) -> tuple[list[str], Any]:
    """A row for each config, at the value of the key that was found."""
    from moe_vision.leverage import measure, solve, sweep

    rows, begin = [], time.monotonic()
    for file in request.files:
        measured: dict[int, sweep.Row] = {}

        def allowed(n: int, file: str = file) -> bool:
            try:
                return bool(request.config_at(file, n))
            except (UserError, DataError):
                return False

        def share(n: int, file: str = file, measured: dict = measured) -> solve.Share:
            config = request.config_at(file, n)
            cost = measure(config, _info(config))
            measured[n] = sweep.row(file, request.solve, n, cost)
            if time.monotonic() - begin > _PATIENCE:
                told = f'{file}: {request.solve}={n} gives {measured[n][request.rho]:.4f}'
                print(told, file=sys.stderr, flush=True)
            return cost.share(request.rho)

        value = solve.solve(
            share,
            allowed,
            request.target_rho,
            request.solve,
            request.rho,
            start=request.start[file],
            unit=request.multiple_of,
        )
        if value not in measured:
            share(value)
        rows.append(measured[value] | {'target_rho': request.target_rho})
    lines = [
        f'{r["config"]}: {request.solve}={r["value"]} gives {request.rho} '
        f'{r[request.rho]:.4f} (asked {request.target_rho:g})'
        for r in rows
    ]
    return [*lines, '', *sweep.text(rows), sweep.NOTE], rows


def _info(config: Config) -> input_pipeline.DatasetInfo:
    return input_pipeline.info(config.dataset)


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
