"""Crops, flips and resizes give results that can be worked out by hand."""

import os

import numpy as np
import pytest
from image_fakes import encoded, picture

from input_pipeline import augment, order
from input_pipeline.cores import cores
from input_pipeline.decode import decode, encode_png


def test_generator_is_keyed_by_all_three():
    draws = {
        augment.generator(s, t, r).random() for s in range(4) for t in range(4) for r in range(4)
    }
    assert len(draws) == 64
    assert augment.generator(1, 2, 3).random() == augment.generator(1, 2, 3).random()


def test_generator_is_philox_under_a_key():
    key = np.array([order.mix64(5), 7 << 32 | 9], np.uint64)
    philox = np.random.Generator(np.random.Philox(key=key))
    np.testing.assert_array_equal(augment.generator(5, 7, 9).random(9), philox.random(9))


@pytest.mark.parametrize(('side', 'pad'), [(8, 1), (28, 3), (32, 4)])
@pytest.mark.parametrize('flip', [False, True])
def test_pad_crop_reaches_every_shift_and_no_other(side, pad, flip):
    image = np.arange(1, side * side + 1).reshape(side, side, 1).astype(np.uint8)
    image[image == 0] = 1
    padded = np.zeros((side + 2 * pad, side + 2 * pad, 1), np.uint8)
    padded[pad:-pad, pad:-pad] = image
    possible = {}
    for top in range(2 * pad + 1):
        for left in range(2 * pad + 1):
            crop = padded[top : top + side, left : left + side]
            possible[crop.tobytes()] = (top, left, False)
            if flip:
                possible[crop[:, ::-1].tobytes()] = (top, left, True)
    drawn = {
        possible[augment.pad_crop(image, augment.generator(0, i, 0), flip=flip).tobytes()]
        for i in range(3000)
    }
    assert len(drawn) == (2 * pad + 1) ** 2 * (1 + flip)


def test_centre_crop_by_hand():
    """100 x 140 to 70: the shorter side becomes 70 * 256/224 = 80, so crop 80 x 112 at (5, 21)."""
    ramp = np.broadcast_to(np.arange(140, dtype=np.uint8)[None, :, None], (100, 140, 3))
    out = augment.centre_crop(ramp, 70)
    assert out.shape == (70, 70, 3)
    expected = (np.arange(70) + 21 + 0.5) * 140 / 112 - 0.5
    np.testing.assert_allclose(out[35, :, 0], expected, atol=1)


def test_random_resized_crop_covers_8_to_100_percent():
    height, width = 60, 90
    ramp = np.zeros((height, width, 3), np.uint8)
    ramp[..., 0] = 2 * np.arange(width)
    ramp[..., 1] = 4 * np.arange(height)[:, None]
    shares, mirrored = [], 0
    for i in range(500):
        out = augment.random_resized_crop(ramp, augment.generator(0, i, 0), (32, 32, 3)).astype(
            float
        )
        assert out.shape == (32, 32, 3)
        w = abs(out[0, -1, 0] - out[0, 0, 0]) / 2 * 32 / 31
        h = (out[-1, 0, 1] - out[0, 0, 1]) / 4 * 32 / 31
        shares.append(w * h / (height * width))
        assert 0.6 < w / h < 1.6  # 3/4 to 4/3, with room for rounding
        mirrored += out[0, -1, 0] < out[0, 0, 0]
    assert 0.06 < min(shares) < 0.12 and 0.8 < max(shares) < 1.05
    assert 200 < mirrored < 300


def test_random_resized_crop_of_a_sliver():
    image = picture(0, 4, 400)
    out = augment.random_resized_crop(image, augment.generator(0, 0, 0), (16, 16, 3))
    assert out.shape == (16, 16, 3)


def test_fit():
    image = picture(0, 32, 32)
    assert augment.fit(image, (32, 32, 3), varies=False) is image
    assert augment.fit(image, (16, 16, 3), varies=False).shape == (16, 16, 3)
    gray = picture(0, 8, 8, 1)
    assert augment.fit(gray, (16, 16, 1), varies=False).shape == (16, 16, 1)
    halves = np.array([[0, 100], [50, 250]], np.uint8)[..., None]
    assert augment.resize(halves, 1, 1).tolist() == [[[100]]]  # the mean


def test_a_quick_resize_averages_only_beyond_half():
    dot = np.zeros((3, 3, 1), np.uint8)
    dot[1, 1] = 90
    assert augment.resize(dot, 1, 1, quick=True).item() == 10  # 90 / 9
    # To 2 x 2, linear: pixels lie at 0.25 and 1.75, so each gets (1/4)^2 of the dot, 5.6. By area:
    # each covers (1/2)^2 of the dot out of (3/2)^2, so 10.
    assert augment.resize(dot, 2, 2, quick=True)[..., 0].tolist() == [[6, 6], [6, 6]]
    assert augment.resize(dot, 2, 2)[..., 0].tolist() == [[10, 10], [10, 10]]


@pytest.mark.parametrize(
    ('kind', 'mode', 'tolerance'),
    [('PNG', 'RGB', 0), ('PNG', 'RGBA', 0), ('JPEG', 'RGB', 2), ('JPEG', 'CMYK', 5)],
)
def test_decode_gives_rgb(kind, mode, tolerance):
    image = picture(3)
    out = decode(encoded(image, kind, mode), 3)
    assert out is not None and out.shape == image.shape
    assert np.abs(out.astype(int) - image).mean() <= tolerance


def test_decode_gray_and_failures():
    image = picture(3)
    data = encoded(image)
    gray = decode(data, 1)
    assert gray is not None and gray.shape == (40, 50, 1)
    one = picture(1, 5, 6, 1)
    np.testing.assert_array_equal(decode(encode_png(one), 1), one)
    np.testing.assert_array_equal(decode(encode_png(image), 3), image)
    wide = decode(encoded(image[..., 0], 'PNG', 'L'), 3)
    assert wide is not None
    np.testing.assert_array_equal(wide, np.repeat(image[..., :1], 3, axis=2))
    for broken in (b'', b'text', data[: len(data) // 2], encoded(image, 'PNG')[:-40]):
        assert decode(broken, 3) is None


@pytest.mark.parametrize('channels', [1, 3])
def test_a_mirrored_image_is_an_array_of_its_own(channels):
    image = np.arange(6 * 5 * channels, dtype=np.uint8).reshape(6, 5, channels)
    out = augment.mirrored(image)
    np.testing.assert_array_equal(out, image[:, ::-1])
    assert out.shape == image.shape and out.flags.c_contiguous


def test_only_the_processors_that_were_lent_are_used(monkeypatch):
    monkeypatch.setattr(os, 'sched_getaffinity', lambda pid: {3, 5, 7}, raising=False)
    assert cores() == 3
    monkeypatch.delattr(os, 'sched_getaffinity')
    monkeypatch.setattr(os, 'cpu_count', lambda: None)
    assert cores() == 1
