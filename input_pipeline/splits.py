"""Says which stored images make up each split: validation may be a part of the stored train split.

Axes: N images of a split.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from input_pipeline import order
from input_pipeline.builder import Builder
from input_pipeline.types import SPLITS, DataError, DatasetConfig

if TYPE_CHECKING:
    from input_pipeline.metadata import Facts


@dataclasses.dataclass(frozen=True)
class Part:
    """The images of a split.

    Attributes:
        stored: name of the stored split that holds them.
        members: int32 [N], index in the split -> position in the stored split; None if the split
            is the whole stored split.
        size: N.
    """

    stored: str
    members: np.ndarray | None
    size: int


def split_sizes(
    builder: Builder, known: Facts, fraction: float, train_images: int = 0
) -> dict[str, int]:
    """Returns images per split as callers see them, without empty splits.

    Args:
        builder: the set.
        known: its facts.
        fraction: share of train held out if the set has no validation split.
        train_images: images of train to use; 0 uses all.

    Raises:
        DataError: there are no training images or fewer than `train_images`, or the fraction
            leaves train or validation empty.
    """
    sizes = {split: known.sizes.get(builder.stored.get(split, ''), 0) for split in SPLITS}
    if not sizes['train']:
        raise DataError(
            f"'{builder.name}' has no training images; it has: {', '.join(known.sizes) or 'none'}."
        )
    if not sizes['validation'] and fraction:
        images = sizes['train']
        held = order.held_out_size(images, fraction)
        if not 0 < held < images:
            enough = 'less, such as 0.5' if held else f'at least {1 / images:.2g}'
            raise DataError(
                f'validation_fraction is {fraction}, which leaves no image for '
                f"{'train' if held else 'validation'}: train of '{builder.name}' has {images}; "
                f'give {f"{enough}, or " if images > 1 else ""}0 to hold out none.'
            )
        sizes |= {'validation': held, 'train': images - held}
    if train_images > sizes['train']:
        raise DataError(
            f"train_images is {train_images}, but '{builder.name}' has {sizes['train']} training "
            'images; give at most that many, or 0 for all.'
        )
    sizes['train'] = train_images or sizes['train']
    return {split: size for split, size in sizes.items() if size}


def check_split(cfg: DatasetConfig, sizes: dict[str, int], split: str) -> None:
    """Raises DataError if a split does not exist; the message lists those that do."""
    if split in sizes:
        return
    hint = ''
    if split == 'validation' and not cfg.validation_fraction:
        hint = ' Set validation_fraction above 0 to hold out a part of train.'
    raise DataError(
        f"'{cfg.name}' has no split '{split}'; it has: {', '.join(sizes) or 'none'}.{hint}"
    )


def part(builder: Builder, known: Facts, cfg: DatasetConfig, split: str) -> Part:
    """Returns the images of a split.

    Raises:
        DataError: as `split_sizes` and `check_split`.
    """
    whole = split_sizes(builder, known, cfg.validation_fraction)
    sizes = split_sizes(builder, known, cfg.validation_fraction, cfg.train_images)
    check_split(cfg, sizes, split)
    stored_size = known.sizes.get(builder.stored.get(split, ''), 0)
    members = None
    if whole[split] != stored_size:  # a part of the stored train split
        members = order.members(
            known.sizes[builder.stored['train']], cfg.validation_fraction, split
        )
    if sizes[split] != whole[split]:
        subset = order.subset(whole[split], sizes[split])
        members = subset if members is None else members[subset]
    return Part(builder.stored[split if stored_size else 'train'], members, sizes[split])
