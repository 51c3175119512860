r"""Are two trained networks in one basin? The loss along the straight line between their weights.

    python -m moe_vision.predict.barrier --workdirs=W1,W2 --split=validation --points=11 --align

At each point a between 0 and 1 the network has the weights (1 - a) W1 + a W2. The barrier is the
most by which its loss lies above the straight line between the losses of both ends (linear mode
connectivity: Frankle et al. 2020, arXiv 1912.05671). --align first puts hidden units and experts of
W2 into the order of those of W1, which changes no output of W2: what is left of the barrier is not
due to that order. Router state is mixed as the weights are; so are running averages of batch norm,
which fit the ends and not the points between them.

Axes: B images.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from moe_vision.common.command_line import Parser
from moe_vision.common.errors import UserError
from moe_vision.common.paths import expanded
from moe_vision.config import check as config_lib
from moe_vision.config import rules, trust
from moe_vision.config.command_line import add_weights, exit_code
from moe_vision.predict import flags


def barrier(points: Sequence[float], losses: Sequence[float]) -> float:
    """The most by which a loss lies above the line between the first and the last; at least 0.

    Args:
      points: from 0 to 1, rising. losses: at each of them.
    """
    a, loss = np.asarray(points), np.asarray(losses)
    return float(np.max(loss - (1 - a) * loss[0] - a * loss[-1]))


def along(
    first: Any, second: Any, images: np.ndarray, labels: np.ndarray, points: Sequence[float]
) -> list[dict[str, float]]:
    """Loss and accuracy on the line between two networks of one form, a row for each point.

    Args:
      first: a `predict.model.Model`. second: variables as its own.
      images: uint8 [B, H, W, C].
      labels: [B].
    """
    import jax
    import jax.numpy as jnp

    @jax.jit
    def at(a: Any, ours: Any, theirs: Any) -> Any:
        def mixed(x: Any, y: Any) -> Any:
            return (1 - a) * x + a * y if jnp.issubdtype(x.dtype, jnp.floating) else x

        logits = first.apply(jax.tree.map(mixed, ours, theirs), images)[0]
        of_label = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], -1)
        return -of_label.mean(), (logits.argmax(-1) == labels).mean()

    rows = []
    for a in points:
        loss, accuracy = jax.device_get(at(np.float32(a), first.variables, second))
        rows.append({'point': float(a), 'loss': float(loss), 'accuracy': float(accuracy)})
    return rows


def put_in_order(first: Any, second: Any) -> Any:
    """The variables of a second model, with hidden units and experts in the order of the first's.

    Raises:
      UserError: its blocks are not of a type whose hidden units can be reordered.
    """
    import jax

    from moe_vision.surgery.align import aligned
    from moe_vision.surgery.state import leaves, replaced

    ours, trees = jax.device_get((first.variables, second.variables))
    params, state = aligned(
        first.config,
        leaves(ours['params']),
        leaves(trees['params']),
        leaves(trees['router_state']),
    )
    moved = {
        'params': replaced(trees['params'], params),
        'router_state': replaced(trees['router_state'], state),
    }
    return {**trees, **moved}


def main(arguments: Sequence[str]) -> int:
    """Runs the command; returns the exit code."""
    return exit_code(lambda: _run(arguments))


def _run(arguments: Sequence[str]) -> int:
    args = _parse(arguments)
    trust.allow(args.trust)
    configs = [config_lib.load(folder) for folder in args.workdirs]
    info = rules.check_data(configs[0], reads=True, split=args.split)
    from moe_vision.predict.model import load
    from moe_vision.run_folder import abandoned

    abandoned.hide()

    first, second = (load(folder, args.best) for folder in args.workdirs)
    _one_form(args.workdirs, first, second)
    variables = put_in_order(first, second) if args.align else second.variables
    batch = flags.first_images(configs[0], info, args.split, args.images)
    size = len(batch['label'])
    points = np.linspace(0, 1, args.points).tolist()
    rows = along(first, variables, batch['image'], batch['label'], points)
    height = barrier(points, [r['loss'] for r in rows])
    if args.json:
        print(
            json.dumps({'images': size, 'aligned': args.align, 'points': rows, 'barrier': height})
        )
        return 0
    print(f'{size} images of {args.split}{", aligned" if args.align else ""}')
    for r in rows:
        print(f'{r["point"]:.2f}  loss {r["loss"]:.4f}  accuracy {r["accuracy"]:.4f}')
    print(f'barrier: {height:.4f} above the line between both ends')
    return 0


def _one_form(folders: Sequence[str], first: Any, second: Any) -> None:
    """Raises UserError unless both networks have the same arrays and classes."""
    from moe_vision.surgery.state import form, leaves

    ours, theirs = (
        {path: form(x) for path, x in leaves(m.variables).items()} for m in (first, second)
    )
    other = next((p for p in {**ours, **theirs} if ours.get(p) != theirs.get(p)), None)
    if other is not None:
        raise UserError(
            f"'{other}' is {ours.get(other, 'missing')} in '{folders[0]}' and "
            f"{theirs.get(other, 'missing')} in '{folders[1]}'; give two runs of one network."
        )
    if first.info.class_names != second.info.class_names:
        raise UserError(
            f"'{folders[0]}' and '{folders[1]}' have other classes; give two runs of one data set."
        )


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = Parser('moe_vision.predict.barrier', __doc__)
    parser.add_argument('--workdirs', required=True, metavar='W1,W2', help='folders of two runs')
    flags.add_images(parser, 1000)
    parser.add_argument(
        '--points', type=int, default=11, metavar='N', help='places on the line (default: 11)'
    )
    parser.add_argument(
        '--align', action='store_true', help='put hidden units and experts in one order first'
    )
    add_weights(parser)
    parser.add_argument('--json', action='store_true', help='print JSON')
    args = parser.parse(arguments)
    if args.images < 1:
        raise UserError(f'--images is {args.images}; it must be positive.')
    if args.points < 3:
        raise UserError(f'--points is {args.points}; give 3 or more.')
    args.workdirs = [expanded(w) for w in args.workdirs.split(',') if w]
    if len(args.workdirs) != 2:
        raise UserError(f'--workdirs names {len(args.workdirs)} folders; give two: W1,W2.')
    return args


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
