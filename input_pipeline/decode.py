"""Decodes and encodes images: uint8 [H, W, C], where C is 3 (RGB) or 1 (gray).

One set of rules holds for every format, at preparation and at reading:

* An image with an alpha channel, or with a colour that stands for transparency, is flattened on
  `BACKGROUND`, white: a value v with alpha a of 0 to 1 becomes a v + (1 - a) 255.
* A 16-bit value v becomes v / 257, rounded, so 65,535 is 255. A 16-bit file may hold values of 10,
  12 or 14 bits and not say so. So an image whose largest value is neither 0 nor at least
  `image_size.LEAST_WHITE`, a quarter of white, is not decoded: which value is white is unknown.
* Signed and floating-point values, and those of more than 16 bits, are not decoded either.
* The EXIF orientation is applied.

`image_size.reason` names the rule by which an image was not decoded.

Axes: H height, W width, C channels.
"""

from __future__ import annotations

import numpy as np

from input_pipeline.image_size import LEAST_WHITE, Header, allowed

BACKGROUND = 255  # of images with an alpha channel


def decode(encoded: bytes, channels: int) -> np.ndarray | None:
    """Returns uint8 [H, W, channels], or None if the bytes cannot be decoded.

    Reads JPEG (also CMYK), PNG, BMP, WebP and TIFF, of at most `image_size.MAX_PIXELS` pixels, by
    the rules above. Colour channels are in RGB order.
    """
    import cv2

    header = allowed(encoded)
    if header is None:
        return None
    if header.alpha or header.bits > 8:
        return _by_rule(encoded, header, channels)
    image = _image(encoded, cv2.IMREAD_GRAYSCALE if channels == 1 else cv2.IMREAD_COLOR_RGB)
    return image[..., None] if image is not None and channels == 1 else image


def readable(encoded: bytes) -> bool:
    """Whether `decode` can decode these bytes. Takes half the time of decoding for a JPEG image."""
    import cv2

    if not encoded.startswith(b'\xff\xd8\xff'):  # OpenCV can make others no smaller as it reads
        return decode(encoded, 1) is not None
    return bool(allowed(encoded)) and _image(encoded, cv2.IMREAD_REDUCED_GRAYSCALE_8) is not None


def _image(encoded: bytes, flag: int) -> np.ndarray | None:
    """What OpenCV decodes, or None."""
    import cv2

    try:
        return cv2.imdecode(np.frombuffer(encoded, np.uint8), flag)
    except cv2.error:
        return None


def _by_rule(encoded: bytes, header: Header, channels: int) -> np.ndarray | None:
    """`decode` for an image with an alpha channel, or with values of 9 to 16 bits."""
    import cv2

    image = _image(encoded, cv2.IMREAD_UNCHANGED)  # BGR, BGRA or gray, [H, W] or [H, W, C]
    if image is None or image.dtype not in (np.uint8, np.uint16):
        return None
    image = image if image.ndim == 3 else image[..., None]
    colours, alpha = image[..., :3], image[..., 3 if header.alpha else image.shape[-1] :]
    if header.transparent >= 0 and not alpha.size:
        opaque = np.iinfo(image.dtype).max
        alpha = np.where(colours[..., :1] == header.transparent, 0, opaque).astype(image.dtype)
    if header.bits == 16 and 0 < colours.max() < LEAST_WHITE:
        return None
    colours, alpha = _eight_bits(colours), _eight_bits(alpha)
    if header.inverted:
        colours = 255 - colours
    if alpha.size:
        a = alpha.astype(np.float32) / 255
        seen = colours if header.premultiplied else a * colours
        colours = np.clip(np.rint(seen + (1 - a) * BACKGROUND), 0, 255).astype(np.uint8)
    colours = np.ascontiguousarray(_upright(colours, header.orientation))
    if colours.shape[-1] == channels:
        return colours if channels == 1 else cv2.cvtColor(colours, cv2.COLOR_BGR2RGB)
    if channels == 3:
        return cv2.cvtColor(colours, cv2.COLOR_GRAY2RGB)
    return cv2.cvtColor(colours, cv2.COLOR_BGR2GRAY)[..., None]


def _eight_bits(values: np.ndarray) -> np.ndarray:
    if values.dtype == np.uint8:
        return values
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _upright(image: np.ndarray, orientation: int) -> np.ndarray:
    """The image [H, W, C] as its EXIF orientation, 1 to 8, says that it is to be seen."""
    if orientation >= 5:
        image = image.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    return image[:, ::-1] if orientation in (2, 3, 6, 7) else image


def encode_png(image: np.ndarray) -> bytes:
    """Returns the PNG bytes of a uint8 [H, W, 1] or [H, W, 3] (RGB) image."""
    import cv2

    pixels = image if image.shape[-1] == 1 else cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    success, encoded = cv2.imencode('.png', pixels)
    if not success:
        raise ValueError(f'cannot encode an image of shape {image.shape} as PNG')
    return encoded.tobytes()
