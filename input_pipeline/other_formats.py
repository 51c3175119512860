"""Turns images of formats that `decode` does not read into PNG: GIF, AVIF, JPEG 2000 and PNM.

The PNG has the same pixels, of the same depth, and keeps transparency. Of a GIF or an AVIF with
several pictures it has the first. As in `image_size`, the size is read from the header first.
"""

from __future__ import annotations

import re
import struct

import numpy as np

from input_pipeline.image_size import MAX_PIXELS

_PNM = re.compile(rb'P[1-6](?:\s|#[^\n]*\n)+(\d{1,9})(?:\s|#[^\n]*\n)+(\d{1,9})\s')
_SIZES = re.compile(rb'ispe\0\0\0\0(.{8})', re.DOTALL)  # of the pictures in an AVIF
_BOXES = 2**16  # bytes at the start of a file in which its boxes say the size


def as_png(encoded: bytes) -> bytes | None:
    """Returns the PNG bytes of an image of these formats of at most `MAX_PIXELS` pixels, or None.

    None means that it has another format, or cannot be decoded.
    """
    import cv2

    size = _size(encoded)
    if size is None or not 0 < size[0] * size[1] <= MAX_PIXELS:
        return None
    try:
        image = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_UNCHANGED)
        return None if image is None else cv2.imencode('.png', image)[1].tobytes()
    except cv2.error:
        return None


def _size(encoded: bytes) -> tuple[int, int] | None:
    """Returns (width, height) in pixels, or None for another format or a header that ends early."""
    try:
        if encoded[:6] in (b'GIF87a', b'GIF89a'):
            return struct.unpack_from('<HH', encoded, 6)
        if encoded.startswith(b'\xff\x4f\xff\x51'):  # JPEG 2000 without boxes
            right, below, left, above = struct.unpack_from('>IIII', encoded, 8)
            return right - left, below - above
        if encoded.startswith(b'\0\0\0\x0cjP  \r\n\x87\n'):
            height, width = struct.unpack_from(
                '>II', encoded, encoded.index(b'ihdr', 0, _BOXES) + 4
            )
            return width, height
        if encoded[4:12] in (b'ftypavif', b'ftypavis'):
            sizes = [struct.unpack('>II', s) for s in _SIZES.findall(encoded[:_BOXES])]
            return max(sizes, key=lambda size: size[0] * size[1])
        if match := _PNM.match(encoded[:_BOXES]):
            return int(match[1]), int(match[2])
    except (struct.error, ValueError):
        pass
    return None
