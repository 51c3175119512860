"""Builders to array_records and back, through tfds."""

from __future__ import annotations

import contextlib
import io
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from input_pipeline.builder import Builder, Contents, Shard
from input_pipeline.metadata import facts, locate, prepare_command, root
from input_pipeline.registry import find
from input_pipeline.types import DataError, DatasetConfig, check

Report = Callable[[str, int], None]  # (stored split, images written so far)


@contextlib.contextmanager
def _alone(parent: Path) -> Iterator[None]:
    """Holds a lock file so that two processes do not prepare one set at once."""
    parent.mkdir(parents=True, exist_ok=True)
    with (parent / '.lock').open('w') as file:
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        except (ImportError, OSError):
            pass  # no locks here: the rename at the end lets one of them win
        yield


@contextlib.contextmanager
def _set_aside(final: Path) -> Iterator[None]:
    """Moves an earlier version away while a new one is written; puts it back on failure."""
    aside = final.with_name(f'incomplete.old_{final.name}')
    if final.exists():
        final.rename(aside)
    try:
        yield
    except BaseException:
        if aside.exists() and not final.exists():
            aside.rename(final)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _tfds_builder(builder: Builder, contents: Contents, data_dir: Path, report: Report) -> Any:
    """Returns a tfds builder that writes `contents` shard after shard."""
    import tensorflow_datasets as tfds

    features = tfds.features.FeaturesDict(
        {
            'image': tfds.features.Image(
                shape=builder.image_shape, encoding_format=builder.encoding
            ),
            'label': tfds.features.ClassLabel(names=list(contents.class_names)),
            'key': tfds.features.Text(),
        }
    )

    def examples(split: str, shard: Shard) -> Iterator[tuple[str, dict[str, Any]]]:
        for key, encoded, label in shard():
            yield key, {'image': encoded, 'label': label, 'key': key}
            written[split] += 1
            report(split, written[split])

    written = dict.fromkeys(contents.splits, 0)

    class Stored(tfds.core.ShardBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
        """The records of one data set."""

        name = builder.name
        VERSION = tfds.core.Version(builder.version)

        def _info(self) -> Any:
            return self.dataset_info_from_configs(
                features=features, supervised_keys=('image', 'label'), description=builder.__doc__
            )

        def _shard_iterators_per_split(self, dl_manager: Any) -> Any:
            return {
                split: [lambda split=split, shard=shard: examples(split, shard) for shard in shards]
                for split, shards in contents.splits.items()
            }

    return Stored(data_dir=data_dir, file_format='array_record')


def write(
    builder: Builder,
    source: Path,
    data_dir: str,
    *,
    report: Report = lambda split, done: None,
    overwrite: bool = False,
) -> Path:
    """Prepares a set: writes into a temporary folder, then renames it.

    Args:
        builder: the set.
        source: what `builder.open` reads.
        data_dir: where prepared sets live; '' is tfds' default.
        report: called after each image.
        overwrite: replace what is there; otherwise a prepared set is left as it is.

    Returns:
        The folder of the prepared set.

    Raises:
        DataError: the source is unfit, or data_dir cannot be written.
    """
    import tensorflow_datasets as tfds

    place = root(data_dir)
    final = place / builder.name / builder.version
    try:
        with _alone(place / builder.name):
            if (final / 'dataset_info.json').is_file() and not overwrite:
                return final
            for stale in final.parent.glob(f'incomplete.*_{builder.version}'):
                shutil.rmtree(stale, ignore_errors=True)
            contents = builder.open(source)
            if builder.num_classes and len(contents.class_names) != builder.num_classes:
                raise DataError(
                    f"{source} lists {len(contents.class_names)} classes, but '{builder.name}' has "
                    f'{builder.num_classes}.'
                )
            tfds.disable_progress_bar()
            with _set_aside(final), tempfile.TemporaryDirectory() as unused:
                with contextlib.redirect_stdout(io.StringIO()):  # tfds talks of downloads
                    _tfds_builder(builder, contents, place, report).download_and_prepare(
                        download_dir=unused
                    )
    except OSError as error:
        if overwrite or not (final / 'dataset_info.json').is_file():
            raise DataError(
                f"'{builder.name}' cannot be written to {place}: {error}; give a data_dir that can "
                'be written and has room.'
            ) from error
    return final


def require(cfg: DatasetConfig, prepare: bool = True) -> None:
    """Makes sure that the data is on disk; an embedded set is prepared now.

    With `prepare` False nothing is written, and an embedded set need not be there yet.

    Raises:
        DataError: it is not there (says where it was looked for and what to run), a record
            file is missing, or the config is wrong.
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


def records(directory: Path, split: str) -> Any:
    """Returns a random-access sequence of serialised examples, one for each image."""
    import tensorflow_datasets as tfds

    opened: Any = tfds.builder_from_directory(builder_dir=directory)
    return opened.as_data_source(split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES)
