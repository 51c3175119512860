"""Predicts the classes of image files with the network of a trained run.

    python -m moe_vision.predict --workdir=W image1.jpg folder/
    python -m moe_vision.predict --workdir=W --batch_size=64 --json folder/

Prints the most probable classes of each image, and the experts to which each routed layer sent it.
A folder stands for all images in it and below it. Files are transformed as in the run's own
evaluation; a file that cannot be read, or is no regular file, is named and skipped. Every image is
predicted as if it were alone (see `moe_vision.predict.model`), so the batch size changes the last
digits at most.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from input_pipeline import files, image_size, walk
from moe_vision.common.command_line import Parser, printable
from moe_vision.common.errors import UserError
from moe_vision.common.paths import expanded
from moe_vision.config import check as config_lib
from moe_vision.config import registry, trust
from moe_vision.config.command_line import add_weights, exit_code
from moe_vision.config.places import place_at

if TYPE_CHECKING:
    import numpy as np

    from moe_vision.predict.model import Model, Prediction

_MOST = 100_000  # images in memory at once, as for eval.batch_size
_SHOWN = 4  # print at most this many experts of a layer; patches may go to many


def main(arguments: Sequence[str]) -> int:
    """Runs the command; returns the exit code, which is also 2 if no image could be read."""
    return exit_code(lambda: _run(arguments))


def _run(arguments: Sequence[str]) -> int:
    args = _parse(arguments)
    trust.allow(args.trust)
    paths = list(_files(args.images))
    config_lib.load(args.workdir)  # a folder without a run is refused before jax is imported
    from moe_vision.predict.model import load
    from moe_vision.run_folder import abandoned

    abandoned.hide()

    model = load(args.workdir, args.best)
    _note(model)
    predicted = _predict(model, paths, args)
    if skipped := len(paths) - predicted:
        print(f'{skipped} of {len(paths)} files skipped', file=sys.stderr)
    return 0 if predicted else 2


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = Parser('moe_vision.predict', __doc__)
    parser.add_argument(
        '--workdir', type=expanded, required=True, metavar='W', help='folder of the run'
    )
    parser.add_argument(
        '--batch_size',
        type=int,
        default=1,
        metavar='N',
        help='how many images are computed at once (default: 1)',
    )
    parser.add_argument(
        '--top',
        type=int,
        default=5,
        metavar='N',
        help='how many classes are printed for each image (default: 5)',
    )
    add_weights(parser)
    parser.add_argument('--json', action='store_true', help='print a JSON object for each image')
    parser.add_argument('images', type=expanded, nargs='+', help='image files, or folders of them')
    args = parser.parse(arguments)
    for name in ('batch_size', 'top'):
        if getattr(args, name) < 1:
            raise UserError(f'--{name} is {getattr(args, name)}; it must be positive.')
    if args.batch_size > _MOST:
        raise UserError(f'--batch_size is {args.batch_size}; it must be at most {_MOST:,}.')
    return args


def _files(paths: Iterable[str]) -> Iterator[str]:
    """The paths as given, and for a folder the visible files below it, in alphabetical order."""
    for path in paths:
        if not os.path.isdir(path):
            yield path
            continue
        files_there = walk.files_below(path, _skip)
        if not files_there:
            raise UserError(f"folder '{path}' holds no images; give one with images below it.")
        yield from files_there


def _skip(path: str, reason: str) -> None:
    print(printable(f"skipping '{path}': {reason}"), file=sys.stderr)


def _note(model: 'Model') -> None:
    """Prints a note if the network cannot treat an image alone as it did in training."""
    from moe_vision.layers.moe import make_router

    trained, moe = model.config.model, model.config.model.moe
    if moe.placement == 'none' or trained.twin != 'none':
        return
    router = make_router(moe.router, moe.router_args, place_at(trained, 0))
    compares = router.compares or registry.keeps_capacity(moe.router)
    if compares and moe.group_size > model.network.model.moe.group_size:
        print(
            'note: what this network does to an image depends on the others of its group; here '
            'each image is a group of its own, which is not how it was trained and scored',
            file=sys.stderr,
        )


def _read(model: 'Model', paths: Iterable[str]) -> Iterator[tuple[str, 'np.ndarray']]:
    """Path and pixels of each file; a file that cannot be read is named on standard error."""
    for path in paths:
        try:
            data = files.read(path, files.MAX_IMAGE_FILE)
            image = model.image(data)
            reason = image_size.reason(data) or 'it cannot be decoded'
        except OSError as e:
            image, reason = None, e.strerror or str(e)
        if image is None:
            _skip(path, reason)
        else:
            yield path, image


def _predict(model: 'Model', paths: Sequence[str], args: argparse.Namespace) -> int:
    """Prints the prediction of each file; returns how many files could be read."""
    import numpy as np

    predicted, waiting = 0, list[tuple[str, np.ndarray]]()

    def print_batch() -> int:
        pixels = np.zeros((args.batch_size, *model.info.image_shape), np.uint8)
        pixels[: len(waiting)] = [image for _, image in waiting]
        prediction = model(pixels, predicted)
        for i, (path, _) in enumerate(waiting):
            row = {'file': path} | _row(model, prediction, i, args.top)
            print(json.dumps(row) if args.json else _lines(row), flush=True)
        return len(waiting)

    for path_and_pixels in _read(model, paths):
        waiting.append(path_and_pixels)
        if len(waiting) == args.batch_size:
            predicted += print_batch()
            waiting.clear()
    return predicted + (print_batch() if waiting else 0)


def _row(model: 'Model', prediction: 'Prediction', i: int, top: int) -> dict[str, Any]:
    """The prediction of image i, as values that JSON can hold."""
    p = prediction.probabilities[i]
    order = (-p).argsort(kind='stable')[:top]
    classes = [
        {'class': model.info.class_names[c], 'label': int(c), 'probability': float(p[c])}
        for c in order
    ]
    return {
        'classes': classes,
        'layers': {name: _experts(layer, i) for name, layer in prediction.layers.items()},
    }


def _experts(layer: dict[str, 'np.ndarray'], i: int) -> list[dict[str, Any]]:
    """The experts of image i in a layer, largest gate first.

    'tokens' is the share of the image's tokens that went to the expert (1 where whole images are
    routed), 'gate' the expert's mean gate over all tokens of the image.
    """
    expert, gate, kept = (layer[n][i] for n in ('expert', 'gate', 'kept'))  # [T, K]
    rows = []
    for e in sorted(set(expert[kept].tolist())):
        chosen = kept & (expert == e)
        rows.append(
            {
                'expert': e,
                'tokens': float(chosen.any(-1).mean()),
                'gate': float((gate * chosen).sum(-1).mean()),
            }
        )
    return sorted(rows, key=lambda r: -r['gate'])


def _lines(row: dict[str, Any]) -> str:
    """A row in several lines, for people."""
    name = printable(os.fsencode(row['file']).decode('utf-8', 'replace'))  # it may be no UTF-8
    lines = [name, *(f'  {c["probability"]:7.2%}  {c["class"]}' for c in row['classes'])]
    for name, experts in row['layers'].items():
        routes_patches = any(0 < r['tokens'] < 1 for r in experts)
        each = [
            f'expert {r["expert"]} (gate {r["gate"]:.3f}'
            + (f', {r["tokens"]:.0%} of the tokens)' if routes_patches else ')')
            for r in experts
        ]
        more = [f'{len(each) - _SHOWN} more'] if len(each) > _SHOWN else []
        lines.append(f'  {name}: ' + (', '.join(each[:_SHOWN] + more) or 'no expert'))
    return '\n'.join(lines)


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
