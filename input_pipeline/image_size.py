"""Reads the size of an encoded image from its header, without decoding a pixel.

A file of a megabyte can claim 32,767 x 32,767 pixels, which take gigabytes once decoded. The
formats are those that `decode` documents: JPEG, PNG, BMP, WebP and TIFF.
"""

from __future__ import annotations

import re
import struct

MAX_PIXELS = 2**28  # of an image: 16,384 x 16,384; photographs have up to 200 million
_MAX_SEGMENTS = 100_000  # of a JPEG file, before its size
_MARKER = re.compile(rb'\xff[^\xff]')
_INTEGERS = {1: 'B', 6: 'B', 3: 'H', 8: 'H', 4: 'I', 9: 'I', 16: 'Q', 17: 'Q'}  # types of TIFF
_WIDTH, _HEIGHT, _TILE_WIDTH, _TILE_HEIGHT = 256, 257, 322, 323  # tags of TIFF


def image_size(encoded: bytes) -> tuple[int, int] | None:
    """Returns (width, height) in pixels, or None if no size can be read.

    Of a TIFF file with tiles, a tile counts where it is larger than the image.
    """
    try:
        if encoded.startswith(b'\xff\xd8\xff'):
            return _jpeg(encoded)
        if encoded.startswith(b'\x89PNG\r\n\x1a\n') and encoded[12:16] == b'IHDR':
            width, height = struct.unpack_from('>II', encoded, 16)
            return width, height
        if encoded.startswith(b'BM'):
            old = struct.unpack_from('<I', encoded, 14)[0] == 12
            width, height = struct.unpack_from('<HH' if old else '<ii', encoded, 18)
            return abs(width), abs(height)  # a negative height: rows run downwards
        if encoded.startswith(b'RIFF') and encoded[8:12] == b'WEBP':
            return _webp(encoded)
        if encoded[:4] in (b'II*\0', b'MM\0*', b'II+\0', b'MM\0+'):
            return _tiff(encoded)
    except (struct.error, OverflowError):  # the header ends early, or leads nowhere
        pass
    return None


def allowed(encoded: bytes) -> bool:
    """Whether the header states a size, and the size is within the limit."""
    size = image_size(encoded)
    return size is not None and size[0] * size[1] <= MAX_PIXELS


def too_large(encoded: bytes) -> str:
    """Returns '' or a phrase that names the image's size and the limit that it exceeds."""
    width, height = image_size(encoded) or (0, 0)
    if width * height <= MAX_PIXELS:
        return ''
    return f'{width:,} x {height:,} pixels, but at most {MAX_PIXELS:,} are decoded'


def named(name: str, encoded: bytes) -> str:
    """Returns the name of an image that cannot be decoded, with the size of one too large."""
    reason = too_large(encoded)
    return f'{name} ({reason})' if reason else name


def _jpeg(encoded: bytes) -> tuple[int, int] | None:
    """Looks for the frame header as libjpeg does: it skips other segments and stray bytes."""
    at = 2
    for _ in range(_MAX_SEGMENTS):
        match = _MARKER.search(encoded, at)
        if not match or encoded[match.end() - 1] in (0xD9, 0xDA):  # the end, or the pixels
            return None
        marker, at = encoded[match.end() - 1], match.end()
        if marker <= 0x01 or 0xD0 <= marker <= 0xD8:  # markers without a segment
            continue
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack_from('>HH', encoded, at + 3)
            return width, height
        at += max(2, struct.unpack_from('>H', encoded, at)[0])
    return None


def _webp(encoded: bytes) -> tuple[int, int] | None:
    kind = encoded[12:16]
    if kind == b'VP8 ':
        width, height = struct.unpack_from('<HH', encoded, 26)
        return width & 0x3FFF, height & 0x3FFF
    if kind == b'VP8L':
        (bits,) = struct.unpack_from('<I', encoded, 21)
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b'VP8X':
        low, middle, high, last = struct.unpack_from('<HBHB', encoded, 24)
        return 1 + low + (middle << 16), 1 + high + (last << 16)
    return None


def _tiff(encoded: bytes) -> tuple[int, int] | None:
    """Reads the first directory; of a tag that stands there twice, the larger value counts."""
    order = '<' if encoded.startswith(b'II') else '>'
    if b'*' in encoded[:4]:
        count, entry, offset, value_at = 'H', 'HHI4s', 'I', 8
        (start,) = struct.unpack_from(order + offset, encoded, 4)
    else:  # BigTIFF
        count, entry, offset, value_at = 'Q', 'HHQ8s', 'Q', 12
        (start,) = struct.unpack_from(order + offset, encoded, 8)
    (entries,) = struct.unpack_from(order + count, encoded, start)
    at = start + struct.calcsize(order + count)
    found: dict[int, int] = {}
    for _ in range(min(entries, 0xFFFF)):
        tag, kind, number, _value = struct.unpack_from(order + entry, encoded, at)
        if tag in (_WIDTH, _HEIGHT, _TILE_WIDTH, _TILE_HEIGHT):
            if number != 1 or kind not in _INTEGERS:
                return None
            (value,) = struct.unpack_from(order + _INTEGERS[kind], encoded, at + value_at)
            found[tag] = max(value, found.get(tag, 0))
        at += value_at + struct.calcsize(order + offset)
    if _WIDTH not in found or _HEIGHT not in found:
        return None
    image = found[_WIDTH], found[_HEIGHT]
    tile = found.get(_TILE_WIDTH, 0), found.get(_TILE_HEIGHT, 0)
    return max(image, tile, key=lambda size: size[0] * size[1])
