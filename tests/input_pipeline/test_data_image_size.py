"""An image with more pixels than the limit is never decoded; it is named with its size."""

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from image_fakes import config, encoded, picture, rewrite
from PIL import Image

import input_pipeline as ip
from input_pipeline import augment, decode, image_size
from input_pipeline.prepare import prepare

SIDE = 32767


def png(width, height):
    """A PNG file of one bit per pixel, all black: a thousandth of its size once unpacked."""

    def chunk(name, data):
        check = struct.pack('>I', zlib.crc32(name + data))
        return struct.pack('>I', len(data)) + name + data + check

    packer = zlib.compressobj(9)
    row = bytes(1 + (width + 7) // 8)
    pixels = b''.join([*(packer.compress(row) for _ in range(height)), packer.flush()])
    header = struct.pack('>IIBBBBB', width, height, 1, 0, 0, 0, 0)
    return (
        b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + chunk(b'IDAT', pixels) + chunk(b'IEND', b'')
    )


def tiff(order, big=False, kind=4):
    """The header of a TIFF file; its pixels would stand behind it."""
    form = {3: 'H', 4: 'I', 16: 'Q'}[kind]
    entry = ('HHQ' if big else 'HHI') + form
    room = 8 if big else 4
    tags = [
        struct.pack(order + entry, tag, kind, 1, value).ljust((12 if big else 8) + room, b'\0')
        for tag, value in ((256, SIDE), (257, SIDE), (259, 1))
    ]
    start = struct.pack(
        order + ('HHHQQ' if big else 'HIH'), *((43, 8, 0, 16, 3) if big else (42, 8, 3))
    )
    return {'<': b'II', '>': b'MM'}[order] + start + b''.join(tags)


JPEG_START = b'\xff\xd8\xff\xe0\x00\x04ab' + b'\xff\xff\xfe\x00\x05\xff\xc0x'  # stray ones inside
FRAME = struct.pack('>HBHHB', 17, 8, SIDE, SIDE, 3)
LARGE = {
    'PNG': b'\x89PNG\r\n\x1a\n\0\0\0\rIHDR' + struct.pack('>II', SIDE, SIDE) + bytes(9),
    'JPEG': JPEG_START + b'\xff\xc0' + FRAME + bytes(12),
    'progressive JPEG': JPEG_START + b'zzz\xff\xc2' + FRAME + bytes(12),
    'BMP': b'BM' + bytes(12) + struct.pack('<Iii', 40, SIDE, -SIDE) + bytes(30),
    'old BMP': b'BM' + bytes(12) + struct.pack('<IHH', 12, SIDE, SIDE) + bytes(30),
    'TIFF': tiff('<'),
    'TIFF, large end first': tiff('>', kind=3),
    'BigTIFF': tiff('<', big=True, kind=16),
    'WebP': b'RIFF\0\0\0\0WEBPVP8X' + bytes(8) + struct.pack('<HBHB', SIDE - 1, 0, SIDE - 1, 0),
}


@pytest.mark.parametrize('kind', LARGE)
def test_too_large_by_the_header_alone(kind, monkeypatch):
    data = LARGE[kind]
    assert image_size.image_size(data) == (SIDE, SIDE)
    monkeypatch.setattr(cv2, 'imdecode', lambda *_: pytest.fail('it was decoded'))
    assert decode.decode(data, 3) is None and not decode.readable(data)
    assert image_size.named('a.x', data) == (
        'a.x (32,767 x 32,767 pixels, but at most 268,435,456 are decoded)'
    )
    for cut in range(len(data)):
        image_size.image_size(data[:cut])  # raises nothing


@pytest.mark.parametrize(
    ('kind', 'options'),
    [
        ('JPEG', {}),
        ('JPEG', {'progressive': True, 'exif': b'Exif\0\0' + b'\xff\xc0' * 50}),
        ('PNG', {}),
        ('BMP', {}),
        ('TIFF', {}),
        ('TIFF', {'compression': 'tiff_lzw'}),
        ('TIFF', {'big_tiff': True}),
        ('WEBP', {}),
        ('WEBP', {'lossless': True}),
        ('WEBP', {'exif': b'Exif\0\0'}),
    ],
)
def test_the_size_that_is_read_is_that_of_the_pixels(kind, options):
    file = io.BytesIO()
    Image.fromarray(picture(3, height=37, width=53)).save(file, kind, **options)
    assert image_size.image_size(file.getvalue()) == (53, 37)
    assert decode.decode(file.getvalue(), 3).shape == (37, 53, 3)


def test_a_tile_counts_that_is_larger_than_its_image():
    tags = [(256, 10), (257, 10), (322, SIDE), (323, SIDE)]
    data = (
        b'II*\0'
        + struct.pack('<IH', 8, 4)
        + b''.join(struct.pack('<HHII', tag, 4, 1, value) for tag, value in tags)
    )
    assert image_size.image_size(data) == (SIDE, SIDE)


def test_other_formats_are_not_decoded():
    for ext in ('.ppm', '.jp2'):
        data = cv2.imencode(ext, picture(1))[1].tobytes()
        assert cv2.imdecode(np.frombuffer(data, np.uint8), 1) is not None
        assert decode.decode(data, 3) is None and not decode.readable(data)


def test_the_limit_is_the_last_size_that_passes(monkeypatch):
    data = encoded(picture(1, 40, 50))
    monkeypatch.setattr(image_size, 'MAX_PIXELS', 2000)
    assert decode.decode(data, 3).shape == (40, 50, 3) and decode.readable(data)
    monkeypatch.setattr(image_size, 'MAX_PIXELS', 1999)
    assert decode.decode(data, 3) is None and not decode.readable(data)
    assert image_size.reason(data) == '50 x 40 pixels, but at most 1,999 are decoded'


def test_preparation_and_loaders_name_the_image_with_its_size(tmp_path, caplog):
    for split in ('train', 'val'):
        rewrite(tmp_path / f'in/{split}/cat/a.jpg', encoded(picture(1)))
        rewrite(tmp_path / f'in/{split}/cat/b.png', png(16385, 16384))
    named = 'cat/b.png (16,385 x 16,384 pixels, but at most 268,435,456 are decoded)'
    line = prepare('image_folder', str(tmp_path), str(tmp_path / 'in'))
    assert f'1 of train cannot be decoded (train/{named})' in line.splitlines()[1]
    cfg = config('image_folder', tmp_path, image_size=8)
    with ip.train_batches(
        cfg, seed=0, batch_size=2, rows=[0, 1], start_step=0, num_steps=1
    ) as batches:
        batch = next(batches)
        assert sorted(batch['valid']) == [False, True] and batches.bad_images == 1
    assert f"cannot decode image 'train/{named}'" in caplog.text
    with pytest.raises(ip.DataError, match='16,385 x 16,384 pixels') as error:
        with ip.evaluation_batches(cfg, split='validation', batch_size=2, rows=[0, 1]) as batches:
            list(batches)
    assert f"'val/{named}'" in str(error.value)


def test_a_line_of_pixels_is_not_enlarged_whole(monkeypatch):
    """Its far ends are cut off before its shorter side is enlarged, as they would be after."""
    sizes = []
    resize = augment.resize
    monkeypatch.setattr(
        augment,
        'resize',
        lambda image, height, width: sizes.append(height * width) or resize(image, height, width),
    )
    line = picture(1, height=1, width=9001)
    for image in (line, line.transpose(1, 0, 2)):
        assert augment.centre_crop(image, 224).shape == (224, 224, 3)
    assert max(sizes) <= image_size.MAX_PIXELS
    monkeypatch.setattr(augment, 'MAX_PIXELS', 16**2 * 30)  # 14 * 256 / 224 = 16
    middle = line[:, 4485:4515]  # (9001 - 30) // 2 = 4485
    np.testing.assert_array_equal(augment.centre_crop(line, 14), augment.centre_crop(middle, 14))
