"""Prepares a data set: python -m input_pipeline.prepare --dataset=NAME --data_dir=D [--source=PATH]

Reads the published files from a local path (nothing is fetched), writes array_records into
a folder `unfinished_*`, and renames it at the end. After an interruption the same command goes on
with the record files that were done, where the set is large (`Contents.files`), or starts again.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from input_pipeline import metadata
from input_pipeline.builder import Builder
from input_pipeline.published import Source
from input_pipeline.registry import DATASETS, find
from input_pipeline.types import DataError, Report

_NAMED = 5  # images that cannot be decoded; all are in prepared.json


class _Progress(Report):
    """Says how much is done, how fast, and how long the rest will take, on standard error."""

    def __init__(self, sizes: dict[str, int]) -> None:
        self._total = sum(sizes.values())
        self._written = self._kept = 0
        self._start = self._last = time.monotonic()
        self._terminal = sys.stderr.isatty()
        self._open = False  # whether a line of a terminal is to be ended

    def images(self, split: str, more: int) -> None:
        self._written += more
        now = time.monotonic()
        if self._due(now):
            rate = self._written / max(now - self._start, 1e-9)
            count = self._written + self._kept
            text = f'{split}: {count:,} images, {rate:,.0f}/s'
            if self._total > count:
                left = int((self._total - count) / max(rate, 1e-9))
                text += f', {100 * count / self._total:.1f} %, {left // 60}:{left % 60:02d} left'
            self._show(text)

    def kept(self, split: str, images: int) -> None:
        if not self._kept:
            self.warn('going on where an earlier preparation stopped')
        self._kept += images
        self._start = time.monotonic()

    def bytes(self, name: str, done: int, size: int) -> None:
        now = time.monotonic()
        if self._due(now) and done < size:
            self._show(f'comparing {name} with the published file: {100 * done / size:.1f} %')
        if done == size:
            self._start = now  # of the images' rate

    def warn(self, text: str) -> None:
        self.clear()
        print(text, file=sys.stderr, flush=True)

    def _due(self, now: float) -> bool:
        if now - self._last < (0.2 if self._terminal else 5.0):
            return False
        self._last = now
        return True

    def _show(self, text: str) -> None:
        self._open = self._terminal
        end = '' if self._terminal else '\n'
        print(f'\r{text}   ' if self._terminal else text, end=end, file=sys.stderr, flush=True)

    def clear(self) -> None:
        """Ends the line of a terminal."""
        if self._open:
            print(file=sys.stderr)
        self._open = False


def _source(builder: Builder, given: str) -> Path:
    """Returns the path to read.

    Raises:
        DataError: none was given and none is found; says what is wanted and from where.
    """
    if given:
        path = Path(given).expanduser()
        if not path.exists():
            raise DataError(f'--source={given} does not exist; wanted: {builder.wants}.')
        return path
    if builder.embedded:
        return Path()
    for place in builder.places:
        if Path(place).exists():
            return Path(place)
    looked = f' Looked in {", ".join(builder.places)}.' if builder.places else ''
    raise DataError(f"'{builder.name}' needs --source=PATH: {builder.wants}.{looked}")


def _stop(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


def prepare(dataset: str, data_dir: str, source: str = '', *, overwrite: bool = False) -> str:
    """Prepares a set and returns a line that says what is there now.

    Args:
        dataset: a key of DATASETS or 'package.module:Builder'.
        data_dir: where prepared sets live; '' is tfds' default.
        source: local path of the published files; '' looks in the builder's usual places.
        overwrite: replace a set that is already prepared.

    Raises:
        DataError: unknown set, unfit source, or data_dir cannot be written.
    """
    builder = find(dataset)
    if not overwrite and (there := metadata.locate(builder, data_dir)):
        known = metadata.facts(builder, data_dir)
        return (
            f'{there} is already prepared: {_sizes(known)}, digest {_short(known)} (--overwrite '
            'makes it anew).'
        )
    from input_pipeline import storage

    progress = _Progress(builder.sizes)
    try:
        path = storage.write(
            builder, _source(builder, source), data_dir, report=progress, overwrite=overwrite
        )
    finally:
        progress.clear()
    known = metadata.facts(builder, data_dir)
    line = f'{path}: {_sizes(known)}, {known.num_classes} classes, digest {_short(known)}.'
    return ' '.join([line, *(f'WARNING: {text}.' for text in _warnings(builder, known))])


def _warnings(builder: Builder, known: metadata.Facts) -> Iterator[str]:
    """What is not as it should be with a set that was just prepared."""
    if builder.sizes and known.sizes != builder.sizes:
        published = ', '.join(f'{k} {v:,}' for k, v in builder.sizes.items())
        yield f'the published set has {published}'
    for about in known.prepared['sources']:
        if text := Source(**about).warning():
            yield text
    for split, names in known.prepared['unreadable'].items():
        if names:
            listed = ', '.join(names[:_NAMED]) + (', ...' if len(names) > _NAMED else '')
            yield (
                f'{len(names)} of {split} cannot be decoded ({listed}): training masks such '
                'images, an evaluation stops at them'
            )


def _short(known: metadata.Facts) -> str:
    return known.prepared.get('digest', 'unknown')[:16]


def _sizes(known: metadata.Facts) -> str:
    return ', '.join(f'{split} {size:,}' for split, size in known.sizes.items())


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code (2 where the user can mend it)."""
    parser = argparse.ArgumentParser(
        prog='python -m input_pipeline.prepare',
        description='Prepares a data set from local files.',
        epilog='Data sets: '
        + ', '.join(DATASETS)
        + ", or 'package.module:Builder' of your own. Without --source, says what it wants.",
    )
    parser.add_argument('--dataset', required=True, help='name of the data set')
    parser.add_argument('--data_dir', default='', help='where to; default ~/tensorflow_datasets')
    parser.add_argument('--source', default='', help='local path of the published files')
    parser.add_argument('--overwrite', action='store_true', help='replace what is prepared')
    args = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, _stop)
    try:
        print(prepare(args.dataset, args.data_dir, args.source, overwrite=args.overwrite))
    except DataError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print('interrupted; run the command again to go on.', file=sys.stderr)
        return 130
    return 0


if __name__ == '__main__':
    sys.exit(main())
