"""Prepares a data set: python -m input_pipeline.prepare --dataset=NAME --data_dir=D [--source=PATH]

Reads the published files from a local path (it downloads nothing), writes array_records into a
folder `unfinished_*` and renames it at the end. After an interruption, the same command keeps the
finished record files if the builder lists its source files (`Contents.files`), or starts again.
"""

from __future__ import annotations

import argparse
import collections
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from input_pipeline import files, metadata
from input_pipeline.builder import Builder
from input_pipeline.files import printable
from input_pipeline.published import Source
from input_pipeline.registry import DATASETS, find
from input_pipeline.types import DataError, Report, listed

_MAX_FOLDERS = 100  # that are named if they are not read; prepared.json lists all


class _Progress(Report):
    """Prints how much is done, how fast, and the time left, on standard error."""

    def __init__(self, sizes: dict[str, int]) -> None:
        self._total = sum(sizes.values())
        self._written = self._kept = 0
        self._of_split: dict[str, int] = collections.defaultdict(int)
        self._start = self._last = time.monotonic()
        self._terminal = sys.stderr.isatty()
        self._open = False  # whether the cursor of a terminal stands in a line of progress

    def images(self, split: str, more: int) -> None:
        self._written += more
        self._of_split[split] += more
        now = time.monotonic()
        if self._due(now):
            rate = self._written / max(now - self._start, 1e-9)
            count = self._written + self._kept
            line = f'{split}: {self._of_split[split]:,} images, {rate:,.0f}/s'
            if self._total > count:
                left = int((self._total - count) / max(rate, 1e-9))
                line += f', {100 * count / self._total:.1f} % of all'
                line += f', {left // 60}:{left % 60:02d} left'
            self._show(line)

    def kept(self, split: str, images: int) -> None:
        if not self._kept:
            self.warn('continuing where an earlier preparation stopped')
        self._kept += images
        self._of_split[split] += images
        self._start = time.monotonic()

    def bytes(self, name: str, done: int, size: int) -> None:
        now = time.monotonic()
        if self._due(now) and done < size:
            self._show(f'comparing {name} with the published file: {100 * done / size:.1f} %')
        if done == size:
            self._start = now  # images/s must not count this time

    def warn(self, message: str) -> None:
        self.clear()
        print(message, file=sys.stderr, flush=True)

    def _due(self, now: float) -> bool:
        if now - self._last < (0.2 if self._terminal else 5.0):
            return False
        self._last = now
        return True

    def _show(self, line: str) -> None:
        self._open = self._terminal
        end = '' if self._terminal else '\n'
        print(f'\r{line}   ' if self._terminal else line, end=end, file=sys.stderr, flush=True)

    def clear(self) -> None:
        """Ends the line of progress on a terminal."""
        if self._open:
            print(file=sys.stderr)
        self._open = False


def _find_source(builder: Builder, source: str) -> Path:
    """Returns the path to read: `source`, or else the first of the builder's usual places.

    Raises:
        DataError: there is no such path; the message says what the builder wants.
    """
    if source:
        path = Path(files.expanded(source))
        if not path.exists():
            raise DataError(f'--source={source} does not exist; wanted: {builder.wants}.')
        return path
    if builder.embedded:
        return Path()
    for place in builder.places:
        if (path := Path(files.expanded(place))).exists():
            return path
    tried = f' Looked in {", ".join(builder.places)}.' if builder.places else ''
    raise DataError(f"'{builder.name}' needs --source=PATH: {builder.wants}.{tried}")


def _interrupt(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


def prepare(dataset: str, data_dir: str, source: str = '', *, overwrite: bool = False) -> str:
    """Prepares a set and returns a line that describes it, and a line for each warning.

    Args:
        dataset: a key of DATASETS or 'package.module:Builder'.
        data_dir: where prepared sets live; '' is tfds' default.
        source: local path of the published files; '' tries the builder's usual places.
        overwrite: replace a set that is already prepared.

    Raises:
        DataError: unknown set, a source that cannot be used, the set is already prepared from
            another source, or data_dir cannot be written.
    """
    builder = find(dataset)
    if source and builder.embedded:
        raise DataError(f"'{dataset}' comes with its images and reads no --source; leave it out.")
    if not overwrite and (path := metadata.locate(builder, data_dir)):
        known = metadata.facts(builder, data_dir)
        if source and known.source and not _same(source, known.source):
            raise DataError(
                f'{path} is already prepared from {known.source}, not from '
                f'{printable(_absolute(source))}; '
                'give another --data_dir, or --overwrite to replace it.'
            )
        origin = f' from {known.source}' if known.source else ''
        return (
            f'{path} is already prepared{origin}: {_sizes(known)}, digest {_short(known)} '
            '(--overwrite prepares it again).'
        )
    from input_pipeline import storage

    progress = _Progress(builder.sizes)
    try:
        path = storage.write(
            builder, _find_source(builder, source), data_dir, report=progress, overwrite=overwrite
        )
    finally:
        progress.clear()
    known = metadata.facts(builder, data_dir)
    line = f'{path}: {_sizes(known)}, {known.num_classes} classes, digest {_short(known)}.'
    return '\n'.join([line, *(f'WARNING: {w}.' for w in _warnings(builder, known))])


def _absolute(source: str) -> Path:
    return Path(source).expanduser().resolve()


def _same(source: str, before: str) -> bool:
    """Whether two paths name one place, also if a link leads to it."""
    try:
        return os.path.samefile(_absolute(source), before)
    except OSError:
        return printable(_absolute(source)) == before


def _warnings(builder: Builder, known: metadata.Facts) -> Iterator[str]:
    """Yields what is wrong with a set that was just prepared."""
    if builder.sizes and known.sizes != builder.sizes:
        published = ', '.join(f'{k} {v:,}' for k, v in builder.sizes.items())
        yield f'the published set has {published}'
    for source in known.prepared['sources']:
        if warning := Source(**source).warning():
            yield warning
    for split, names in known.prepared['unreadable'].items():
        if names:
            yield (
                f'{len(names)} of {split} cannot be decoded ({listed(names)}): training masks such '
                'images, and a run that would be scored on them is refused'
            )
    for why, names in known.prepared['left_out'].items():
        folders = [name for name in names if name.endswith('/')]
        files = [name for name in names if not name.endswith('/')]
        for kind, some, most in (('folder', folders, _MAX_FOLDERS), ('file', files, 5)):
            if some:
                plural = f'{len(some):,} {kind}s are' if len(some) > 1 else f'1 {kind} is'
                yield f'{plural} left out, {why}: {listed(some, most)}'
    if known.num_classes == 1:
        yield f"there is one class, '{known.class_names[0]}', so nothing can be told apart"
    stored = {split for split, name in builder.stored.items() if known.sizes.get(name)}
    if 'test' not in stored:
        yield (
            'there is no test split, so runs are scored on '
            + ('validation' if 'validation' in stored else 'the part of train held out for it')
        )


def _short(known: metadata.Facts) -> str:
    return known.prepared.get('digest', 'unknown')[:16]


def _sizes(known: metadata.Facts) -> str:
    return ', '.join(f'{split} {size:,}' for split, size in known.sizes.items())


class _Parser(argparse.ArgumentParser):
    """A parser whose mistakes are a DataError of one line."""

    def error(self, message: str) -> NoReturn:
        raise DataError(f'{message}; {self.prog} --help shows the flags.')


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code: 2 for a mistake the user can fix."""
    parser = _Parser(
        prog='python -m input_pipeline.prepare',
        description='Prepares a data set from local files.',
        epilog='Data sets: '
        + ', '.join(DATASETS)
        + ", or 'package.module:Builder' of your own. Without --source, says which files it needs.",
    )
    parser.add_argument('--dataset', required=True, help='name of the data set')
    parser.add_argument('--data_dir', default='', help='output; default ~/tensorflow_datasets')
    parser.add_argument(
        '--source',
        default='',
        help='folder or archive to read: the published files, or your own images',
    )
    parser.add_argument('--overwrite', action='store_true', help='replace a prepared set')
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        args = parser.parse_args(argv)
        print(prepare(args.dataset, args.data_dir, args.source, overwrite=args.overwrite))
    except DataError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: '{error.filename}' cannot be used: {error.strerror}.", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print('interrupted; run the command again to continue.', file=sys.stderr)
        return 130
    return 0


if __name__ == '__main__':
    sys.exit(main())
