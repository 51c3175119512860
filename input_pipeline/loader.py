"""Yields endless training batches and exact evaluation batches, read ahead in the background.

Axes: R rows of the batch that this process loads, H height, W width, C channels. A batch is
{'image': uint8 [R, H, W, C], 'label': int32 [R], 'valid': bool [R], 'index': int32 [R]}, with
'domain': int32 [R] if the config asks for domains.
"""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any

import numpy as np

from input_pipeline import augment, checks, domains, metadata, order, other_formats, splits, storage
from input_pipeline.cores import cores
from input_pipeline.decode import decode
from input_pipeline.reader import Item, Reader
from input_pipeline.registry import find
from input_pipeline.steps import Batch, Steps
from input_pipeline.types import DataError, DatasetConfig

_BUFFER_BYTES = 2**30  # limit for decoded batches that wait to be used


class Batches:
    """An iterator over batches that reads ahead in the background. Close it, or use `with`.

    Attributes:
        bad_images: undecodable images so far, counted each time they come up.
    """

    def __init__(self, steps: Steps, start: int, stop: int, workers: int, strict: bool) -> None:
        import grain

        self.bad_images = 0
        self._strict, self._shared = strict, workers > 0
        self._logged: set[str] = set()
        self._closed = False
        batch_bytes = len(steps.rows) * int(np.prod(steps.shape))
        ahead = int(np.clip(_BUFFER_BYTES // max(batch_bytes, 1), 2, 16))
        source = grain.MapDataset.range(start, max(start, stop)).map(steps)
        if workers:
            _parse_flags()
            per_worker = max(1, ahead // workers)
            batches = source.to_iter_dataset(grain.ReadOptions(1, 1)).mp_prefetch(
                grain.MultiprocessingOptions(workers, per_worker)
            )
        else:
            threads = min(ahead, cores())
            batches = source.to_iter_dataset(grain.ReadOptions(threads, ahead))
        self._iterator: Any = iter(batches) if stop > start else iter(())

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if self._closed:
            raise StopIteration
        batch, bad = next(self._iterator)
        if bad:
            self._report(bad)
        if self._shared:  # copy: a worker owns this memory and may end before the batch is used
            batch = {name: np.array(values) for name, values in batch.items()}
        return batch

    def _report(self, bad: tuple[str, ...]) -> None:
        from absl import logging

        if self._strict:
            raise DataError(
                f"cannot decode image '{bad[0]}'; an evaluation counts every image, so replace "
                'the file and prepare the set again.'
            )
        self.bad_images += len(bad)
        for key in bad:
            if key not in self._logged:
                self._logged.add(key)
                logging.warning("cannot decode image '%s'; its row is masked out", key)

    def close(self) -> None:
        """Stops reading ahead; the iterator then yields nothing more. May be called twice."""
        if not self._closed and hasattr(self._iterator, 'close'):
            self._iterator.close()
            self._iterator = iter(())
            if self._shared:  # reference cycles hold the last batches in shared memory: free it
                gc.collect()
        self._closed = True

    def __enter__(self) -> Batches:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _parse_flags() -> None:
    """Marks absl flags as parsed: grain's workers read them, but a library user has not."""
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()


def build_steps(
    cfg: DatasetConfig, split: str, batch_size: int, rows: Sequence[int], seed: int | None
) -> Steps:
    """Returns the `Steps` of a split; a `seed` of None means an evaluation.

    Raises:
        DataError: as `train_batches` and `evaluation_batches` raise it.
    """
    storage.require(cfg)
    builder = find(cfg.name)
    known = metadata.facts(builder, cfg.data_dir)
    assert known.directory is not None
    part = splits.part(builder, known, cfg, split)
    shape = metadata.image_shape(cfg, known)
    checks.check_kept(cfg)
    if batch_size < 1 or any(not 0 <= row < batch_size for row in rows):
        raise DataError(f'rows must lie in [0, batch_size={batch_size}); got {list(rows)[:8]}.')
    return Steps(
        reader=Reader(known.directory, part.stored, shape[2], known.num_classes, cfg.cache),
        members=part.members,
        fixed=None if seed is not None else order.evaluation_order(part.size),
        size=part.size,
        shape=shape,
        varies=_varies(cfg),
        batch_size=batch_size,
        rows=np.asarray(rows, np.int64),
        seed=seed or 0,
        kind=cfg.augment,
        layers=cfg.randaugment_layers,
        magnitude=cfg.randaugment_magnitude,
        domains=domains.of_split(cfg.domains, known.sizes[part.stored], known.num_classes, shape),
    )


def _varies(cfg: DatasetConfig) -> bool:
    """Whether images vary in size, as the builder says: to predict needs no prepared set."""
    return None in find(cfg.name).image_shape


def evaluation_image(
    cfg: DatasetConfig, shape: tuple[int, int, int], encoded: bytes
) -> np.ndarray | None:
    """Prepares one encoded image (JPEG, PNG, ...) as an evaluation does; does not read the set.

    Returns:
        uint8 `shape`, RGB or gray as the set is; what is transparent is white. None if the image
        cannot be decoded.
    """
    image = decode(other_formats.as_png(encoded) or encoded, shape[2])
    return None if image is None else augment.fit(image, shape, _varies(cfg))


def evaluation_steps(cfg: DatasetConfig, shape: tuple[int, int, int]) -> dict[str, Any]:
    """What `evaluation_image` does to an image, and how networks scale its pixels, as data.

    Args:
        shape: as it takes it.

    Returns:
        'channels': 'RGB' or 'gray'; 'shorter_side': to which a set whose images vary in size is
        resized, else None; 'centre_crop' or 'resize': [H, W]; 'shrink' and 'enlarge': how pixels
        are interpolated; 'scale', 'mean', 'std': pixels p become (p * scale - mean) / std.
    """
    height, width, channels = shape
    varies = _varies(cfg)
    mean, std = metadata.mean_std(cfg)
    return {
        'channels': 'gray' if channels == 1 else 'RGB',
        'shorter_side': augment.shorter_side(height) if varies else None,
        'centre_crop' if varies else 'resize': [height, width],
        'shrink': 'area',
        'enlarge': 'linear',
        'scale': 1 / 255,
        'mean': list(mean),
        'std': list(std),
    }


def train_batches(
    cfg: DatasetConfig,
    *,
    seed: int,
    batch_size: int,
    rows: Sequence[int],
    start_step: int,
    num_steps: int,
) -> Batches:
    """Yields the training batches of steps start_step .. num_steps-1.

    Row r of step s holds image s * batch_size + r of an endless order that is reshuffled each
    epoch; (seed, s, r) keys its augmentation. The number of workers, the start step and the
    choice of rows do not change a row, so no state needs saving. A batch may span two epochs.
    An image that cannot be decoded keeps its row, with zeros, its label and valid=False; the
    log names it and `bad_images` counts it.

    Args:
        cfg: the set and its augmentation.
        seed: the run's seed.
        batch_size: images of the whole batch, over all processes.
        rows: rows of the batch to load here, each in [0, batch_size).
        start_step: first step to yield.
        num_steps: total number of steps; the last one yielded is num_steps-1.

    Returns:
        An iterator of {'image': uint8 [R, H, W, C], 'label': int32 [R], 'valid': bool [R],
        'index': int32 [R]}, R = len(rows); `index` is the image's place in the split, in
        storage order.

    Raises:
        DataError: the data is missing or damaged, or the config is wrong.
    """
    steps = build_steps(cfg, 'train', batch_size, rows, seed)
    return Batches(steps, start_step, num_steps, 0 if cfg.cache else cfg.workers, strict=False)


def evaluation_batches(
    cfg: DatasetConfig, *, split: str, batch_size: int, rows: Sequence[int], strict: bool = True
) -> Batches:
    """Yields every image of a split once, in an order that never changes.

    The order is pseudo-random with a constant seed, so position n holds the same image for
    every batch size, run, arm and training seed. The last batch is padded with zeros, label 0,
    valid=False and index -1.

    Args:
        cfg: the set; its augmentation is ignored.
        split: 'train', 'validation' or 'test'.
        batch_size: images of the whole batch, over all processes.
        rows: rows of the batch to load here, each in [0, batch_size).
        strict: whether an image that cannot be decoded is an error. Otherwise its row is masked
            out, as in training.

    Returns:
        An iterator of batches as `train_batches` yields them.

    Raises:
        DataError: as `train_batches`, or the split does not exist. While iterating, if `strict`:
            an image cannot be decoded; the message names it.
    """
    steps = build_steps(cfg, split, batch_size, rows, None)
    stop = -(-steps.size // batch_size)
    return Batches(steps, 0, stop, 0 if cfg.cache else cfg.workers, strict)


def evaluation_items(
    cfg: DatasetConfig, split: str, places: Sequence[int]
) -> Iterator[tuple[int, Item]]:
    """Yields single images of a split with their names, as `evaluation_batches` prepares them.

    Args:
        cfg: the set; its augmentation is ignored.
        split: 'train', 'validation' or 'test'.
        places: places in the order of `evaluation_batches`.

    Yields:
        The image's place in the split, in storage order, and the image.

    Raises:
        DataError: as `evaluation_batches`.
    """
    steps = build_steps(cfg, split, 1, [0], None)
    assert steps.fixed is not None
    index = steps.fixed[np.asarray(places, np.int64)]
    stored = index if steps.members is None else steps.members[index]
    for number, item in zip(index.tolist(), steps.reader.read(stored.tolist()), strict=True):
        if item.image is not None:
            item = dataclasses.replace(
                item, image=augment.fit(item.image, steps.shape, steps.varies)
            )
        yield number, item
