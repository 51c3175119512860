"""Checks before a run begins what it would find out late: images to score, and room to keep all."""

from __future__ import annotations

import functools
from collections.abc import Iterable

import numpy as np

from input_pipeline import metadata, splits
from input_pipeline.cores import memory
from input_pipeline.metadata import Facts
from input_pipeline.reader import Reader
from input_pipeline.registry import find
from input_pipeline.types import SPLITS, DataError, DatasetConfig, listed

_SHARE = 0.5  # of the memory that decoded images may take


def check_images(cfg: DatasetConfig, wanted: Iterable[str]) -> None:
    """Checks that every image of some splits can be decoded, because an evaluation counts each.

    Preparation noted the images that cannot. Where another program prepared the set, or an older
    version did, this decodes the images of these splits once.

    Args:
        cfg: the set. An embedded one that is not prepared yet has nothing to check.
        wanted: splits that the set has.

    Raises:
        DataError: an image cannot be decoded, the set has no such split, or it is damaged.
    """
    builder = find(cfg.name)
    if metadata.locate(builder, cfg.data_dir) is None:
        return
    known = metadata.facts(builder, cfg.data_dir)
    for split in wanted:
        part = splits.part(builder, known, cfg, split)
        bad = _noted(known, part)
        if bad is None:
            bad = _decode_all(cfg, split)
        if bad:
            held = ' (held out of train)' if part.stored != builder.stored.get(split) else ''
            raise DataError(
                f"of the {part.size:,} images of {split}{held} of '{builder.name}', {len(bad):,} "
                f'cannot be decoded ({listed(bad)}); an evaluation counts every image, so replace '
                f'or remove {"it" if len(bad) == 1 else "them"} and run '
                f'`{metadata.prepare_command(builder, cfg.data_dir, known)} --overwrite`.'
            )


def _noted(known: Facts, part: splits.Part) -> list[str] | None:
    """The images of a split that cannot be decoded, if preparation noted them."""
    names = known.prepared.get('unreadable', {}).get(part.stored)
    at = known.prepared.get('unreadable_at', {}).get(part.stored, [])
    if not names or part.members is None:
        return names
    if len(names) == len(at):
        inside = np.isin(at, part.members)
        return [name for name, is_inside in zip(names, inside, strict=True) if is_inside]
    return None


@functools.lru_cache(maxsize=8)  # the arms of a study share their images
def _decode_all(cfg: DatasetConfig, split: str) -> list[str]:
    """The names of the images of a split that cannot be decoded, by decoding all of it."""
    from absl import logging

    builder = find(cfg.name)
    known = metadata.facts(builder, cfg.data_dir)
    assert known.directory is not None
    part = splits.part(builder, known, cfg, split)
    logging.info('decoding the %d images of %s first: nobody noted which can be', part.size, split)
    positions = range(part.size) if part.members is None else part.members.tolist()
    reader = Reader(
        known.directory, part.stored, known.image_shape[2], known.num_classes, cache=False
    )
    names = reader.read_all(positions, lambda item: item.key if item.image is None else '')
    return [name for name in names if name]


def check_kept(cfg: DatasetConfig) -> None:
    """Checks that memory can hold the decoded images, if `cache` or `resident` keeps them.

    `cache` keeps them as they are stored, `resident` as the loaders yield them.

    Raises:
        DataError: they are too many or too large, or nobody noted how large they are.
    """
    if not (cfg.cache or cfg.resident):
        return
    builder = find(cfg.name)
    known = metadata.facts(builder, cfg.data_dir)
    stored = {builder.stored.get(split) for split in SPLITS}
    images = {split: n for split, n in known.sizes.items() if split in stored}
    for key in ('cache', 'resident'):
        if not getattr(cfg, key):
            continue
        shape = known.image_shape if key == 'cache' else metadata.image_shape(cfg, known)
        off = f'set {key} to False (--config.dataset.{key}=False)'
        if shape[0] and shape[1]:
            size = shape[0] * shape[1] * shape[2] * sum(images.values())
        elif (pixels := known.prepared.get('pixels')) is not None:
            size = shape[2] * sum(pixels.get(split, 0) for split in images)
        elif known.directory is None:
            return  # the set may still be prepared
        else:
            again = metadata.prepare_command(builder, cfg.data_dir, known)
            raise DataError(
                f"{key} is set, but another program or an older version prepared '{builder.name}' "
                f'and did not note how large its images are; {off}, or run `{again} --overwrite`.'
            )
        if size > _SHARE * (has := memory()):
            raise DataError(
                f"{key} is set, but the {sum(images.values()):,} images of '{builder.name}' take "
                f'{size / 1e9:,.1f} GB decoded, and only half of the {has / 1e9:,.1f} GB of memory '
                f'here may hold them; {off}.'
            )
