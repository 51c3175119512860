"""Reads what the header of an encoded image states, without decoding a pixel.

A file of a megabyte can claim 32,767 x 32,767 pixels, which take gigabytes once decoded. The header
also says how `decode` must read the values: how many bits they have, and whether there is an alpha
channel. The formats are those that `decode` documents: JPEG, PNG, BMP, WebP and TIFF.
"""

from __future__ import annotations

import dataclasses
import re
import struct

MAX_PIXELS = 2**28  # of an image: 16,384 x 16,384; photographs have up to 200 million
LEAST_WHITE = 2**14  # 16-bit values that are all below it may be of 10, 12 or 14 bits, or dark
_MAX_PARTS = 100_000  # segments or chunks of a file that are looked at
_MARKER = re.compile(rb'\xff[^\xff]')
_INTEGERS = {1: 'B', 6: 'B', 3: 'H', 8: 'H', 4: 'I', 9: 'I', 16: 'Q', 17: 'Q'}  # types of TIFF
_WIDTH, _HEIGHT, _TILE_WIDTH, _TILE_HEIGHT = 256, 257, 322, 323  # tags of TIFF
_BITS, _PHOTOMETRIC, _ORIENTATION, _SAMPLES, _EXTRA, _FORMAT = 258, 262, 274, 277, 338, 339
_TAGS = (_BITS, _PHOTOMETRIC, _ORIENTATION, _SAMPLES, _EXTRA, _FORMAT)
_SIDES = (_WIDTH, _HEIGHT, _TILE_WIDTH, _TILE_HEIGHT)


@dataclasses.dataclass(frozen=True)
class Header:
    """What the header of an image states.

    Attributes:
        width, height: in pixels. Of a TIFF file with tiles, those of a tile if it is larger.
        bits: of a value; 8 or fewer are read as they are.
        alpha: whether there is an alpha channel, or a colour that stands for transparency.
        premultiplied: whether OpenCV returns colours that are multiplied by alpha.
        transparent: the gray value that stands for transparency in a gray PNG file, or -1.
        inverted: whether OpenCV returns values of which 0 is white, if they have over 8 bits.
        orientation: the EXIF orientation, 1 to 8, that is left to `decode` if there is alpha or a
            value has over 8 bits.
        refused: '' or a phrase: why the values cannot be brought to 8 bits by one rule.
    """

    width: int
    height: int
    bits: int = 8
    alpha: bool = False
    premultiplied: bool = False
    transparent: int = -1
    inverted: bool = False
    orientation: int = 1
    refused: str = ''


def header(encoded: bytes) -> Header | None:
    """Returns what the header states, or None if no size can be read."""
    try:
        if encoded.startswith(b'\xff\xd8\xff'):
            return _jpeg(encoded)
        if encoded.startswith(b'\x89PNG\r\n\x1a\n') and encoded[12:16] == b'IHDR':
            return _png(encoded)
        if encoded.startswith(b'BM'):
            return _bmp(encoded)
        if encoded.startswith(b'RIFF') and encoded[8:12] == b'WEBP':
            return _webp(encoded)
        if encoded[:4] in (b'II*\0', b'MM\0*', b'II+\0', b'MM\0+'):
            return _tiff(encoded)
    except (struct.error, OverflowError):  # the header ends early, or leads nowhere
        pass
    return None


def image_size(encoded: bytes) -> tuple[int, int] | None:
    """Returns (width, height) in pixels, or None if no size can be read.

    Of a TIFF file with tiles, a tile counts where it is larger than the image.
    """
    found = header(encoded)
    return (found.width, found.height) if found else None


def allowed(encoded: bytes) -> Header | None:
    """Returns the header if `decode` may try to decode the image, or else None."""
    found = header(encoded)
    return found if found and not _refused(found) else None


def reason(encoded: bytes) -> str:
    """Returns '' or a phrase that says why `decode` did not decode an image with this header."""
    found = header(encoded)
    if found is None:
        return ''
    rule = (
        f'{found.bits} bits per value, but none reaches {LEAST_WHITE:,} of 65,535, so white is '
        'unknown: save it with 8 bits'
    )
    return _refused(found) or (rule if found.bits == 16 else '')


def _refused(found: Header) -> str:
    if found.width * found.height <= MAX_PIXELS:
        return found.refused
    return f'{found.width:,} x {found.height:,} pixels, but at most {MAX_PIXELS:,} are decoded'


def named(name: str, encoded: bytes) -> str:
    """Returns the name of an image that cannot be decoded, and why, if the header says so."""
    why = reason(encoded)
    return f'{name} ({why})' if why else name


def _jpeg(encoded: bytes) -> Header | None:
    """Looks for the frame header as libjpeg does: it skips other segments and stray bytes."""
    at = 2
    for _ in range(_MAX_PARTS):
        match = _MARKER.search(encoded, at)
        if not match or encoded[match.end() - 1] in (0xD9, 0xDA):  # the end, or the pixels
            return None
        marker, at = encoded[match.end() - 1], match.end()
        if marker <= 0x01 or 0xD0 <= marker <= 0xD8:  # markers without a segment
            continue
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            bits, height, width = struct.unpack_from('>BHH', encoded, at + 2)
            return Header(width, height, bits, refused=_too_deep(bits) if bits != 8 else '')
        at += max(2, struct.unpack_from('>H', encoded, at)[0])
    return None


def _too_deep(bits: int) -> str:
    return f'{bits} bits per value: save it with 8'


def _chunks(encoded: bytes, start: int, order: str, *names: bytes) -> dict[bytes, bytes]:
    """Returns what chunks of these names hold, of a PNG ('>') or WebP ('<') file."""
    found = {}
    for _ in range(_MAX_PARTS):
        if start + 8 > len(encoded):
            break
        if order == '>':
            size, name = struct.unpack_from('>I4s', encoded, start)
            after = size + 4  # a checksum
        else:
            name, size = struct.unpack_from('<4sI', encoded, start)
            after = size + size % 2
        if name in names:
            found[name] = encoded[start + 8 : start + 8 + size]
        start += 8 + after
    return found


def _png(encoded: bytes) -> Header:
    width, height, bits, kind = struct.unpack_from('>IIBB', encoded, 16)
    chunks = _chunks(encoded, 8, '>', b'tRNS', b'eXIf')
    transparency = chunks.get(b'tRNS', b'')
    value = -1
    if kind == 0 and len(transparency) >= 2:
        (value,) = struct.unpack_from('>H', transparency)
        value = value * 255 // (2**bits - 1) if 0 < bits < 8 else value
    return Header(
        width,
        height,
        bits,
        alpha=kind in (4, 6) or bool(transparency),
        transparent=value,
        orientation=_orientation(chunks.get(b'eXIf', b'')),
    )


def _bmp(encoded: bytes) -> Header:
    (size,) = struct.unpack_from('<I', encoded, 14)
    width, height = struct.unpack_from('<HH' if size == 12 else '<ii', encoded, 18)
    alpha = False
    if size >= 56:  # the header has a mask for alpha
        (compression,) = struct.unpack_from('<I', encoded, 30)
        (mask,) = struct.unpack_from('<I', encoded, 66)
        alpha = compression in (3, 6) and mask != 0  # the kinds with masks
    return Header(abs(width), abs(height), alpha=alpha)  # negative: rows run downwards


def _webp(encoded: bytes) -> Header | None:
    kind = encoded[12:16]
    if kind == b'VP8 ':
        width, height = struct.unpack_from('<HH', encoded, 26)
        return Header(width & 0x3FFF, height & 0x3FFF)
    if kind == b'VP8L':
        (bits,) = struct.unpack_from('<I', encoded, 21)
        return Header(1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF), alpha=bool(bits >> 28 & 1))
    if kind == b'VP8X':
        low, middle, high, last = struct.unpack_from('<HBHB', encoded, 24)
        exif = _chunks(encoded, 12, '<', b'EXIF').get(b'EXIF', b'')
        return Header(
            1 + low + (middle << 16),
            1 + high + (last << 16),
            alpha=bool(encoded[20] & 0x10),
            orientation=_orientation(exif.removeprefix(b'Exif\0\0')),
        )
    return None


def _tiff(encoded: bytes) -> Header | None:
    tags = _tiff_tags(encoded)
    if any(len(tags.get(side, (1,))) != 1 for side in _SIDES):
        return None
    if _WIDTH not in tags or _HEIGHT not in tags:
        return None
    image = tags[_WIDTH][0], tags[_HEIGHT][0]
    tile = tags.get(_TILE_WIDTH, (0,))[0], tags.get(_TILE_HEIGHT, (0,))[0]
    width, height = max(image, tile, key=lambda size: size[0] * size[1])

    bits, form = max(tags.get(_BITS, (1,))), max(tags.get(_FORMAT, (1,)))
    samples, extra = tags.get(_SAMPLES, (1,))[0], tags.get(_EXTRA, ())
    colours = tags.get(_PHOTOMETRIC, (1,))[0]  # 0: gray, 0 is white; 1: gray; 2: RGB
    # A fourth value beside RGB is alpha, whatever its tag says: 1 is premultiplied; 2 is not, but
    # libtiff multiplies values of 8 bits.
    alpha = samples == 4 and colours == 2
    refused = ''
    if form not in (1, 4):
        kind = {2: 'signed', 3: 'floating-point'}.get(form, 'complex')
        refused = f'{kind} values of {bits} bits, of which white is unknown: save it with 8 bits'
    elif bits > 16:
        refused = _too_deep(bits)
    elif bits > 8 and colours > 2:
        refused = f'neither gray nor RGB, and {bits} bits per value: save it with 8'
    elif colours < 2 and samples > 1:
        refused = 'gray values with an alpha channel in a TIFF file: save it as PNG'
    return Header(
        width,
        height,
        bits,
        alpha=alpha,
        premultiplied=alpha and (1 in extra or (2 in extra and bits <= 8)),
        inverted=colours == 0,
        refused=refused,
    )


def _orientation(exif: bytes) -> int:
    """The orientation in EXIF data, 1 to 8; 1, as it is, if they do not hold one."""
    try:
        value = _tiff_tags(exif).get(_ORIENTATION, (1,))[0]
    except (struct.error, OverflowError):
        return 1
    return value if 1 <= value <= 8 else 1


def _tiff_tags(encoded: bytes) -> dict[int, tuple[int, ...]]:
    """Reads tags of the first directory; of one that stands there twice, the larger counts.

    A tag that is not of integers is left out, but for a side of the image: that is ().
    """
    order = '<' if encoded.startswith(b'II') else '>'
    if b'*' in encoded[:4]:
        count, entry, offset, value_at = 'H', 'HHI4s', 'I', 8
        (start,) = struct.unpack_from(order + offset, encoded, 4)
    else:  # BigTIFF
        count, entry, offset, value_at = 'Q', 'HHQ8s', 'Q', 12
        (start,) = struct.unpack_from(order + offset, encoded, 8)
    (entries,) = struct.unpack_from(order + count, encoded, start)
    at = start + struct.calcsize(order + count)
    found: dict[int, tuple[int, ...]] = {}
    for _ in range(min(entries, 0xFFFF)):
        tag, kind, number, _value = struct.unpack_from(order + entry, encoded, at)
        if tag in _SIDES and (number != 1 or kind not in _INTEGERS or found.get(tag) == ()):
            found[tag] = ()
        elif tag in _SIDES + _TAGS and kind in _INTEGERS and number:
            form = f'{order}{min(number, 16)}{_INTEGERS[kind]}'
            where = at + value_at
            if struct.calcsize(form) > struct.calcsize(order + offset):  # stored elsewhere
                (where,) = struct.unpack_from(order + offset, encoded, where)
            found[tag] = max(struct.unpack_from(form, encoded, where), found.get(tag, ()))
        at += value_at + struct.calcsize(order + offset)
    return found
