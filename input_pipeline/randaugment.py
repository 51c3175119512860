"""RandAugment: applies a few randomly drawn operations to each training image, at one strength.

The fourteen operations, their ranges and directions are those of torchvision's `RandAugment`. The
magnitude M runs from 0 to 10, as in timm. torchvision counts bins from 0 to 30; its bin b is
M = b / 3, so its default of 9 is M = 3. With s = M / 10, the magnitudes of both are

    shear_x, shear_y                          0.3 s           in either direction
    translate_x, translate_y                  150/331 s       of the side, whole pixels, either
    rotate                                    30 s            degrees, either
    brightness, color, contrast, sharpness    1 + or - 0.9 s
    posterize                                 8 - round(4 s)  bits stay
    solarize                                  255 (1 - s)     and larger values are inverted
    autocontrast, equalize, identity          have none

Two things differ: shear and rotation interpolate linearly, where torchvision takes the nearest
pixel by default, and OpenCV rounds values where Pillow truncates them. (timm's operations differ
more: it has invert and solarize_add but no identity, its posterize keeps 4 bits fewer, and it skips
each operation half of the time.) Borders are filled with black. Magnitude 0 changes an image
through autocontrast and equalize, and solarize inverts the value 255.

Source: Cubuk et al., RandAugment (arXiv 1909.13719).

Axes: H height, W width, C channels (3 for RGB, 1 for gray). All images are uint8 [H, W, C].
`strength` is M / 10; a negative strength applies an operation in its other direction.
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
    """Applies `layers` operations in turn, drawn with replacement.

    Args:
        image: uint8 [H, W, C].
        rng: random generator of this row; each operation draws two integers.
        layers: number of operations.
        magnitude: M in [0, 10].

    Returns:
        uint8 [H, W, C].
    """
    names = list(OPERATIONS)
    for choice, negative in rng.integers(0, [len(names), 2], (layers, 2)).tolist():
        sign = -1 if negative and names[choice] in SIGNED else 1
        image = OPERATIONS[names[choice]](image, sign * magnitude / 10)
    return image


def identity(image: np.ndarray, strength: float) -> np.ndarray:
    """Returns the image unchanged."""
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
    """Maps the values of each channel so that they spread evenly.

    Let n(v) be the number of pixels with value v, and s = (pixels - n(largest value)) // 255.
    Value v becomes (s // 2 + sum of n below v) // s. A channel with s = 0 does not change.
    """
    tables = []
    for channel in _histograms(image):
        step = int(channel.sum() - channel[np.flatnonzero(channel)[-1]]) // 255
        below = np.cumsum(channel) - channel
        tables.append((below + step // 2) // step if step else _LEVELS)
    return _look_up(image, np.stack(tables))


def rotate(image: np.ndarray, strength: float) -> np.ndarray:
    """Rotates anticlockwise about the centre, by 30 degrees times strength."""
    angle = math.radians(30 * strength)
    cos, sin = math.cos(angle), math.sin(angle)
    return _affine(image, [[cos, -sin], [sin, cos]], (image.shape[1] / 2, image.shape[0] / 2))


def shear_x(image: np.ndarray, strength: float) -> np.ndarray:
    """Shifts row y to the left by 0.3 y times strength."""
    return _affine(image, [[1, 0.3 * strength], [0, 1]], (0, 0))


def shear_y(image: np.ndarray, strength: float) -> np.ndarray:
    """Shifts column x up by 0.3 x times strength."""
    return _affine(image, [[1, 0], [0.3 * strength, 1]], (0, 0))


def translate_x(image: np.ndarray, strength: float) -> np.ndarray:
    """Shifts right by whole pixels: 150/331 of the width times strength."""
    width = image.shape[1]
    shift = int(width * 150 / 331 * strength)
    out = np.zeros_like(image)
    out[:, max(shift, 0) : width + min(shift, 0)] = image[:, max(-shift, 0) : width - max(shift, 0)]
    return out


def translate_y(image: np.ndarray, strength: float) -> np.ndarray:
    """Shifts down by whole pixels: 150/331 of the height times strength."""
    return translate_x(image.swapaxes(0, 1), strength).swapaxes(0, 1)


def posterize(image: np.ndarray, strength: float) -> np.ndarray:
    """Keeps the highest 8 - 4 * strength bits of each value."""
    return image & np.uint8(256 - (1 << round(4 * strength)))


def solarize(image: np.ndarray, strength: float) -> np.ndarray:
    """Inverts the values from 255 * (1 - strength) upwards."""
    first = 255 * (1 - strength) - 1e-9  # a strength of 1/3 is inexact, and 170 is inverted
    return _look_up(image, np.where(first <= _LEVELS, 255 - _LEVELS, _LEVELS))


def brightness(image: np.ndarray, strength: float) -> np.ndarray:
    """Multiplies all values by 1 + 0.9 * strength."""
    return _look_up(image, _away(_LEVELS, 0, strength))


def contrast(image: np.ndarray, strength: float) -> np.ndarray:
    """Moves all values away from the mean of the gray image, by a factor of 1 + 0.9 * strength."""
    return _look_up(image, _away(_LEVELS, int(_gray(image).mean() + 0.5), strength))


def color(image: np.ndarray, strength: float) -> np.ndarray:
    """Moves each pixel away from its gray value, by a factor of 1 + 0.9 * strength."""
    import cv2

    if image.shape[-1] == 1:
        return image
    return _blend(image, cv2.cvtColor(_gray(image), cv2.COLOR_GRAY2RGB), strength)


def sharpness(image: np.ndarray, strength: float) -> np.ndarray:
    """Moves each pixel away from the smoothed image, by a factor of 1 + 0.9 * strength.

    Smoothing weights a pixel by 5/13 and each of its 8 neighbours by 1/13. The pixels at the
    border do not change.
    """
    import cv2

    smooth = cv2.filter2D(image, -1, _SMOOTH).reshape(image.shape)
    out = image.copy()
    inside = np.s_[1:-1, 1:-1]
    if image[inside].size:
        out[inside] = _blend(image[inside], smooth[inside], strength)
    return out


OPERATIONS = {  # in the order that random integers index
    'identity': identity,
    'autocontrast': autocontrast,
    'equalize': equalize,
    'rotate': rotate,
    'solarize': solarize,
    'color': color,
    'posterize': posterize,
    'contrast': contrast,
    'brightness': brightness,
    'sharpness': sharpness,
    'shear_x': shear_x,
    'shear_y': shear_y,
    'translate_x': translate_x,
    'translate_y': translate_y,
}
# those with two directions
SIGNED = set(OPERATIONS) - {'identity', 'autocontrast', 'equalize', 'solarize', 'posterize'}


def _histograms(image: np.ndarray) -> list[np.ndarray]:
    """Returns int64 [256] for each channel, the number of pixels of each value."""
    import cv2

    count = functools.partial(cv2.calcHist, [image], mask=None, histSize=[256], ranges=[0, 256])
    channels = range(image.shape[-1])
    return [count(channels=[c]).ravel().astype(np.int64) for c in channels]


def _look_up(image: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Replaces each value by its rounded and clipped entry in a table, [256] or [C, 256]."""
    import cv2

    table = np.clip(np.rint(table), 0, 255).astype(np.uint8)
    if table.ndim == 2:  # OpenCV wants [1, 256, C]
        table = np.ascontiguousarray(table.T)[None]
    return cv2.LUT(np.ascontiguousarray(image), table).reshape(image.shape)


def _away(values: np.ndarray, origin: int, strength: float) -> np.ndarray:
    """Scales the distances from `origin` by 1 + 0.9 * strength."""
    return origin + (values - origin) * (1 + 0.9 * strength)


def _blend(image: np.ndarray, origin: np.ndarray, strength: float) -> np.ndarray:
    """Like `_away`, but each pixel has its own origin, [H, W, C]."""
    import cv2

    factor = 1 + 0.9 * strength
    image, origin = np.ascontiguousarray(image), np.ascontiguousarray(origin)
    return cv2.addWeighted(image, factor, origin, 1 - factor, 0).reshape(image.shape)


def _gray(image: np.ndarray) -> np.ndarray:
    """Returns the ITU-R 601 luma, uint8 [H, W, 1]."""
    import cv2

    return image if image.shape[-1] == 1 else cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None]


def _affine(image: np.ndarray, matrix: list[list[float]], fixed: tuple[float, float]) -> np.ndarray:
    """Fills point p of the result from point `fixed` + matrix (p - `fixed`) of the image.

    Points are (x, y); the centre of the first pixel is (0.5, 0.5).
    """
    import cv2

    linear, origin = np.asarray(matrix), np.asarray(fixed) - 0.5
    transform = np.concatenate([linear, (origin - linear @ origin)[:, None]], axis=1)
    height, width = image.shape[:2]
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    moved = cv2.warpAffine(np.ascontiguousarray(image), transform, (width, height), flags=flags)
    return moved.reshape(image.shape)
