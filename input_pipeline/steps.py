"""Loads one step. Row r of step s is a pure function of (seed, s, r), in every process.

Axes: N images of the split, R rows of the batch that this process loads, H height, W width,
C channels.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from input_pipeline import augment, order
from input_pipeline.domains import Domains
from input_pipeline.reader import Item, Reader

# {'image': uint8 [R, H, W, C], 'label': int32 [R], 'valid': bool [R], 'index': int32 [R]}, and
# 'domain': int32 [R] where the set has domains
Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Steps:
    """Loads the batch of any step. Holds only values that can be sent to worker processes."""

    reader: Reader
    members: np.ndarray | None  # int32 [N], index in the split -> stored position
    fixed: np.ndarray | None  # int32 [N], the order of an evaluation; None for training
    size: int  # N
    shape: tuple[int, int, int]  # (H, W, C)
    varies: bool  # whether the set's images vary in size
    batch_size: int
    rows: np.ndarray  # int64 [R]
    seed: int
    kind: str  # of augmentation, one of types.AUGMENTS
    layers: int  # operations of RandAugment
    magnitude: float  # of RandAugment
    domains: Domains | None = None

    def __call__(self, step: int) -> tuple[Batch, tuple[str, ...]]:
        """Returns the batch of a step, and the names of the images that cannot be decoded."""
        positions = step * self.batch_size + self.rows
        if self.fixed is None:
            index = order.train_indices(self.seed, positions, self.size)
        else:
            inside = positions < self.size
            index = np.where(inside, self.fixed[np.minimum(positions, self.size - 1)], -1)
        present = np.flatnonzero(index >= 0)
        stored = index if self.members is None else self.members[index]
        items = self.reader.read(stored[present].tolist())

        count = len(self.rows)
        batch: Batch = {
            'image': np.empty((count, *self.shape), np.uint8),
            'label': np.zeros(count, np.int32),
            'valid': np.zeros(count, np.bool_),
            'index': index.astype(np.int32),
        }
        if self.domains:
            batch['domain'] = np.zeros(count, np.int32)
            batch['domain'][present] = self.domains.of_image[stored[present]]
        bad = []
        for slot, item in zip(present.tolist(), items, strict=True):
            batch['label'][slot] = item.label
            image = self._pixels(item, step, int(self.rows[slot]))
            if image is None:
                bad.append(item.key)
            else:
                batch['image'][slot], batch['valid'][slot] = image, True
        if self.domains:
            self.domains.apply(batch)
        batch['image'][~batch['valid']] = 0
        return batch, tuple(bad)

    def _pixels(self, item: Item, step: int, row: int) -> np.ndarray | None:
        if item.image is None:
            return None
        if self.fixed is not None:
            return augment.fit(item.image, self.shape, self.varies)
        rng = augment.generator(self.seed, step, row)
        return augment.augment(
            item.image,
            rng,
            kind=self.kind,
            shape=self.shape,
            varies=self.varies,
            layers=self.layers,
            magnitude=self.magnitude,
        )
