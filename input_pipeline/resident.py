"""Keeps the training split on the device: the host sends integers, the device crops images.

The batches equal those of `loader.train_batches` bit for bit.

Axes: N images of the split, R rows of the batch that this process loads, H height, W width,
C channels. A row is four integers: index in the split, top, left, mirror (0 or 1).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from input_pipeline import augment, domains, order
from input_pipeline.loader import build_steps
from input_pipeline.reader import Item
from input_pipeline.types import DatasetConfig

_AHEAD = 64  # steps whose integers are drawn at once
_LOW, _HALF = np.uint64(2**32 - 1), np.uint64(32)


def load(cfg: DatasetConfig) -> dict[str, np.ndarray]:
    """Decodes the whole training split.

    Returns:
        {'image': uint8 [N, H, W, C], 'label': int32 [N], 'valid': bool [N]}, and 'domain': int32
        [N] if the set has domains; the images are still without their marks. An image that cannot
        be decoded becomes zeros with valid=False, and the log names it.

    Raises:
        DataError: the data is missing or damaged, or the config is wrong.
    """
    from absl import logging

    steps = build_steps(cfg, 'train', 1, [0], 0)
    stored = np.arange(steps.size) if steps.members is None else steps.members
    out: dict[str, np.ndarray] = {
        'image': np.zeros((steps.size, *steps.shape), np.uint8),
        'label': np.zeros(steps.size, np.int32),
        'valid': np.ones(steps.size, np.bool_),
    }
    if steps.domains:
        out['domain'] = steps.domains.of_image[stored]

    def fitted(item: Item) -> Item:  # in the threads, so that no large image waits
        if item.image is None:
            return item
        image = augment.fit(item.image, steps.shape, steps.varies)
        return dataclasses.replace(item, image=image)

    for i, item in enumerate(steps.reader.read_all(stored.tolist(), fitted)):
        out['label'][i] = item.label
        if item.image is None:
            out['valid'][i] = False
            logging.warning("cannot decode image '%s'; its row is masked out", item.key)
        else:
            out['image'][i] = item.image
    if steps.domains:
        out['label'] = steps.domains.permuted(out['label'], out['domain'])
    return out


class Rows:
    """The integers from which `gather` builds a step's batch: `rows(step)` is int32 [R, 4].

    Args:
        cfg, seed, batch_size, rows: as for `train_batches`.
    """

    def __init__(self, cfg: DatasetConfig, seed: int, batch_size: int, rows: Sequence[int]) -> None:
        steps = build_steps(cfg, 'train', batch_size, rows, seed)
        self._rows, self._batch, self._size = steps.rows, batch_size, steps.size
        self._seed, self._kind, self._pad = seed, cfg.augment, padding(cfg, steps.shape)
        self._first, self._drawn = 0, np.empty((0, len(rows), 4), np.int32)

    def __call__(self, step: int) -> np.ndarray:
        if not self._first <= step < self._first + len(self._drawn):
            self._first, self._drawn = step, self._draw(np.arange(step, step + _AHEAD))
        return self._drawn[step - self._first]

    def _draw(self, steps: np.ndarray) -> np.ndarray:
        out = np.zeros((len(steps), len(self._rows), 4), np.int32)
        positions = steps[:, None] * self._batch + self._rows
        index = order.train_indices(self._seed, positions.ravel(), self._size)
        out[..., 0] = index.reshape(positions.shape)
        if self._kind != 'none':
            side = 2 * self._pad + 1
            out[..., 1:] = integers(self._seed, steps, self._rows, (side, side, 2))
            out[..., 3] &= self._kind == 'pad_crop_flip'
        return out


def padding(cfg: DatasetConfig, shape: tuple[int, int, int]) -> int:
    """Returns how many pixels the augmentation adds on each side of an image of shape (H, W, C)."""
    return 0 if cfg.augment == 'none' else augment.padding(shape[0])


def gather(
    split: dict[str, Any], rows: Any, pad: int, codes: np.ndarray | None = None
) -> dict[str, Any]:
    """Builds a batch on the device.

    Args:
        split: the arrays of `load`.
        rows: int32 [*, R, 4], from `Rows`.
        pad: pixels added on each side before cropping, from `padding`.
        codes: uint8 [D, ROWS, W, C], from `domains.codes`, if the set has domains.

    Returns:
        {'image': uint8 [*, R, H, W, C], 'label': int32 [*, R], 'valid': bool [*, R]}, and
        'domain': int32 [*, R] if the set has domains.
    """
    import jax
    import jax.numpy as jnp

    flat = rows.reshape(-1, 4)
    batch = {name: jnp.take(x, flat[:, 0], axis=0, mode='clip') for name, x in split.items()}
    if pad:
        shape = split['image'].shape[1:]

        def crop(padded: jax.Array, row: jax.Array) -> jax.Array:
            return jax.lax.dynamic_slice(padded, (row[1], row[2], 0), shape)

        padded = jnp.pad(batch['image'], ((0, 0), (pad, pad), (pad, pad), (0, 0)))
        image = jax.vmap(crop)(padded, flat)
        batch['image'] = jnp.where(flat[:, 3, None, None, None] > 0, image[:, :, ::-1], image)
    if codes is not None:
        marked = domains.mark(batch['image'], jnp.asarray(codes)[batch['domain']])
        batch['image'] = jnp.where(batch['valid'][:, None, None, None], marked, batch['image'])
    return {name: x.reshape(*rows.shape[:-1], *x.shape[1:]) for name, x in batch.items()}


def integers(
    seed: int, steps: np.ndarray, rows: np.ndarray, high: tuple[int, int, int]
) -> np.ndarray:
    """Returns `augment.generator(seed, step, row).integers(0, high)` for every step and row.

    A generator per row takes a hundred times as long. This repeats what numpy computes: three
    32-bit words of Philox 4x64-10, brought into range by Lemire's multiplication. The rare draws
    that Lemire's method rejects are left to numpy.

    Returns:
        int64 [steps, rows, 3].

    Source: Lemire, Fast random integer generation in an interval (ACM TOMACS 2019).
    """
    keys = (steps.astype(np.uint64)[:, None] << _HALF) | rows.astype(np.uint64)
    first, second = _philox(np.uint64(order.mix64(seed)), keys)
    words = np.stack([first & _LOW, first >> _HALF, second & _LOW], -1)
    products = words * np.asarray(high, np.uint64)
    out = (products >> _HALF).astype(np.int64)
    maybe_rejected = ((products & _LOW) < np.asarray(high, np.uint64)).any(-1)
    for s, r in np.argwhere(maybe_rejected).tolist():
        out[s, r] = augment.generator(seed, int(steps[s]), int(rows[r])).integers(0, high)
    return out


def _philox(key: np.uint64, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the first two words of Philox 4x64-10 under the keys (key, keys), at counter 1.

    Source: Salmon et al., Parallel random numbers: as easy as 1, 2, 3 (SC 2011).
    """
    a, b = np.uint64(0xD2E7470EE14C6C93), np.uint64(0xCA5A826395121157)
    w0, w1 = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBB67AE8584CAA73B)
    k0, k1 = np.full_like(keys, key), keys
    c0, c1, c2, c3 = np.ones_like(keys), *(np.zeros_like(keys) for _ in range(3))
    with np.errstate(over='ignore'):
        for _ in range(10):
            c0, c1, c2, c3 = _high(b, c2) ^ c1 ^ k0, b * c2, _high(a, c0) ^ c3 ^ k1, a * c0
            k0, k1 = k0 + w0, k1 + w1
    return c0, c1


def _high(x: np.uint64, y: np.ndarray) -> np.ndarray:
    """Returns the upper 64 bits of the product of two 64-bit numbers."""
    x0, x1, y0, y1 = x & _LOW, x >> _HALF, y & _LOW, y >> _HALF
    middle = x1 * y0 + (x0 * y0 >> _HALF)
    return x1 * y1 + (middle >> _HALF) + ((middle & _LOW) + x0 * y1 >> _HALF)
