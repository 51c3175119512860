"""RandAugment: a few operations drawn at random for each training image, at one strength.

The fourteen operations, their ranges and directions are those of torchvision's `RandAugment`. The
magnitude M is of 10, as timm counts it: torchvision's bin b of 0 to 30 is M = b / 3, so that its
default, 9, is M = 3. (timm's own operations are others: no identity, but invert and solarize_add; a
posterize that keeps 4 bits fewer; each is left out half of the time.) Shear and rotation
interpolate linearly; what comes from outside is black. Magnitude 0 changes nothing, but for the two
operations that have no strength (autocontrast, equalize).

Source: Cubuk et al., RandAugment (arXiv 1909.13719).

Axes: H height, W width, C channels (3, or 1 gray). All images are uint8 [H, W, C], RGB. `strength`
is M / 10; an operation that has two directions takes the negative one as a negative strength.
"""

from __future__ import annotations

import functools
import math

import numpy as np

_LEVELS = np.arange(256)
_SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13


def randaugment(
    image: np.ndarray, rng: np.random.Generator, layers: int, magnitude: float
) -> np.ndarray:
    """Applies `layers` operations, drawn with replacement, one after another.

    Args:
        image: uint8 [H, W, C].
        rng: random numbers of this row; two integers are drawn for each operation.
        layers: how many operations.
        magnitude: M in [0, 10].

    Returns:
        uint8 [H, W, C].
    """
    for place, negative in rng.integers(0, [len(_ORDER), 2], (layers, 2)).tolist():
        operation = _ORDER[place]
        sign = -1 if negative and operation in SIGNED else 1
        image = OPERATIONS[operation](image, sign * magnitude / 10)
    return image


def identity(image: np.ndarray, strength: float) -> np.ndarray:
    return image


def autocontrast(image: np.ndarray, strength: float) -> np.ndarray:
    """Stretches each channel so that its darkest value is 0 and its lightest 255."""
    tables = []
    for channel in _histograms(image):
        present = np.flatnonzero(channel)
        low, high = int(present[0]), int(present[-1])
        tables.append(_LEVELS if low == high else (_LEVELS - low) * 255 // (high - low))
    return _look_up(image, np.stack(tables))


def equalize(image: np.ndarray, strength: float) -> np.ndarray:
    """Maps each channel so that its values are spread evenly.

    With n(v) pixels of value v, and s = (all - n(largest)) // 255: v becomes
    (s // 2 + sum of n below v) // s; a channel with s = 0 stays.
    """
    tables = []
    for channel in _histograms(image):
        step = int(channel.sum() - channel[np.flatnonzero(channel)[-1]]) // 255
        below = np.cumsum(channel) - channel
        tables.append((below + step // 2) // step if step else _LEVELS)
    return _look_up(image, np.stack(tables))


def rotate(image: np.ndarray, strength: float) -> np.ndarray:
    """Turns by 30 degrees times strength about the middle, anticlockwise."""
    angle = math.radians(30 * strength)
    cos, sin = math.cos(angle), math.sin(angle)
    return _affine(image, [[cos, -sin], [sin, cos]], (image.shape[1] / 2, image.shape[0] / 2))


def shear_x(image: np.ndarray, strength: float) -> np.ndarray:
    """Row y shows what lies 0.3 y times strength to the right of it."""
    return _affine(image, [[1, 0.3 * strength], [0, 1]], (0, 0))


def shear_y(image: np.ndarray, strength: float) -> np.ndarray:
    """Column x shows what lies 0.3 x times strength below it."""
    return _affine(image, [[1, 0], [0.3 * strength, 1]], (0, 0))


def translate_x(image: np.ndarray, strength: float) -> np.ndarray:
    """Moves to the right by whole pixels, 150/331 of the width times strength."""
    width = image.shape[1]
    by = int(width * 150 / 331 * strength)
    out = np.zeros_like(image)
    out[:, max(by, 0) : width + min(by, 0)] = image[:, max(-by, 0) : width - max(by, 0)]
    return out


def translate_y(image: np.ndarray, strength: float) -> np.ndarray:
    """Moves down by whole pixels, 150/331 of the height times strength."""
    return translate_x(image.swapaxes(0, 1), strength).swapaxes(0, 1)


def posterize(image: np.ndarray, strength: float) -> np.ndarray:
    """Keeps the highest 8 - 4 strength bits of each value."""
    return image & np.uint8(256 - (1 << round(4 * strength)))


def solarize(image: np.ndarray, strength: float) -> np.ndarray:
    """Inverts the values from 256 (1 - strength) on."""
    return _look_up(image, np.where(_LEVELS >= 256 * (1 - strength), 255 - _LEVELS, _LEVELS))


def brightness(image: np.ndarray, strength: float) -> np.ndarray:
    """Away from black: values times 1 + 0.9 strength."""
    return _look_up(image, _away(_LEVELS, 0, strength))


def contrast(image: np.ndarray, strength: float) -> np.ndarray:
    """Away from the mean of the image in gray."""
    return _look_up(image, _away(_LEVELS, int(_gray(image).mean() + 0.5), strength))


def color(image: np.ndarray, strength: float) -> np.ndarray:
    """Away from the image in gray."""
    import cv2

    if image.shape[-1] == 1:
        return image
    return _blend(image, cv2.cvtColor(_gray(image), cv2.COLOR_GRAY2RGB), strength)


def sharpness(image: np.ndarray, strength: float) -> np.ndarray:
    """Away from the smoothed image: 5 parts a pixel, 1 part each of its neighbours; not at
    the border."""
    import cv2

    smooth = cv2.filter2D(image, -1, _SMOOTH).reshape(image.shape)
    out = image.copy()
    inside = np.s_[1:-1, 1:-1]
    if image[inside].size:
        out[inside] = _blend(image[inside], smooth[inside], strength)
    return out


OPERATIONS = {
    f.__name__: f
    for f in (
        identity, autocontrast, equalize, rotate, solarize, color, posterize, contrast,
        brightness, sharpness, shear_x, shear_y, translate_x, translate_y,
    )
}  # fmt: skip
SIGNED = {'rotate', 'color', 'contrast', 'brightness', 'sharpness', 'shear_x', 'shear_y',
          'translate_x', 'translate_y'}  # fmt: skip
_ORDER = tuple(OPERATIONS)


def _histograms(image: np.ndarray) -> list[np.ndarray]:
    """int64 [256] of each channel."""
    import cv2

    count = functools.partial(cv2.calcHist, [image], mask=None, histSize=[256], ranges=[0, 256])
    channels = range(image.shape[-1])
    return [count(channels=[c]).ravel().astype(np.int64) for c in channels]


def _look_up(image: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Each value through a table, [256] or one for each channel, [C, 256]; rounded, clipped."""
    import cv2

    table = np.clip(np.rint(table), 0, 255).astype(np.uint8)
    if table.ndim == 2:  # OpenCV wants [1, 256, C]
        table = np.ascontiguousarray(table.T)[None]
    return cv2.LUT(np.ascontiguousarray(image), table).reshape(image.shape)


def _away(values: np.ndarray, origin: int, strength: float) -> np.ndarray:
    return origin + (values - origin) * (1 + 0.9 * strength)


def _blend(image: np.ndarray, origin: np.ndarray, strength: float) -> np.ndarray:
    """Away from `origin` [H, W, C], pixel by pixel; strength -1 leaves a tenth of the way."""
    import cv2

    factor = 1 + 0.9 * strength
    image, origin = np.ascontiguousarray(image), np.ascontiguousarray(origin)
    return cv2.addWeighted(image, factor, origin, 1 - factor, 0).reshape(image.shape)


def _gray(image: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 1], ITU-R 601 luma."""
    import cv2

    return image if image.shape[-1] == 1 else cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None]


def _affine(
    image: np.ndarray, matrix: list[list[float]], fixed: tuple[float, float]
) -> np.ndarray:
    """Shows at place p what lies at `fixed` + matrix (p - `fixed`); places are (x, y), and the
    middle of the first pixel is (0.5, 0.5)."""
    import cv2

    a, at = np.asarray(matrix), np.asarray(fixed) - 0.5
    where = np.concatenate([a, (at - a @ at)[:, None]], axis=1)
    height, width = image.shape[:2]
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    moved = cv2.warpAffine(np.ascontiguousarray(image), where, (width, height), flags=flags)
    return moved.reshape(image.shape)
