"""What is known of a set without decoding an image: declared facts, or those on disk.

Prepared sets describe themselves in the two JSON files tfds writes beside the records;
they are read directly because a configuration is checked in less time than tfds imports.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from input_pipeline import order
from input_pipeline.builder import Builder
from input_pipeline.registry import find
from input_pipeline.types import SPLITS, DataError, DatasetConfig, DatasetInfo, check

PREPARED = 'prepared.json'  # beside the records: digest, sources, images that cannot be decoded
_TFDS = 'tensorflow_datasets.core.features.'  # where the classes of features stand


@dataclasses.dataclass(frozen=True)
class Facts:
    """A set as stored (or as declared, where `directory` is None).

    Attributes:
        directory: folder of the records.
        num_classes: number of labels.
        image_shape: (H, W, C) as stored; None where it varies.
        sizes: stored split -> images.
        class_names: one per label.
        keyed: whether records carry the name of their file.
        prepared: what its preparation noted in `prepared.json`; {} where something else made it.
    """

    directory: Path | None
    num_classes: int
    image_shape: tuple[int | None, int | None, int]
    sizes: dict[str, int]
    class_names: tuple[str, ...]
    keyed: bool = True
    prepared: dict[str, Any] = dataclasses.field(default_factory=dict)


def root(data_dir: str) -> Path:
    """Returns the folder of prepared sets; '' means tfds' default, $TFDS_DATA_DIR if set."""
    return Path(data_dir or os.environ.get('TFDS_DATA_DIR') or '~/tensorflow_datasets').expanduser()


def locate(builder: Builder, data_dir: str) -> Path | None:
    """Returns the folder of the prepared set, ours before a stock one, or None."""
    parent = root(data_dir) / builder.name
    if (parent / builder.version / 'dataset_info.json').is_file():
        return parent / builder.version
    versions = {}
    for path in parent.glob('*/dataset_info.json'):
        if re.fullmatch(r'\d+\.\d+\.\d+', path.parent.name):
            versions[tuple(map(int, path.parent.name.split('.')))] = path.parent
    return versions[max(versions)] if versions else None


def read(directory: Path) -> Facts:
    """Reads a prepared set's own description.

    Raises:
        DataError: it is unreadable, not array_record, not an image classification set, or
            a record file is missing.
    """
    try:
        described = json.loads((directory / 'dataset_info.json').read_text())
        features = json.loads((directory / 'features.json').read_text())
        foreign = next((c for c in _classes(features) if not c.startswith(_TFDS)), None)
        features = features['featuresDict']['features']
        dimensions = features['image']['image']['shape']['dimensions']
        height, width, channels = (None if int(d) < 0 else int(d) for d in dimensions)
        classes = int(features['label']['classLabel']['numClasses'])
        splits = {
            s['name']: [int(n) for n in s.get('shardLengths', ())] for s in described['splits']
        }
        set_name, file_format = described['name'], described.get('fileFormat', 'tfrecord')
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f'{directory} does not describe images with labels ({type(error).__name__}: {error}); '
            'remove it and prepare the set again.'
        ) from error
    if foreign:
        raise DataError(
            f"{directory / 'features.json'} names the class '{foreign}', which tfds would import; "
            'a folder of data may not name code: remove it and prepare the set again.'
        )
    if file_format != 'array_record':
        raise DataError(
            f"{directory} is stored as '{file_format}'; only 'array_record' is read here: prepare "
            f'it with `python -m input_pipeline.prepare --dataset={set_name}`.'
        )
    for split, lengths in splits.items():
        for i, _ in enumerate(lengths):
            file = record_file(set_name, split, i, len(lengths))
            if not (directory / file).is_file():
                raise DataError(
                    f'{directory / file} is missing; restore the file, or remove {directory} and '
                    f'run `python -m input_pipeline.prepare --dataset={set_name}`.'
                )
    names = directory / 'label.labels.txt'
    listed = tuple(names.read_text().splitlines()) if names.is_file() else ()
    if len(listed) != classes:
        listed = tuple(f'class_{i}' for i in range(classes))
    sizes = {split: sum(lengths) for split, lengths in splits.items()}
    shape, keyed = (height, width, channels or 3), 'key' in features
    return Facts(directory, classes, shape, sizes, listed, keyed, _prepared(directory))


def _classes(features: Any) -> Iterator[str]:
    """Every class that tfds imports as it reads a description of features."""
    if isinstance(features, dict):
        for key, value in features.items():
            if key in ('pythonClassName', 'python_class_name', 'type') and isinstance(value, str):
                yield value
            yield from _classes(value)
    elif isinstance(features, list):
        for value in features:
            yield from _classes(value)


def record_file(name: str, split: str, number: int, count: int) -> str:
    """Returns the name of a file of records, as tfds names it."""
    return f'{name}-{split}.array_record-{number:05d}-of-{count:05d}'


def _prepared(directory: Path) -> dict[str, Any]:
    try:
        return json.loads((directory / PREPARED).read_text())
    except (OSError, ValueError):
        return {}


def facts(builder: Builder, data_dir: str) -> Facts:
    """Returns what is on disk if the set is prepared, else what the builder declares.

    Raises:
        DataError: neither is there, or the two contradict each other.
    """
    directory = locate(builder, data_dir)
    if directory is None:
        if not builder.num_classes:
            raise DataError(
                f"'{builder.name}' is only known once prepared: {root(data_dir) / builder.name} "
                f'does not exist; run `{prepare_command(builder, data_dir)}`.'
            )
        return Facts(
            None, builder.num_classes, builder.image_shape, dict(builder.sizes), builder.names()
        )
    found = read(directory)
    if builder.num_classes and found.num_classes != builder.num_classes:
        raise DataError(
            f"{directory} holds {found.num_classes} classes, but '{builder.name}' has "
            f'{builder.num_classes}; remove the folder and prepare the set again.'
        )
    fixed = zip(found.image_shape, builder.image_shape, strict=True)
    if any(f != d for f, d in fixed if f is not None and d is not None):
        raise DataError(
            f"{directory} holds images of shape {found.image_shape}, but '{builder.name}' has "
            f'{builder.image_shape}; remove the folder and prepare the set again.'
        )
    return found


def prepare_command(builder: Builder, data_dir: str) -> str:
    """Returns the command that prepares a set."""
    where = f' --data_dir={data_dir}' if data_dir else ''
    source = '' if builder.embedded else ' --source=PATH'
    return f'python -m input_pipeline.prepare --dataset={builder.name}{where}{source}'


def split_sizes(
    builder: Builder, known: Facts, fraction: float, train_images: int = 0
) -> dict[str, int]:
    """Returns images per split as callers see them; absent splits are absent.

    Raises:
        DataError: `train_images` are wanted and train has fewer.
    """
    stored = {ours: known.sizes.get(builder.stored.get(ours, ''), 0) for ours in SPLITS}
    if not stored['validation']:
        stored['validation'] = order.held_out_size(stored['train'], fraction)
        stored['train'] -= stored['validation']
    if train_images > stored['train']:
        raise DataError(
            f"train_images is {train_images}, but '{builder.name}' has {stored['train']} training "
            'images; give at most so many, or 0 for all.'
        )
    stored['train'] = train_images or stored['train']
    return {split: size for split, size in stored.items() if size}


def check_split(cfg: DatasetConfig, sizes: dict[str, int], split: str) -> None:
    """Raises DataError where a split does not exist, saying which do and why."""
    if split in sizes:
        return
    why = ''
    if split == 'validation' and not cfg.validation_fraction:
        why = ' Set validation_fraction above 0 to hold out a part of train.'
    raise DataError(
        f"'{cfg.name}' has no split '{split}'; it has: {', '.join(sizes) or 'none'}.{why}"
    )


def image_shape(cfg: DatasetConfig, known: Facts) -> tuple[int, int, int]:
    """Returns (H, W, C) as the loaders yield it.

    Raises:
        DataError: the set's images vary in size and no image_size is given.
    """
    height, width, channels = known.image_shape
    if cfg.image_size:
        return cfg.image_size, cfg.image_size, channels
    if height is None or width is None:
        raise DataError(
            f"images of '{cfg.name}' vary in size: set image_size (224 is usual), not 0."
        )
    return height, width, channels


def info(cfg: DatasetConfig) -> DatasetInfo:
    """Returns class count, image shape and split sizes; decodes nothing.

    Works before the set is prepared, from what its builder declares, except for sets whose
    facts only their files hold (`image_folder`). Once prepared, what is on disk counts.

    Raises:
        DataError: unknown set or setting, or the set on disk contradicts its builder.
    """
    builder = find(cfg.name)
    check(cfg)
    known = facts(builder, cfg.data_dir)
    return DatasetInfo(
        name=builder.name,
        num_classes=known.num_classes,
        image_shape=image_shape(cfg, known),
        split_sizes=split_sizes(builder, known, cfg.validation_fraction, cfg.train_images),
        class_names=known.class_names,
        digest=known.prepared.get('digest', ''),
    )


def mean_std(cfg: DatasetConfig) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns per-channel mean and standard deviation of images scaled to [0, 1]."""
    builder = find(cfg.name)
    return builder.mean, builder.std
