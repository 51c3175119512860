"""Prints which share of the choices runs dropped, for a dense twin that drops as many.

    python -m moe_vision.report.drops --workdir=W [--workdir=W2 ...] [--points=9]

The twin `same_measured_drops` reads `model.measured_drops`: the shares at equally spaced moments of
training, then the share in evaluation. They are means over the runs and over their routed layers,
and each moment takes the rows that are nearest to it.
"""

import sys
from collections.abc import Sequence

import numpy as np

from moe_vision.common.command_line import Parser, exit_code
from moe_vision.common.errors import UserError
from moe_vision.common.json_values import as_dict, number, value_at
from moe_vision.report import read


def measured(run: read.Run, points: int) -> list[float]:
    """The shares at `points` moments from the first to the last step, and that on the test set.

    Raises:
      UserError: the run has not recorded them.
    """
    rows = [(row['step'], _mean_rate(as_dict(row.get('layers')))) for row in run.split('train')]
    rows = [(step, rate) for step, rate in rows if np.isfinite(rate)]
    tested = _mean_rate(as_dict(value_at(run.evaluation, 'layers')))
    if not rows or not np.isfinite(tested):
        raise UserError(
            f"'{run.path}' holds no drop rates of training and of the test set; give a finished "
            'run of a network that routes and can drop.'
        )
    steps, rates = map(np.array, zip(*rows, strict=True))
    moment = np.linspace(0, 1, points)
    near = np.abs(steps[:, None] / steps.max() - moment).argmin(1)  # the moment of each row
    known = np.unique(near)
    means = [rates[near == i].mean() for i in known]
    return [*np.interp(moment, moment[known], means).tolist(), float(tested)]


def _mean_rate(layers: dict) -> float:
    rates = [number(as_dict(layer).get('drop_rate')) for layer in layers.values()]
    return float(np.mean(rates)) if rates else float('nan')


def main(arguments: Sequence[str]) -> int:
    """Runs the command; returns the exit code."""
    return exit_code(lambda: _run(arguments))


def _run(arguments: Sequence[str]) -> int:
    parser = Parser('moe_vision.report.drops', __doc__)
    parser.add_argument(
        '--workdir', required=True, action='append', metavar='W', help='folder of a finished run'
    )
    parser.add_argument(
        '--points', type=int, default=9, metavar='N', help='moments of training, 1 or more'
    )
    args = parser.parse(arguments)
    if args.points < 1:
        raise UserError(f'--points is {args.points}; give 1 or more.')
    shares = np.mean([measured(read.load(w), args.points) for w in args.workdir], axis=0)
    print(f'--config.model.measured_drops={",".join(f"{share:.4f}" for share in shares)}')
    return 0


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
