"""The same pixels come out of every format: alpha, 16 bits, small sides, orientation."""

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from image_fakes import config, encoded, picture, rewrite
from PIL import Image

import input_pipeline as ip
from input_pipeline import image_size
from input_pipeline.decode import decode, readable
from input_pipeline.prepare import prepare

RED, HALF = (200, 100, 0, 0), (200, 100, 0, 128)  # hidden, and half seen
FLAT = [(255, 255, 255), (227, 177, 127)]  # 128/255 of the colour, 127/255 of white


def pillow(pixels, kind, **options):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def opencv(pixels, ext):
    order = {3: [2, 1, 0], 4: [2, 1, 0, 3]}
    pixels = pixels[..., order[pixels.shape[-1]]] if pixels.ndim == 3 else pixels
    return cv2.imencode(ext, pixels)[1].tobytes()


def two(*colours, kind=np.uint8, scale=1):
    """An image whose left half has the first colour and whose right half has the second."""
    row = np.repeat(np.array(colours), 6, axis=0) * scale
    return np.repeat(row[None], 10, axis=0).astype(kind)


def tiff(values, bits=16, photometric=1, **tags):
    """A gray TIFF file without compression; `values` [H, W] in the layout of the file."""
    names = {'samples': (277, 1), 'form': (339, 1), 'extra': (338, 0)}
    height, width = values.shape[:2]
    data = values.tobytes()
    found = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 278: height}
    found |= {tag: tags.get(name, usual) for name, (tag, usual) in names.items()}
    found |= {279: len(data)}
    found[273] = 8 + 2 + 12 * (len(found) + 1) + 4
    entries = b''.join(struct.pack('<HHII', tag, 4, 1, found[tag]) for tag in sorted(found))
    return b'II*\0' + struct.pack('<IH', 8, len(found)) + entries + bytes(4) + data


def chunk(name, data):
    return struct.pack('>I', len(data)) + name + data + struct.pack('>I', zlib.crc32(name + data))


ALPHA = {
    'PNG': pillow(two(RED, HALF), 'PNG'),
    'PNG of 16 bits': opencv(two(RED, HALF, kind=np.uint16, scale=257), '.png'),
    'WebP': pillow(two(RED, HALF), 'WEBP', lossless=True, exact=True),
    'WebP with EXIF': pillow(two(RED, HALF), 'WEBP', lossless=True, exact=True, exif=b'Exif\0\0'),
    'TIFF': pillow(two(RED, HALF), 'TIFF'),
    'TIFF, premultiplied': pillow(two((0, 0, 0, 0), (100, 50, 0, 128)), 'TIFF').replace(
        struct.pack('<HHIH', 338, 3, 1, 2), struct.pack('<HHIH', 338, 3, 1, 1)
    ),
    'TIFF of 16 bits': opencv(two(RED, HALF, kind=np.uint16, scale=257), '.tiff'),
    'TIFF that does not name alpha': opencv(two(RED, HALF), '.tiff'),
    'BMP': opencv(two(RED, HALF), '.bmp'),
}


@pytest.mark.parametrize('kind', ALPHA)
def test_alpha_is_flattened_on_white(kind):
    out = decode(ALPHA[kind], 3)
    assert out.shape == (10, 12, 3) and readable(ALPHA[kind])
    assert np.abs(out[0, [0, 6]].astype(int) - FLAT).max() <= 1
    gray = decode(ALPHA[kind], 1)[0, [0, 6], 0].astype(int)
    assert np.abs(gray - [255, 186]).max() <= 1  # 0.299 * 227 + 0.587 * 177 + 0.114 * 127


def indexed(mode, value):
    """A PNG file without an alpha channel, one of whose colours stands for transparency."""
    colours = Image.fromarray(two((200, 100, 0), (9, 9, 9)))
    file = io.BytesIO()
    image = colours.quantize(4) if mode == 'P' else colours.convert(mode)
    found = image.getpixel((0, 0)) if value is None else value
    image.save(file, 'PNG', transparency=found)
    return file.getvalue()


def transparent_gray(bits, values, hidden):
    """A gray PNG file of one row of values with so many bits."""
    packed = sum(v << bits * (len(values) - 1 - i) for i, v in enumerate(values))
    row = b'\0' + packed.to_bytes(bits * len(values) // 8, 'big')
    return (
        b'\x89PNG\r\n\x1a\n'
        + chunk(b'IHDR', struct.pack('>IIBBBBB', len(values), 1, bits, 0, 0, 0, 0))
        + chunk(b'tRNS', struct.pack('>H', hidden))
        + chunk(b'IDAT', zlib.compress(row))
        + chunk(b'IEND', b'')
    )


@pytest.mark.parametrize('mode', ['P', 'RGB', 'L'])
def test_a_colour_that_stands_for_transparency_is_white(mode):
    out = decode(indexed(mode, None), 3)
    assert out[0, 0].tolist() == [255] * 3 and np.abs(out[0, 6].astype(int) - 9).max() <= 1


@pytest.mark.parametrize(
    ('bits', 'values', 'hidden', 'want'),
    [
        (4, [3, 15, 0, 5], 3, [255, 255, 0, 85]),  # 5 * 255 / 15
        (2, [1, 3, 0, 2], 1, [255, 255, 0, 170]),
        (16, [9, 65535, 0, 25700], 9, [255, 255, 0, 100]),
    ],
)
def test_a_gray_value_that_stands_for_transparency(bits, values, hidden, want):
    data = transparent_gray(bits, values, hidden)
    assert decode(data, 1)[0, :, 0].tolist() == want and readable(data)


def test_an_opaque_alpha_channel_changes_nothing():
    image = picture(3)
    opaque = np.dstack([image, np.full(image.shape[:2], 255, np.uint8)])
    for data in (pillow(opaque, 'PNG'), pillow(opaque, 'TIFF'), opencv(opaque, '.bmp')):
        np.testing.assert_array_equal(decode(data, 3), image)


@pytest.mark.parametrize('side', [(1, 1), (1, 9), (3, 2), (7, 7), (8, 7)])
@pytest.mark.parametrize('kind', ['PNG', 'BMP', 'WEBP', 'TIFF', 'JPEG'])
@pytest.mark.parametrize('channels', [1, 3, 4])
def test_small_images_are_readable(kind, side, channels):
    if channels == 4 and kind == 'JPEG':
        return
    pixels = picture(1, *side, 3)
    pixels = pixels[..., 0] if channels == 1 else np.dstack([pixels, pixels])[..., :channels]
    data = pillow(pixels, kind)
    assert decode(data, 3).shape == (*side, 3) and decode(data, 1).shape == (*side, 1)
    assert readable(data)


RAMP = np.arange(0, 256, dtype=np.uint16).reshape(16, 16)  # every value of 8 bits


@pytest.mark.parametrize('ext', ['.png', '.tiff'])
@pytest.mark.parametrize('shape', ['gray', 'RGB'])
def test_16_bits_are_divided_by_257(ext, shape):
    ramp = RAMP if shape == 'gray' else np.dstack([RAMP, RAMP.T, RAMP[::-1]])
    three = np.dstack([RAMP] * 3) if shape == 'gray' else ramp
    for offset in (-128, 0, 128):  # rounded to the nearest
        data = opencv(np.clip(ramp.astype(int) * 257 + offset, 0, 65535).astype(np.uint16), ext)
        np.testing.assert_array_equal(decode(data, 3), three)
        assert readable(data)
        if shape == 'gray':
            np.testing.assert_array_equal(decode(data, 1)[..., 0], RAMP)


def test_white_may_be_0_and_values_may_be_packed_into_12_bits():
    ramp = RAMP * 257
    inverted = tiff(ramp, photometric=0)
    np.testing.assert_array_equal(decode(inverted, 1)[..., 0], 255 - RAMP)
    pairs = (RAMP.astype(int) * 4095 // 255).reshape(-1, 2)
    packed = b''.join((a << 12 | b).to_bytes(3, 'big') for a, b in pairs.tolist())
    data = tiff(np.frombuffer(packed, np.uint8).reshape(16, 24), bits=12)
    data = data.replace(struct.pack('<HHII', 256, 4, 1, 24), struct.pack('<HHII', 256, 4, 1, 16))
    assert np.abs(decode(data, 1)[..., 0].astype(int) - RAMP).max() <= 1  # 12 bits say so


DEEP = np.array([[0, 100, 4000, 4095]], np.uint16)
REFUSED = {
    **{
        f'{bits} bits in a {ext} file of 16': (
            opencv((DEEP.astype(int) * (2**bits - 1) // 4095).astype(np.uint16), ext),
            '16 bits per value, but none reaches 16,384 of 65,535',
        )
        for bits in (10, 12, 14)
        for ext in ('.png', '.tiff')
    },
    '12 bits and alpha': (
        opencv(np.dstack([DEEP, DEEP, DEEP, np.full_like(DEEP, 65535)]), '.png'),
        'none reaches 16,384',
    ),
    'float': (pillow((DEEP / 4095).astype(np.float32), 'TIFF'), 'floating-point values of 32 bits'),
    'float, RGB': (
        opencv(np.dstack([DEEP] * 3).astype(np.float32), '.tiff'),
        'floating-point values of 32 bits',
    ),
    'half': (tiff((DEEP / 4095).astype('<f2'), form=3), 'floating-point values of 16 bits'),
    'double': (tiff(DEEP.astype('<f8'), 64, form=3), 'floating-point values of 64 bits'),
    'int16': (tiff(DEEP.astype('<i2') * 8, form=2), 'signed values of 16 bits'),
    'int8': (tiff(DEEP.astype('<i1'), 8, form=2), 'signed values of 8 bits'),
    'int32': (pillow(DEEP.astype(np.int32) * 16, 'TIFF'), 'signed values of 32 bits'),
    'uint32': (tiff(DEEP.astype('<u4') << 20, 32), '32 bits per value'),
    'gray with alpha': (
        pillow(np.dstack([DEEP, DEEP]).astype(np.uint8), 'TIFF'),
        'gray values with an alpha channel',
    ),
    'CMYK of 16 bits': (
        tiff(np.full((2, 8), 40000, '<u2'), photometric=5, samples=4),
        'neither gray nor RGB, and 16 bits',
    ),
    'JPEG of 12 bits': (
        encoded(picture(1)).replace(b'\xff\xc0\0\x11\x08', b'\xff\xc0\0\x11\x0c'),
        '12 bits per value',
    ),
}


@pytest.mark.parametrize('kind', REFUSED)
def test_what_no_rule_covers_is_refused_by_name(kind, capfd):
    data, why = REFUSED[kind]
    assert decode(data, 3) is None and decode(data, 1) is None and not readable(data)
    assert why in image_size.named('a.tif', data) and '\n' not in image_size.reason(data)
    for cut in range(len(data)):
        image_size.reason(data[:cut])  # raises nothing


def test_a_black_image_of_16_bits_is_black():
    assert not decode(opencv(np.zeros((9, 9), np.uint16), '.png'), 1).any()


@pytest.mark.parametrize('kind', ['PNG', 'WEBP', 'TIFF'])
@pytest.mark.parametrize('orientation', range(1, 9))
def test_orientation_is_applied_with_and_without_alpha(kind, orientation):
    image = picture(3, 6, 9)
    exif = Image.Exif()
    exif[274] = orientation
    opaque = np.dstack([image, np.full(image.shape[:2], 255, np.uint8)])
    options = {'exif': exif, **({'lossless': True, 'exact': True} if kind == 'WEBP' else {})}
    plain, with_alpha = (pillow(pixels, kind, **options) for pixels in (image, opaque))
    want = decode(plain, 3)
    assert want.shape[:2] == ((9, 6) if orientation > 4 else (6, 9))
    np.testing.assert_array_equal(decode(with_alpha, 3), want)


def test_preparation_and_reading_agree(tmp_path, caplog):
    files = {'a.png': pillow(picture(1, 3, 3, 3), 'PNG'), 'b.png': ALPHA['PNG']}
    files |= {'c.tiff': REFUSED['float'][0], 'd.png': REFUSED['12 bits in a .png file of 16'][0]}
    for split in ('train', 'val'):
        for name, data in files.items():
            rewrite(tmp_path / f'in/{split}/cat/{name}', data)
    line = prepare('image_folder', str(tmp_path), str(tmp_path / 'in'))
    assert '2 of train cannot be decoded (train/cat/c.tiff (floating-point values' in line
    assert 'train/cat/d.png (16 bits per value' in line
    cfg = config('image_folder', tmp_path, image_size=8)
    with ip.train_batches(
        cfg, seed=0, batch_size=4, rows=range(4), start_step=0, num_steps=1
    ) as batches:
        assert sorted(next(batches)['valid']) == [False, False, True, True]
    assert "'train/cat/c.tiff (floating-point values of 32 bits" in caplog.text
