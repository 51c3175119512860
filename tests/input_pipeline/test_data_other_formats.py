"""Formats that `decode` does not read become PNG with the same pixels; nothing else does."""

import cv2
import numpy as np
import pytest
from image_fakes import config, encoded, picture, rewrite

import input_pipeline as ip
from input_pipeline import other_formats
from input_pipeline.decode import decode
from input_pipeline.prepare import prepare

GRAY = picture(3, 11, 13, 1)
RGB = picture(4, 11, 13)


def written(ending, image):
    return cv2.imencode(ending, image)[1].tobytes()


FILES = {  # ending: bytes that hold RGB
    'gif': encoded(RGB // 64 * 64, 'GIF'),
    'avif': encoded(RGB, 'AVIF'),
    'jp2': encoded(RGB, 'JPEG2000'),
    'ppm': encoded(RGB, 'PPM'),
    'pgm': written('.pgm', GRAY),
}


@pytest.mark.parametrize('ending', FILES)
def test_it_becomes_a_png_with_the_same_pixels(ending):
    png = other_formats.as_png(FILES[ending])
    assert png.startswith(b'\x89PNG')
    want = {'gif': RGB // 64 * 64, 'pgm': np.repeat(GRAY, 3, 2)}.get(ending, RGB)
    far = np.abs(decode(png, 3).astype(int) - want)
    assert far.mean() < (10 if ending == 'avif' else 1e-9)  # AVIF loses some


@pytest.mark.parametrize('ending', FILES)
def test_a_folder_of_them_is_read(tmp_path, ending):
    """Under their own endings, under another's, and for a prediction."""
    for name in (f'x.{ending}', 'y.JPG', 'below/z'):
        rewrite(tmp_path / 'in/train/a' / name, FILES[ending])
    line = prepare('image_folder', str(tmp_path), str(tmp_path / 'in'))
    assert 'train 3,' in line and 'left out' not in line and 'cannot be decoded' not in line
    cfg = config('image_folder', tmp_path, image_size=8)
    with ip.evaluation_batches(cfg, split='train', batch_size=3, rows=range(3)) as batches:
        images = next(batches)['image']
    alone = ip.evaluation_image(cfg, (8, 8, 3), FILES[ending])
    np.testing.assert_array_equal(images, [alone] * 3)


@pytest.mark.parametrize('ending', FILES)
def test_half_a_file_is_none_or_an_image(ending):
    data = FILES[ending]
    for end in (0, 2, 6, 11, 20, 40, len(data) // 2):
        png = other_formats.as_png(data[:end])
        assert png is None or decode(png, 3) is not None


HUGE = {
    'gif': b'GIF89a' + b'\xff\xff' * 2 + bytes(99),
    'ppm': b'P6\n# a comment\n99999 99999\n255\n' + bytes(99),
    'j2k': b'\xff\x4f\xff\x51\0\x2f\0\0' + b'\0\xff\xff\xff' * 2 + bytes(99),
    'jp2': b'\0\0\0\x0cjP  \r\n\x87\n' + b'ihdr' + b'\0\xff\xff\xff' * 2 + bytes(99),
    'avif': b'\0\0\0\x20ftypavif' + b'ispe\0\0\0\0' + b'\0\xff\xff\xff' * 2 + bytes(99),
}


@pytest.mark.parametrize('kind', HUGE)
def test_an_image_that_claims_too_many_pixels_is_not_decoded(kind, monkeypatch):
    monkeypatch.setattr(cv2, 'imdecode', lambda *_: pytest.fail('it was decoded'))
    assert other_formats.as_png(HUGE[kind]) is None


@pytest.mark.parametrize(
    'data', [b'', b'P6 is my class', b'text', encoded(RGB), encoded(RGB, 'PNG')]
)
def test_other_files_stay_as_they_are(data):
    assert other_formats.as_png(data) is None


def test_transparency_is_kept():
    rgba = np.dstack([RGB, np.full((11, 13), 128, np.uint8)])
    png = other_formats.as_png(encoded(rgba, 'JPEG2000', 'RGBA'))
    assert cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED).shape == (11, 13, 4)
