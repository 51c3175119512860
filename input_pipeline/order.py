"""Computes the orders of examples. Each is a pure function of integers, so none is stored.

Axes: R rows of a batch that this process loads.
"""

from __future__ import annotations

import functools

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_HOLD_OUT, _EVALUATION, _SUBSET, DOMAINS = 1, 2, 3, 4  # streams: the same for every run and arm
_MASK = 2**64 - 1


def mix64(*words: int) -> int:
    """Returns a 64-bit hash of integers.

    Source: splitmix64 (Steele, Lea and Flood, OOPSLA 2014), chained over the words.
    """
    state = 0
    for word in words:
        state = ((state ^ (word & _MASK)) + int(_GOLDEN)) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state


def fixed_permutation(size: int, stream: int) -> np.ndarray:
    """Returns int64 [size], a permutation that depends only on `size` and `stream`."""
    with np.errstate(over='ignore'):
        keys = np.arange(1, size + 1, dtype=np.uint64) * _GOLDEN + np.uint64(mix64(stream))
        keys = (keys ^ (keys >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        keys = (keys ^ (keys >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        keys ^= keys >> np.uint64(31)
    return np.argsort(keys, kind='stable')


def held_out_size(size: int, fraction: float) -> int:
    """Returns how many of `size` training images are held out for validation."""
    return round(size * fraction)


def members(size: int, fraction: float, part: str) -> np.ndarray:
    """Returns int32 [n], the positions of one part of a stored train split, ascending.

    Args:
        size: images in the stored split.
        fraction: share held out for validation; the same images for every seed.
        part: 'train' or 'validation'.
    """
    shuffled = fixed_permutation(size, _HOLD_OUT)
    held = held_out_size(size, fraction)
    chosen = shuffled[:held] if part == 'validation' else shuffled[held:]
    return np.sort(chosen).astype(np.int32)


def subset(size: int, count: int) -> np.ndarray:
    """Returns int32 [count], indices in a split of `size` images, ascending.

    A larger subset contains every smaller one.
    """
    return np.sort(fixed_permutation(size, _SUBSET)[:count]).astype(np.int32)


def evaluation_order(size: int) -> np.ndarray:
    """Returns int32 [size]: position in the evaluation pass -> index in the split."""
    return fixed_permutation(size, _EVALUATION).astype(np.int32)


@functools.lru_cache(maxsize=4)
def _epoch_order(seed: int, epoch: int, size: int) -> np.ndarray:
    return fixed_permutation(size, mix64(seed, epoch)).astype(np.int32)


def train_indices(seed: int, positions: np.ndarray, size: int) -> np.ndarray:
    """Returns int32 [R], the index in the split of each global training position.

    Epoch e covers positions [e * size, (e + 1) * size). Each epoch of each seed has its own
    permutation.

    Args:
        seed: the run's seed.
        positions: int64 [R], step * batch_size + row.
        size: images in the split.
    """
    epochs, offsets = np.divmod(positions, size)
    indices = np.empty(len(positions), np.int32)
    for epoch in np.unique(epochs).tolist():
        chosen = epochs == epoch
        indices[chosen] = _epoch_order(seed, epoch, size)[offsets[chosen]]
    return indices
