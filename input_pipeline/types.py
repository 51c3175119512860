"""Defines the types that the data layer and its callers exchange, and checks a config.

They hold plain Python values only, so that importing them is cheap.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Container, Iterable, Sequence
from typing import TypeVar

AUGMENTS = ('none', 'pad_crop_flip', 'pad_crop', 'random_resized_crop')
MAX_DOMAINS = 256
SPLITS = ('train', 'validation', 'test')
_T = TypeVar('_T')


class DataError(Exception):
    """A mistake the user can fix. One line says what was given and what is allowed."""


class Report:
    """Receives the progress of a preparation. This base class ignores it."""

    def images(self, split: str, more: int) -> None:
        """`more` further images of a stored split were written."""

    def kept(self, split: str, images: int) -> None:
        """An earlier preparation already wrote `images` images of a stored split."""

    def bytes(self, name: str, done: int, size: int) -> None:
        """`done` of the `size` bytes of a file were compared with the published file."""

    def warn(self, message: str) -> None:
        """The user should see this message now."""


def _key(
    default: _T,
    meaning: str,
    *,
    at_most: int | None = None,
    changes: str = 'never',
) -> _T:
    """The field of one key; `moe_vision.config.key` says what the arguments mean."""
    metadata = {'meaning': meaning, 'at_most': at_most, 'changes': changes}
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DatasetConfig:
    """Which images a run reads, and how it augments them. `check` checks the ranges."""

    name: str = _key('digits', 'a name in input_pipeline.DATASETS, or package.module:Builder')
    data_dir: str = _key(
        '',
        "where prepared sets live; '' is tfds' ~/tensorflow_datasets",
        changes='freely',
    )
    validation_fraction: float = _key(
        0.1,
        'share of train held out, in [0, 1), if the set has no validation split; 0 holds out none',
    )
    image_size: int = _key(
        0, "side of the square image in pixels; 0 keeps the set's own size", at_most=10_000
    )
    augment: str = _key('none', 'for training: none, pad_crop, pad_crop_flip, random_resized_crop')
    randaugment_layers: int = _key(
        0, 'RandAugment operations per image, after augment; 0 is off', at_most=100
    )
    randaugment_magnitude: float = _key(9.0, 'strength of RandAugment, from 0 to 10')
    workers: int = _key(
        0,
        'worker processes that read and decode; 0 uses threads instead, and so does `cache`',
        at_most=1_000,
        changes='freely',
    )
    cache: bool = _key(
        False,
        'decode once, keep uint8 images in memory, if half of it holds them',
        changes='freely',
    )
    resident: bool = _key(
        False,
        'decode once, keep the images on the device and augment them there; gives the same batches '
        '(not with random_resized_crop or RandAugment)',
        changes='freely',
    )
    train_images: int = _key(
        0,
        'train on this many images, drawn after validation was held out and the same for every '
        'seed and arm; 0 takes all',
    )
    domains: int = _key(
        0,
        'a test bed for routers: mark each image with one of this many domains, each with its own '
        'order of the labels (input_pipeline/domains.py); 0 is off',
    )


@dataclasses.dataclass(frozen=True)
class DatasetInfo:
    """What is known about a set before any image is decoded.

    Attributes:
        name: the builder's name.
        num_classes: number of labels; labels are 0 .. num_classes-1.
        image_shape: (H, W, C) as the loaders yield it, after resizing to `image_size`.
        split_sizes: images per split, after validation is held out of train and train is cut
            to `train_images`; a split that does not exist is absent.
        class_names: one per label; 'class_7' and so on until the real names are known.
        digest: sha256 of the stored images, names and labels, in order; '' if the set is not
            prepared, or if another program prepared it.
    """

    name: str
    num_classes: int
    image_shape: tuple[int, int, int]
    split_sizes: dict[str, int]
    class_names: tuple[str, ...]
    digest: str = ''

    @property
    def scored(self) -> str:
        """The split that a finished run is scored on."""
        return scored_split(self.split_sizes)


def scored_split(sizes: Container[str]) -> str:
    """Returns the split that a run is scored on: test, or validation if there is no test split."""
    return 'validation' if 'validation' in sizes and 'test' not in sizes else 'test'


def nearest(name: str, allowed: Iterable[str]) -> str:
    """Returns " Did you mean '...'?" with the closest allowed name, or '' if none is close."""
    matches = difflib.get_close_matches(name, list(allowed), n=1, cutoff=0.5)
    return f" Did you mean '{matches[0]}'?" if matches else ''


def listed(names: Sequence[str], most: int = 5) -> str:
    """Returns the first names in one line; a character that cannot be printed becomes '?'."""
    shown = ', '.join(names[:most]) + (', ...' if len(names) > most else '')
    return ''.join(c if c.isprintable() else '?' for c in shown)


def check(cfg: DatasetConfig) -> None:
    """Raises DataError if a value is out of range or two values contradict each other."""
    if cfg.augment not in AUGMENTS:
        raise DataError(
            f"unknown augment '{cfg.augment}'; allowed: {', '.join(AUGMENTS)}."
            f'{nearest(cfg.augment, AUGMENTS)}'
        )
    if not 0 <= cfg.validation_fraction < 1:
        raise DataError(
            f'validation_fraction is {cfg.validation_fraction}; it must lie in [0, 1) '
            '(0 means no validation split).'
        )
    if cfg.image_size < 0:
        raise DataError(
            f"image_size is {cfg.image_size}; give a side in pixels, or 0 for the set's own."
        )
    if cfg.train_images < 0:
        raise DataError(f'train_images is {cfg.train_images}; give a number of images, or 0 (all).')
    if cfg.domains < 0 or cfg.domains == 1 or cfg.domains > MAX_DOMAINS:
        raise DataError(
            f'domains is {cfg.domains}; give a number from 2 to {MAX_DOMAINS}, or 0 (off).'
        )
    if cfg.resident and cfg.augment == 'random_resized_crop':
        raise DataError(
            "resident is set, but augment 'random_resized_crop' resizes on the host; use pad_crop "
            'or pad_crop_flip, or set resident to False.'
        )
    _check_randaugment(cfg)
    if cfg.workers < 0:
        raise DataError(f'workers is {cfg.workers}; give 0 (threads) or a number of processes.')


def _check_randaugment(cfg: DatasetConfig) -> None:
    layers, magnitude = cfg.randaugment_layers, cfg.randaugment_magnitude
    if layers < 0:
        raise DataError(f'randaugment_layers is {layers}; give a number of operations, or 0 (off).')
    if not 0 <= magnitude <= 10:
        raise DataError(f'randaugment_magnitude is {magnitude}; it must lie in [0, 10].')
    if not layers and magnitude != DatasetConfig.randaugment_magnitude:
        raise DataError(
            f'randaugment_magnitude is {magnitude} but is not read: randaugment_layers is 0; set '
            'randaugment_layers (2 is usual), or leave the magnitude at its default.'
        )
    if layers and cfg.resident:
        raise DataError(
            f'resident is set, but randaugment_layers is {layers}, and RandAugment runs on the '
            'host; set resident to False, or randaugment_layers to 0.'
        )
