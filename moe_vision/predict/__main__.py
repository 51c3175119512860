"""What a trained run says of image files.

    python -m moe_vision.predict --workdir=W image1.jpg folder/
    python -m moe_vision.predict --workdir=W --batch_size=64 --json folder/

Prints the classes with the highest probabilities, and of each routed layer the experts that the
image went to. A folder stands for all the images below it. Files go through the transform of the
run's own evaluation; those that cannot be read are named and skipped. Every image is predicted as
if it were alone (see `moe_vision.predict.model`): the batch size changes the last digits at most.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from input_pipeline import DataError
from moe_vision.common.errors import UserError
from moe_vision.config import check as config_lib
from moe_vision.config import trust

if TYPE_CHECKING:
    import numpy as np

    from moe_vision.predict.model import Model, Prediction

_SUFFIXES = ('.jpg', '.jpeg', '.png', '.webp', '.bmp', '.tif', '.tiff')
_SHOWN = 4  # experts of a layer, where patches go to many


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f'{message}; write: python -m moe_vision.predict --workdir=W IMAGES')


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit code: 2 where no image was read."""
    try:
        given = _parse(arguments)
        trust.allow(given.trust)
        files = list(_files(given.images))
        config_lib.load(given.workdir)  # is it a run, before jax is imported
        from moe_vision.predict.model import load

        model = load(given.workdir, given.best)
        _note(model)
        told = _predict(model, files, given)
    except (UserError, DataError) as e:
        print('error:', ' '.join(str(e).split()), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print('interrupted', file=sys.stderr)
        return 130
    skipped = len(files) - told
    if skipped:
        print(f'{skipped} of {len(files)} files skipped', file=sys.stderr)
    return 0 if told else 2


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = _Parser(prog='python -m moe_vision.predict', description=__doc__, allow_abbrev=False,
                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--workdir', required=True, help='folder of the run')
    parser.add_argument('--batch_size', type=int, default=1, help='images at once')
    parser.add_argument('--top', type=int, default=5, help='classes to print')
    parser.add_argument('--best', action='store_true',
                        help='the weights that were best on validation, not the last')
    parser.add_argument('--trust', default='',
                        help="modules of your own that the run's config names, such as my.routers")
    parser.add_argument('--json', action='store_true', help='a JSON object for each image')
    parser.add_argument('images', nargs='+', help='image files, or folders of them')
    given = parser.parse_args(arguments)
    for name in ('batch_size', 'top'):
        if getattr(given, name) < 1:
            raise UserError(f'--{name} is {getattr(given, name)}; it must be positive.')
    return given


def _files(paths: Iterable[str]) -> Iterator[str]:
    """The paths as given, and for a folder the image files below it, in alphabetical order."""
    for path in paths:
        if not os.path.isdir(path):
            yield path
            continue
        found = []
        for folder, _, names in os.walk(path, onerror=_skip):
            found += [os.path.join(folder, n) for n in names
                      if n.lower().endswith(_SUFFIXES) and not n.startswith('.')]
        if not found:
            raise UserError(f"folder '{path}' holds no images ({', '.join(_SUFFIXES)}).")
        yield from sorted(found)


def _skip(error: OSError) -> None:
    print(f"skipping '{error.filename}': {error.strerror}", file=sys.stderr)


def _note(model: 'Model') -> None:
    router, args = model.config.model.moe.router, model.config.model.moe.router_args
    if router == 'soft' and args.axis == 'batch' and model.config.model.twin == 'none':
        print('note: this network mixes the images of a group; here each image is a group of its '
              'own, which is not how it was trained and scored', file=sys.stderr)


def _read(model: 'Model', files: Iterable[str]) -> Iterator[tuple[str, 'np.ndarray']]:
    """The pixels of each file; one that cannot be read is named instead."""
    for path in files:
        try:
            with open(path, 'rb') as f:
                image = model.image(f.read())
            why = 'it cannot be decoded'
        except OSError as e:
            image, why = None, e.strerror or str(e)
        if image is None:
            print(f"skipping '{path}': {why}", file=sys.stderr)
        else:
            yield path, image


def _predict(model: 'Model', files: Sequence[str], given: argparse.Namespace) -> int:
    """Prints what is said of each file; returns how many were read."""
    import numpy as np

    told, waiting = 0, list[tuple[str, np.ndarray]]()

    def tell() -> int:
        pixels = np.zeros((given.batch_size, *model.info.image_shape), np.uint8)
        pixels[:len(waiting)] = [image for _, image in waiting]
        found = model(pixels, told)
        for i, (path, _) in enumerate(waiting):
            row = {'file': path} | _row(model, found, i, given.top)
            print(json.dumps(row) if given.json else _text(row), flush=True)
        return len(waiting)

    for item in _read(model, files):
        waiting.append(item)
        if len(waiting) == given.batch_size:
            told += tell()
            waiting.clear()
    return told + (tell() if waiting else 0)


def _row(model: 'Model', found: 'Prediction', i: int, top: int) -> dict[str, Any]:
    """What is said of image i, as JSON can hold it."""
    p = found.probabilities[i]
    order = (-p).argsort(kind='stable')[:top]
    classes = [{'class': model.info.class_names[c], 'label': int(c), 'probability': float(p[c])}
               for c in order]
    return {'classes': classes, 'layers': {name: _experts(of, i) for name, of in
                                           found.layers.items()}}


def _experts(layer: dict[str, 'np.ndarray'], i: int) -> list[dict[str, Any]]:
    """The experts of image i in a layer, those with the largest gates first.

    'tokens' is the share of the image's tokens that went to the expert (1 where images are routed),
    'gate' its mean gate over all of them.
    """
    expert, gate, kept = (layer[n][i] for n in ('expert', 'gate', 'kept'))  # [T, K]
    rows = []
    for e in sorted(set(expert[kept].tolist())):
        mine = kept & (expert == e)
        rows.append({'expert': e, 'tokens': float(mine.any(-1).mean()),
                     'gate': float((gate * mine).sum(-1).mean())})
    return sorted(rows, key=lambda r: -r['gate'])


def _text(row: dict[str, Any]) -> str:
    """The row as lines."""
    lines = [row['file'], *(f'  {c["probability"]:7.2%}  {c["class"]}' for c in row['classes'])]
    for name, experts in row['layers'].items():
        of_patches = any(0 < r['tokens'] < 1 for r in experts)
        each = [f'expert {r["expert"]} (gate {r["gate"]:.3f}'
                + (f', {r["tokens"]:.0%} of the tokens)' if of_patches else ')') for r in experts]
        more = [f'{len(each) - _SHOWN} more'] if len(each) > _SHOWN else []
        lines.append(f'  {name}: ' + (', '.join(each[:_SHOWN] + more) or 'no expert'))
    return '\n'.join(lines)


if __name__ == '__main__':
    sys.exit(main())
