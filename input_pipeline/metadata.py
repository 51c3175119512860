"""Reports what is known about a set without decoding an image: declared facts, or those on disk.

tfds describes a prepared set in two JSON files beside the records. They are parsed here, without
tfds, because importing tfds takes longer than checking a whole config.
"""

from __future__ import annotations

import dataclasses
import os
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from input_pipeline import domains, files, json_data
from input_pipeline.builder import Builder
from input_pipeline.image_size import MAX_PIXELS
from input_pipeline.registry import DATASETS, find
from input_pipeline.splits import split_sizes
from input_pipeline.types import DataError, DatasetConfig, DatasetInfo, check

PREPARED = 'prepared.json'  # beside the records: digest, sources, images that cannot be decoded
_MAX_CLASSES, _MAX_IMAGES = 10**6, 2**31 - 1  # of a set
_NAME = re.compile(r'\w[\w.-]{,99}')  # of a set or a split: files are named by them
_MAX_NAMES = 2**26  # bytes of the file of class names


def _lists_of(kind: type) -> Callable[[Any], bool]:
    return lambda value: (
        isinstance(value, dict)
        and all(
            isinstance(items, list) and all(type(item) is kind for item in items)
            for items in value.values()
        )
    )


_NOTED: dict[str, Callable[[Any], bool]] = {  # what prepared.json may hold, if it has the key
    'digest': lambda value: isinstance(value, str),
    'source': lambda value: isinstance(value, str),
    'sources': lambda value: isinstance(value, list),
    'unreadable': _lists_of(str),
    'unreadable_at': _lists_of(int),
    'left_out': _lists_of(str),
    'pixels': lambda value: isinstance(value, dict) and all(type(n) is int for n in value.values()),
}


@dataclasses.dataclass(frozen=True)
class Facts:
    """A set as stored, or as its builder declares it if it is not prepared.

    Attributes:
        directory: folder of the records; None if the set is not prepared.
        num_classes: number of labels.
        image_shape: (H, W, C) as stored; H and W are None if images vary in size.
        sizes: stored split -> images.
        shards: stored split -> {file of records: its images}; {} if the set is not prepared.
        class_names: one per label.
        keyed: whether each record carries the name of its image.
        prepared: content of `prepared.json`; {} if another program prepared the set.
    """

    directory: Path | None
    num_classes: int
    image_shape: tuple[int | None, int | None, int]
    sizes: dict[str, int]
    class_names: tuple[str, ...]
    keyed: bool = True
    prepared: dict[str, Any] = dataclasses.field(default_factory=dict)
    shards: dict[str, dict[Path, int]] = dataclasses.field(default_factory=dict)

    @property
    def source(self) -> str:
        """The path that the set was prepared from; '' if that is not known."""
        return self.prepared.get('source', '')


def root(data_dir: str) -> Path:
    """Returns the folder of prepared sets; '' means tfds' default, or $TFDS_DATA_DIR if set."""
    given = data_dir or os.environ.get('TFDS_DATA_DIR') or '~/tensorflow_datasets'
    return Path(files.expanded(given))


def locate(builder: Builder, data_dir: str) -> Path | None:
    """Returns the folder of the prepared set, or None.

    Prefers the builder's version, which we write; otherwise takes the newest, written by tfds.
    """
    parent = root(data_dir) / builder.name
    if (parent / builder.version / 'dataset_info.json').is_file():
        return parent / builder.version
    versions = {}
    for path in parent.glob('*/dataset_info.json'):
        if re.fullmatch(r'\d+\.\d+\.\d+', path.parent.name):
            versions[tuple(map(int, path.parent.name.split('.')))] = path.parent
    return versions[max(versions)] if versions else None


def read(directory: Path) -> Facts:
    """Reads the description of a prepared set.

    Raises:
        DataError: it cannot be read, the format is not array_record, the set does not hold images
            with labels, or a record file is missing.
    """
    try:
        described = json_data.read(directory / 'dataset_info.json')
        features = json_data.read(directory / 'features.json')
        features = features['featuresDict']['features']
        dimensions = features['image']['image']['shape']['dimensions']
        height, width, channels = (None if int(d) < 0 else int(d) for d in dimensions)
        classes = int(features['label']['classLabel']['numClasses'])
        splits = {
            s['name']: [int(n) for n in s.get('shardLengths', ())] for s in described['splits']
        }
        set_name, file_format = described['name'], described.get('fileFormat', 'tfrecord')
        if odd := [n for n in (set_name, *splits) if not _NAME.fullmatch(n)]:
            raise ValueError(f'{odd[0][:100]!r} is no name of a set or a split')
        _check_ranges(classes, (height or 1, width or 1, channels or 3), splits)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
        raise DataError(
            f'{directory} does not describe images with labels ({type(error).__name__}: {error}); '
            'remove it and prepare the set again.'
        ) from error
    if file_format != 'array_record':
        raise DataError(
            f"{directory} is stored as '{file_format}', but only 'array_record' can be read; "
            'prepare the set again, into another data_dir, with `python -m input_pipeline.prepare`.'
        )
    shards = {
        split: {
            directory / record_file(set_name, split, i, len(lengths)): length
            for i, length in enumerate(lengths)
        }
        for split, lengths in splits.items()
    }
    for file, length in (pair for of_split in shards.values() for pair in of_split.items()):
        again = f'restore the file, or remove {directory} and prepare the set again.'
        if not file.is_file():
            raise DataError(f'{file} is missing; {again}')
        if (size := file.stat().st_size) < length:
            raise DataError(f'{file} has {size:,} bytes, too few for {length:,} images; {again}')
    names = _class_names(directory / 'label.labels.txt')
    if len(names) != classes:
        names = tuple(f'class_{i}' for i in range(classes))
    sizes = {split: sum(lengths) for split, lengths in splits.items()}
    shape, keyed = (height, width, channels or 3), 'key' in features
    return Facts(directory, classes, shape, sizes, names, keyed, _prepared(directory), shards)


def record_file(name: str, split: str, number: int, count: int) -> str:
    """Returns the name that tfds gives to a file of records."""
    return f'{name}-{split}.array_record-{number:05d}-of-{count:05d}'


def _check_ranges(classes: int, shape: tuple[int, int, int], splits: dict[str, list[int]]) -> None:
    """Raises ValueError unless memory can hold what a description declares."""
    if not 0 < classes <= _MAX_CLASSES:
        raise ValueError(f'{classes} classes; allowed: 1 to {_MAX_CLASSES:,}')
    height, width, channels = shape
    if min(height, width) < 1 or height * width > MAX_PIXELS or channels not in (1, 3):
        raise ValueError(
            f'images of {height} x {width} x {channels}; allowed: up to {MAX_PIXELS:,} pixels of '
            '1 or 3 channels'
        )
    for split, lengths in splits.items():
        if min(lengths, default=0) < 0 or sum(lengths) > _MAX_IMAGES:
            raise ValueError(f'{split} has {sum(lengths)} images; allowed: 0 to {_MAX_IMAGES:,}')


def _class_names(path: Path) -> tuple[str, ...]:
    """Returns the lines of a file of class names; () if there is none that can be read."""
    try:
        return tuple(files.read(path, _MAX_NAMES).decode().splitlines())
    except (OSError, ValueError):
        return ()


def _prepared(directory: Path) -> dict[str, Any]:
    path = directory / PREPARED
    if not os.path.lexists(path):
        return {}
    try:
        prepared = json_data.read(path)
        if not isinstance(prepared, dict):
            raise ValueError('it is no object')
        for key, fits in _NOTED.items():
            if key in prepared and not fits(prepared[key]):
                raise ValueError(f'its {key} is not what preparation writes')
    except (OSError, ValueError) as error:
        raise DataError(
            f'{path} cannot be read ({getattr(error, "strerror", None) or error}); remove '
            f'{directory} and prepare the set again.'
        ) from error
    return prepared


def facts(builder: Builder, data_dir: str) -> Facts:
    """Returns what is on disk if the set is prepared, else what its builder declares.

    Raises:
        DataError: there is neither, or they contradict each other.
    """
    directory = locate(builder, data_dir)
    if directory is None:
        if not (builder.num_classes and builder.sizes):
            raise DataError(
                f"'{builder.name}' is only known once prepared: {root(data_dir) / builder.name} "
                f'does not exist; run `{prepare_command(builder, data_dir)}`.'
            )
        return Facts(
            None, builder.num_classes, builder.image_shape, dict(builder.sizes), builder.names()
        )
    stored = read(directory)
    if builder.num_classes and stored.num_classes != builder.num_classes:
        raise DataError(
            f"{directory} holds {stored.num_classes} classes, but '{builder.name}' has "
            f'{builder.num_classes}; remove the folder and prepare the set again.'
        )
    pairs = zip(stored.image_shape, builder.image_shape, strict=True)
    if any(s != d for s, d in pairs if s is not None and d is not None):
        raise DataError(
            f"{directory} holds images of shape {stored.image_shape}, but '{builder.name}' has "
            f'{builder.image_shape}; remove the folder and prepare the set again.'
        )
    return stored


def prepare_command(builder: Builder, data_dir: str, known: Facts | None = None) -> str:
    """Returns the command that prepares a set, from the source in its facts if they are given."""
    cls = type(builder)
    name = builder.name
    if name not in DATASETS:
        name = f'{cls.__module__}:{cls.__qualname__}'
    given = {'dataset': name, 'data_dir': data_dir}
    if not builder.embedded:
        given['source'] = (known and known.source) or 'PATH'
    flags = (f'--{flag}={shlex.quote(value)}' for flag, value in given.items() if value)
    return f'python -m input_pipeline.prepare {" ".join(flags)}'


def image_shape(cfg: DatasetConfig, known: Facts) -> tuple[int, int, int]:
    """Returns (H, W, C) as the loaders yield it.

    Raises:
        DataError: the set's images vary in size and image_size is 0.
    """
    height, width, channels = known.image_shape
    if cfg.image_size:
        return cfg.image_size, cfg.image_size, channels
    if height is None or width is None:
        raise DataError(
            f"images of '{cfg.name}' vary in size, so they need one to be brought to: set "
            '--config.dataset.image_size=224 (which is usual), not 0.'
        )
    return height, width, channels


def info(cfg: DatasetConfig) -> DatasetInfo:
    """Returns class count, image shape and split sizes without decoding an image.

    If the set is prepared, it reads them from disk. Otherwise it takes what the builder declares;
    that fails for sets that only their files describe (`image_folder`).

    Raises:
        DataError: unknown set, wrong config, a set known only once it is prepared, or a set on
            disk that contradicts its builder.
    """
    builder = find(cfg.name)
    check(cfg)
    known = facts(builder, cfg.data_dir)
    shape = image_shape(cfg, known)
    domains.of_split(cfg.domains, 0, known.num_classes, shape)  # refuses what does not fit
    return DatasetInfo(
        name=builder.name,
        num_classes=known.num_classes,
        image_shape=shape,
        split_sizes=split_sizes(builder, known, cfg.validation_fraction, cfg.train_images),
        class_names=known.class_names,
        digest=known.prepared.get('digest', ''),
    )


def mean_std(cfg: DatasetConfig) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns per-channel mean and standard deviation of images scaled to [0, 1]."""
    builder = find(cfg.name)
    return builder.mean, builder.std
