"""Resizes, crops and augments one image at a time, with OpenCV.

Axes: H height, W width, C channels. All images are uint8 [H, W, C]. Shrinking averages over areas,
which avoids aliasing; enlarging interpolates linearly. A random crop that shrinks to more than
half interpolates linearly, too: that still reads every pixel and takes a third of the time.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.random.bit_generator import ISeedSequence

from input_pipeline.image_size import MAX_PIXELS
from input_pipeline.order import mix64
from input_pipeline.randaugment import randaugment

_CROP_RATIO = 256 / 224  # shorter side before the centre crop / side after it


class _Key(ISeedSequence):
    """Hands Philox its key. `Philox(key=...)` would also ask the system for unused entropy."""

    def __init__(self, *words: int) -> None:
        self._words = np.array(words, np.uint64)

    def generate_state(self, n_words: int, dtype: Any = np.uint64) -> np.ndarray:
        return self._words


def generator(seed: int, step: int, row: int) -> np.random.Generator:
    """Returns the random generator of one training row, keyed only by (seed, step, row)."""
    key: Any = _Key(mix64(seed), (step << 32) | row)  # Any: numpy's types say SeedSequence
    return np.random.Generator(np.random.Philox(key))


def resize(image: np.ndarray, height: int, width: int, *, quick: bool = False) -> np.ndarray:
    """Returns uint8 [height, width, C].

    Args:
        image: uint8 [H, W, C].
        height, width: size to return, in pixels.
        quick: average over areas only when a side shrinks to less than half.
    """
    import cv2

    if image.shape[:2] == (height, width):
        return image
    if quick:
        averages = 2 * height < image.shape[0] or 2 * width < image.shape[1]
    else:
        averages = height * width < image.shape[0] * image.shape[1]
    method = cv2.INTER_AREA if averages else cv2.INTER_LINEAR
    resized = cv2.resize(image, (width, height), interpolation=method)
    return resized if resized.ndim == 3 else resized[..., None]


def _without_far_ends(image: np.ndarray, ratio: int) -> np.ndarray:
    """Returns the middle of an image whose longer side is over `ratio` times the shorter one.

    A line of 1 x 65,535 pixels would take gigabytes once its shorter side is enlarged.
    """
    longest = max(1, ratio) * min(image.shape[:2])
    top, left = (max(0, (side - longest) // 2) for side in image.shape[:2])
    return image[top : top + longest, left : left + longest]


def shorter_side(size: int) -> int:
    """Pixels of an image's shorter side before `centre_crop` takes its middle."""
    return max(size, round(size * _CROP_RATIO))


def centre_crop(image: np.ndarray, size: int) -> np.ndarray:
    """Resizes the shorter side to size * 256/224 and returns the middle, uint8 [size, size, C]."""
    shorter = shorter_side(size)
    image = _without_far_ends(image, MAX_PIXELS // shorter**2)
    height, width = image.shape[:2]
    scale = shorter / min(height, width)
    image = resize(image, max(size, round(height * scale)), max(size, round(width * scale)))
    top, left = (image.shape[0] - size) // 2, (image.shape[1] - size) // 2
    return image[top : top + size, left : left + size]


def mirrored(image: np.ndarray) -> np.ndarray:
    """Returns uint8 [H, W, C] with left and right swapped.

    This is a new array: copying a reversed view later takes twenty times as long.
    """
    import cv2

    flipped = cv2.flip(image, 1)
    return flipped if flipped.ndim == 3 else flipped[..., None]


def padding(height: int) -> int:
    """Returns how many pixels `pad_crop` adds on each side of an image of this height."""
    return max(1, height // 8)


def pad_crop(image: np.ndarray, rng: np.random.Generator, *, flip: bool) -> np.ndarray:
    """Pads with H // 8 zeros on each side (at least 1) and crops at a random place.

    Args:
        image: uint8 [H, W, C].
        rng: random generator of this row.
        flip: whether to mirror left and right with probability 1/2.

    Returns:
        uint8 [H, W, C].
    """
    height, width = image.shape[:2]
    pad = padding(height)
    top, left, mirror = rng.integers(0, [2 * pad + 1, 2 * pad + 1, 2]).tolist()
    padded = np.zeros((height + 2 * pad, width + 2 * pad, image.shape[2]), np.uint8)
    padded[pad : pad + height, pad : pad + width] = image
    image = padded[top : top + height, left : left + width]
    return mirrored(image) if flip and mirror else image


def crop_box(height: int, width: int, rng: np.random.Generator) -> tuple[int, int, int, int, bool]:
    """Draws a crop box and whether to mirror it.

    The box covers 8 to 100 % of the area, with width / height in [3/4, 4/3]. If ten boxes in a
    row do not fit, it is the largest centred box with an allowed ratio.

    Returns:
        Top, left, height and width of the box in pixels; whether to mirror.
    """
    mirror = bool(rng.integers(0, 2))
    low, high = math.log(3 / 4), math.log(4 / 3)
    for _ in range(10):
        area = height * width * rng.uniform(0.08, 1.0)
        ratio = math.exp(rng.uniform(low, high))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            top = int(rng.integers(0, height - h + 1))
            left = int(rng.integers(0, width - w + 1))
            return top, left, h, w, mirror
    w, h = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
    return (height - h) // 2, (width - w) // 2, h, w, mirror


def random_resized_crop(
    image: np.ndarray, rng: np.random.Generator, shape: tuple[int, int, int]
) -> np.ndarray:
    """Crops a random box and resizes it to `shape`; mirrors it with probability 1/2.

    Source: Szegedy et al., Going deeper with convolutions (arXiv 1409.4842).

    Returns:
        uint8 `shape`, (H, W, C).
    """
    top, left, h, w, mirror = crop_box(image.shape[0], image.shape[1], rng)
    image = resize(image[top : top + h, left : left + w], shape[0], shape[1], quick=True)
    return mirrored(image) if mirror else image


def fit(image: np.ndarray, shape: tuple[int, int, int], varies: bool) -> np.ndarray:
    """Brings an image to `shape` as an evaluation does.

    Images of a set with varying sizes are cropped at the centre, others only resized.

    Args:
        image: uint8 [H, W, C].
        shape: (H, W, C) to return.
        varies: whether the set's images vary in size.
    """
    if image.shape == shape:
        return image
    return centre_crop(image, shape[0]) if varies else resize(image, shape[0], shape[1])


def augment(
    image: np.ndarray,
    rng: np.random.Generator,
    *,
    kind: str,
    shape: tuple[int, int, int],
    varies: bool,
    layers: int = 0,
    magnitude: float = 0.0,
) -> np.ndarray:
    """Returns a training image, uint8 `shape`.

    Args:
        image: uint8 [H, W, C].
        rng: random generator of this row.
        kind: one of `types.AUGMENTS`.
        shape: (H, W, C) to return.
        varies: whether the set's images vary in size.
        layers: RandAugment operations to apply afterwards.
        magnitude: of RandAugment, in [0, 10].
    """
    if kind == 'random_resized_crop':
        image = random_resized_crop(image, rng, shape)
    else:
        image = fit(image, shape, varies)
        if kind != 'none':
            image = pad_crop(image, rng, flip=kind == 'pad_crop_flip')
    return randaugment(image, rng, layers, magnitude) if layers else image
