"""Writes data sets as array_records that tfds can read, and opens them."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from input_pipeline import metadata
from input_pipeline.builder import Builder, Contents, Example, Shard
from input_pipeline.files import printable
from input_pipeline.metadata import PREPARED, facts, locate, prepare_command, record_file, root
from input_pipeline.published import Source, compare
from input_pipeline.registry import find
from input_pipeline.shards import Unfinished, Written, digest, identity
from input_pipeline.types import DataError, DatasetConfig, Report, check

_INFO = 'dataset_info.json'


@contextlib.contextmanager
def _alone(parent: Path, report: Report) -> Iterator[bool]:
    """Holds a lock file so that two processes do not prepare one set at once.

    Yields whether it holds the lock: some systems and file systems have none.
    """
    parent.mkdir(parents=True, exist_ok=True)
    with (parent / '.lock').open('w') as file:
        try:
            import fcntl

            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                report.warn(f'another process is preparing {parent}; waiting for it')
                fcntl.flock(file, fcntl.LOCK_EX)
        except (ImportError, OSError):
            yield False
        else:
            yield True


def write(
    builder: Builder,
    source: Path,
    data_dir: str,
    *,
    report: Report | None = None,
    overwrite: bool = False,
) -> Path:
    """Prepares a set: writes a folder under a temporary name, then renames it.

    Args:
        builder: the set.
        source: the path that `builder.open` reads.
        data_dir: where prepared sets live; '' is tfds' default.
        report: receives the progress.
        overwrite: replace a prepared set; otherwise it is left as it is.

    Returns:
        The folder of the prepared set.

    Raises:
        DataError: the source cannot be used, or data_dir cannot be written.
    """
    report = report or Report()
    sets = root(data_dir)
    final = sets / builder.name / builder.version
    hint = ''
    try:
        with _alone(final.parent, report) as locked:
            if (final / _INFO).is_file() and not overwrite:
                return final
            if locked:  # otherwise another process may be filling one
                for stale in final.parent.glob(f'incomplete.*_{builder.version}'):
                    shutil.rmtree(stale, ignore_errors=True)
            contents = builder.open(source)
            if builder.num_classes and len(contents.class_names) != builder.num_classes:
                raise DataError(
                    f"{source} lists {len(contents.class_names)} classes, but '{builder.name}' has "
                    f'{builder.num_classes}.'
                )
            prefix = 'unfinished' if locked else f'incomplete.{os.getpid()}'
            folder = final.with_name(f'{prefix}_{builder.version}')
            if not contents.files:  # nothing tells whether the source is still the same
                shutil.rmtree(folder, ignore_errors=True)
            unfinished = Unfinished(folder, _identity(builder, contents))
            try:
                _fill(unfinished, builder, contents, source, report)
                _replace(final, unfinished)
            except BaseException as error:
                if isinstance(error, DataError) or not (contents.files and locked):
                    unfinished.remove()
                else:
                    hint = f' (finished files stay in {unfinished.folder}: run the command again)'
                raise
    except OSError as error:
        raise DataError(
            f"'{builder.name}' cannot be written to {sets}: {error}{hint}; give a data_dir that "
            'is writable and has room.'
        ) from error
    return final


def _identity(builder: Builder, contents: Contents) -> str:
    shards = {split: len(parts) for split, parts in contents.splits.items()}
    layout = builder.name, builder.version, builder.encoding, contents.class_names, shards
    return identity(contents.files, *layout)


def _fill(
    unfinished: Unfinished, builder: Builder, contents: Contents, origin: Path, report: Report
) -> None:
    """Writes what is still missing: the records, the metadata of tfds and `prepared.json`."""
    sources = unfinished.noted('sources')
    if sources is None:
        sources = [
            dataclasses.asdict(s) for s in compare(contents.files, builder.published, report)
        ]
        unfinished.note('sources', sources)
    for source in sources:
        # a file of the published size with another MD5 is probably damaged
        if source['md5'] and (warning := Source(**source).warning()):
            report.warn(warning)
    needed = sum(path.stat().st_size for path in contents.files)
    needed -= sum(path.stat().st_size for path in unfinished.folder.glob('*.array_record-*'))
    if (free := shutil.disk_usage(unfinished.folder).free) < needed:
        report.warn(f'{free:,} bytes are free, but about {needed:,} will be needed')
    splits: dict[str, list[Written]] = {}
    for split, shards in contents.splits.items():
        files = [record_file(builder.name, split, i, len(shards)) for i in range(len(shards))]
        splits[split] = [
            _shard(unfinished, file, shard, split, len(contents.class_names), report)
            for file, shard in zip(files, shards, strict=True)
        ]
    _describe(unfinished.folder, builder, contents, splits)
    prepared = {
        'digest': digest(contents.class_names, splits),
        'source': '' if builder.embedded else printable(origin.resolve()),
        'sources': sources,
        'unreadable': {
            split: [name for shard in shards for name in shard.unreadable]
            for split, shards in splits.items()
        },
        'unreadable_at': {split: _places(shards) for split, shards in splits.items()},
        'pixels': {split: sum(w.pixels for w in shards) for split, shards in splits.items()},
        'left_out': {why: list(names) for why, names in contents.left_out.items()},
    }
    (unfinished.folder / PREPARED).write_text(json.dumps(prepared, indent=1))


def _places(shards: list[Written]) -> list[int]:
    """The places in a stored split of the images that cannot be decoded."""
    places, start = [], 0
    for shard in shards:
        places += [start + place for place in shard.unreadable_at]
        start += shard.images
    return places


def _shard(
    unfinished: Unfinished, file: str, shard: Shard, split: str, classes: int, report: Report
) -> Written:
    if written := unfinished.kept(file):
        report.kept(split, written.images)
        return written

    def counted() -> Iterator[Example]:
        for example in shard():
            name, _, label = example
            if not 0 <= label < classes:
                raise DataError(
                    f"'{name}' of {split} has label {label}; the {classes} class names are for "
                    f'labels 0 to {classes - 1}.'
                )
            yield example
            report.images(split, 1)

    return unfinished.write(file, counted())


def _describe(
    folder: Path, builder: Builder, contents: Contents, splits: dict[str, list[Written]]
) -> None:
    """Writes the metadata files that tfds and `metadata.read` look for."""
    import tensorflow_datasets as tfds

    image = tfds.features.Image(shape=builder.image_shape, encoding_format=builder.encoding)
    label = tfds.features.ClassLabel(names=list(contents.class_names))
    tfds.folder_dataset.write_metadata(
        data_dir=folder,
        features=tfds.features.FeaturesDict(
            {'image': image, 'label': label, 'key': tfds.features.Text()}
        ),
        split_infos=[
            tfds.core.SplitInfo(split, [w.images for w in shards], sum(w.bytes for w in shards))
            for split, shards in splits.items()
        ],
        version=builder.version,
        check_data=False,  # the check would read the records with TensorFlow
        description=builder.__doc__,
        supervised_keys=('image', 'label'),
    )


def _replace(final: Path, unfinished: Unfinished) -> None:
    """Renames a finished folder to `final`; only then removes a set that was already there."""
    aside = final.with_name(f'incomplete.old_{final.name}')
    if final.exists():
        final.rename(aside)
    try:
        unfinished.finish(final)
    except BaseException:
        if aside.exists() and not final.exists():
            aside.rename(final)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def require(cfg: DatasetConfig, prepare: bool = True) -> None:
    """Checks that the data is on disk. An embedded set is prepared if it is missing.

    If `prepare` is False, nothing is written and an embedded set may be missing.

    Raises:
        DataError: the set is missing (the message says where it should be and what to run), a
            record file is missing, or the config is wrong.
    """
    builder = find(cfg.name)
    check(cfg)
    if locate(builder, cfg.data_dir) is None:
        if not builder.embedded:
            raise DataError(
                f"'{builder.name}' is not prepared: looked for "
                f'{root(cfg.data_dir) / builder.name / builder.version}; run '
                f'`{prepare_command(builder, cfg.data_dir)}` (PATH: {builder.wants}). '
                'configs/digits_k2.py works now, without any files.'
            )
        if not prepare:
            return
        write(builder, Path(), cfg.data_dir)
    facts(builder, cfg.data_dir)


@dataclasses.dataclass(frozen=True)
class _File:
    """The records of a file, as array_record wants them to be named."""

    filename: str
    take: int
    skip: int = 0

    @property
    def examples_in_shard(self) -> int:
        return self.take


def records(directory: Path, split: str) -> Any:
    """Returns a random-access sequence of serialised examples, one per image.

    Opens the files without tfds, because tfds imports whatever class a description names.

    Raises:
        DataError: the description or a file cannot be read.
    """
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    shards = metadata.read(directory).shards
    try:
        return ArrayRecordDataSource([_File(str(f), n) for f, n in shards[split].items()])
    except Exception as error:  # array_record lists none
        reason = ' '.join(str(error).split())[:200]
        raise DataError(
            f'{directory} cannot be opened ({reason}); remove the folder and prepare the set again.'
        ) from error
