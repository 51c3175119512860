"""Training batches without end, evaluation batches exactly once, read ahead.

Axes: R rows of the batch that this process loads, H height, W width, C channels. A batch is
{'image': uint8 [R, H, W, C], 'label': int32 [R], 'valid': bool [R], 'index': int32 [R]}.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any

import numpy as np

from input_pipeline import augment, metadata, order, storage
from input_pipeline.cores import cores
from input_pipeline.decode import decode
from input_pipeline.reader import Reader
from input_pipeline.registry import find
from input_pipeline.steps import Batch, Steps
from input_pipeline.types import DataError, DatasetConfig

_BUFFER_BYTES = 2**30  # decoded batches waiting to be used


class Batches:
    """An iterator over batches, read ahead in the background. Close it, or use `with`.

    Attributes:
        bad_images: undecodable images met so far (each time one is met).
    """

    def __init__(self, steps: Steps, start: int, stop: int, workers: int, strict: bool) -> None:
        import grain

        self.bad_images = 0
        self._strict, self._shared = strict, workers > 0
        self._named: set[str] = set()
        self._closed = False
        batch_bytes = len(steps.rows) * int(np.prod(steps.shape))
        ahead = int(np.clip(_BUFFER_BYTES // max(batch_bytes, 1), 2, 16))
        if workers:
            _parse_flags()
            per_worker = max(1, ahead // workers)
            source = grain.MapDataset.range(start, max(start, stop)).map(steps)
            batches = source.to_iter_dataset(grain.ReadOptions(1, 1)).mp_prefetch(
                grain.MultiprocessingOptions(workers, per_worker)
            )
        else:
            threads = min(ahead, cores())
            source = grain.MapDataset.range(start, max(start, stop)).map(steps)
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
        if self._shared:  # memory of a worker process, which may end before the batch does
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
            if key not in self._named:
                self._named.add(key)
                logging.warning("cannot decode image '%s'; its row is masked out", key)

    def close(self) -> None:
        """Stops reading ahead; later calls yield nothing. May be called twice."""
        if not self._closed and hasattr(self._iterator, 'close'):
            self._iterator.close()
            self._iterator = iter(())
            if self._shared:  # what was read last lies in cycles, in memory that someone must free
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
    """grain's worker processes read absl flags, which a library user never parsed."""
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()


def build_steps(
    cfg: DatasetConfig, split: str, batch_size: int, rows: Sequence[int], seed: int | None
) -> Steps:
    """Puts together what loads a split; `seed` None means an evaluation."""
    storage.require(cfg)
    builder = find(cfg.name)
    known = metadata.facts(builder, cfg.data_dir)
    assert known.directory is not None
    whole = metadata.split_sizes(builder, known, cfg.validation_fraction)
    sizes = metadata.split_sizes(builder, known, cfg.validation_fraction, cfg.train_images)
    metadata.check_split(cfg, sizes, split)
    shape = metadata.image_shape(cfg, known)
    varies = None in known.image_shape
    for key in ('cache', 'resident'):
        if getattr(cfg, key) and varies:
            raise DataError(
                f"{key} is set, but images of '{cfg.name}' vary in size and are too many to keep "
                f'decoded; set {key} to False.'
            )
    if batch_size < 1 or any(not 0 <= row < batch_size for row in rows):
        raise DataError(f'rows must lie in [0, batch_size={batch_size}); got {list(rows)[:8]}.')
    own = known.sizes.get(builder.stored.get(split, ''), 0)
    members = None
    if whole[split] != own:  # a part of the stored train split
        members = order.members(
            known.sizes[builder.stored['train']], cfg.validation_fraction, split
        )
    if sizes[split] != whole[split]:
        few = order.subset(whole[split], sizes[split])
        members = few if members is None else members[few]
    stored = builder.stored[split if own else 'train']
    return Steps(
        reader=Reader(known.directory, stored, shape[2], cfg.cache),
        members=members,
        fixed=None if seed is not None else order.evaluation_order(sizes[split]),
        size=sizes[split],
        shape=shape,
        varies=varies,
        batch_size=batch_size,
        rows=np.asarray(rows, np.int64),
        seed=seed or 0,
        kind=cfg.augment,
        layers=cfg.randaugment_layers,
        magnitude=cfg.randaugment_magnitude,
    )


def evaluation_image(
    cfg: DatasetConfig, shape: tuple[int, int, int], encoded: bytes
) -> np.ndarray | None:
    """Returns uint8 `shape`, what an evaluation makes of an encoded image (JPEG, PNG, ...).

    None where it cannot be decoded. Transparency is left out, gray and CMYK become RGB (or all
    becomes gray, where the set is). The set itself is not read.
    """
    image = decode(encoded, shape[2])
    varies = None in find(cfg.name).image_shape
    return None if image is None else augment.fit(image, shape, varies)


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

    Row r of step s holds image number s * batch_size + r of an endless order that is
    shuffled anew each epoch; its augmentation is keyed by (seed, s, r). Worker count, start
    step and the choice of rows change nothing, and no state needs saving. A batch may
    straddle two epochs. An image that cannot be decoded keeps its row: zeros, its label,
    valid=False; it is named in the log and counted in `bad_images`.

    Args:
        cfg: the set.
        seed: the run's seed.
        batch_size: images of the whole batch, over all processes.
        rows: rows of the batch to load here, each in [0, batch_size).
        start_step: first step to yield.
        num_steps: step to stop before.

    Returns:
        An iterator of {'image': uint8 [R, H, W, C], 'label': int32 [R], 'valid': bool [R],
        'index': int32 [R]}, R = len(rows); `index` counts images of the split in storage
        order.

    Raises:
        DataError: the data is missing or the config is wrong.
    """
    steps = build_steps(cfg, 'train', batch_size, rows, seed)
    return Batches(steps, start_step, num_steps, 0 if cfg.cache else cfg.workers, strict=False)


def evaluation_batches(
    cfg: DatasetConfig, *, split: str, batch_size: int, rows: Sequence[int]
) -> Batches:
    """Yields one pass over a split: every image once, in an order that never changes.

    The order is pseudo-random with a constant seed, so position n holds the same image
    whatever the batch size, run, arm or training seed. The last batch is padded: zeros,
    label 0, valid=False, index -1.

    Args:
        cfg: the set; its augmentation is not used.
        split: 'train', 'validation' or 'test'.
        batch_size: images of the whole batch, over all processes.
        rows: rows of the batch to load here, each in [0, batch_size).

    Returns:
        An iterator of batches as `train_batches` yields them.

    Raises:
        DataError: as above, or the split does not exist; while iterating, an image cannot
            be decoded (the message names it).
    """
    steps = build_steps(cfg, split, batch_size, rows, None)
    stop = -(-steps.size // batch_size)
    return Batches(steps, 0, stop, 0 if cfg.cache else cfg.workers, strict=True)
