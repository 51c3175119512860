"""Each operation agrees with Pillow's, and with a few pixels computed by hand."""

import cv2
import numpy as np
import pytest
from image_fakes import config, picture
from PIL import Image, ImageEnhance, ImageOps

import input_pipeline as ip
from input_pipeline import augment, randaugment
from input_pipeline.randaugment import OPERATIONS, SIGNED

SIDES = WIDTH, HEIGHT = 80, 60
UNSIGNED = set(OPERATIONS) - SIGNED - {'identity', 'autocontrast', 'equalize'}


@pytest.fixture(scope='module')
def image():
    noise = np.random.default_rng(0).integers(-20, 20, (HEIGHT, WIDTH, 3))
    return np.clip(picture(1, HEIGHT, WIDTH) // 2 + 60 + noise, 0, 255).astype(np.uint8)


def affine(*matrix):
    return lambda i, s: i.transform(
        i.size,
        Image.Transform.AFFINE,
        [v(s) if callable(v) else v for v in matrix],
        Image.Resampling.BILINEAR,
    )


def enhance(kind):
    return lambda i, s: kind(i).enhance(1 + 0.9 * s)


PILLOW = {  # the operation, and how far pixels may differ (Pillow truncates, OpenCV rounds)
    'identity': (lambda i, s: i, 0),
    'autocontrast': (lambda i, s: ImageOps.autocontrast(i), 1),
    'equalize': (lambda i, s: ImageOps.equalize(i), 0),
    'posterize': (lambda i, s: ImageOps.posterize(i, 8 - round(4 * s)), 0),
    'solarize': (lambda i, s: ImageOps.solarize(i, 255 * (1 - s)), 0),
    'color': (enhance(ImageEnhance.Color), 2),
    'contrast': (enhance(ImageEnhance.Contrast), 2),
    'brightness': (enhance(ImageEnhance.Brightness), 1),
    'sharpness': (enhance(ImageEnhance.Sharpness), 2),
    'translate_x': (affine(1, 0, lambda s: -int(WIDTH * 150 / 331 * s), 0, 1, 0), 0),
    'translate_y': (affine(1, 0, 0, 0, 1, lambda s: -int(HEIGHT * 150 / 331 * s)), 0),
    'rotate': (lambda i, s: i.rotate(30 * s, Image.Resampling.BILINEAR), 5),
    'shear_x': (affine(1, lambda s: 0.3 * s, 0, 0, 1, 0), 5),
    'shear_y': (affine(1, 0, 0, lambda s: 0.3 * s, 1, 0), 5),
}


def test_they_are_the_fourteen():
    assert len(OPERATIONS) == 14 and set(OPERATIONS) == set(PILLOW)


@pytest.mark.parametrize('strength', [0.9, 0.3, 1.0, -0.9, -0.2])
@pytest.mark.parametrize('name', OPERATIONS)
def test_as_pillow_does_it(image, name, strength):
    if strength < 0 and name not in SIGNED:
        return
    theirs, tolerance = PILLOW[name]
    ours = OPERATIONS[name](image, strength)
    assert ours.dtype == np.uint8 and ours.shape == image.shape
    # at the border of a moved image, OpenCV fades to black and Pillow does not
    shown = np.asarray(theirs(Image.fromarray(np.full_like(image, 255)), strength))
    inside = (
        cv2.erode(
            np.ascontiguousarray(shown),
            np.ones((5, 5)),
            borderType=cv2.BORDER_CONSTANT,
            borderValue=0,
        )
        > 0
    )
    inside = inside if tolerance == 5 else np.ones_like(inside)
    far = np.abs(ours.astype(int) - np.asarray(theirs(Image.fromarray(image), strength)))
    assert inside.mean() > 0.4 and far[inside].max() <= tolerance
    changed = np.abs(ours.astype(int) - image)[inside].mean()
    assert (changed > 0.5) == (name != 'identity')


@pytest.mark.parametrize('name', OPERATIONS)
@pytest.mark.parametrize('shape', [(7, 9, 3), (7, 9, 1), (1, 1, 3), (2, 1, 1)])
def test_any_shape_and_strength_0(name, shape):
    image = picture(3, *shape)
    assert OPERATIONS[name](image, 0.8).shape == shape
    if name not in ('autocontrast', 'equalize'):
        image = np.minimum(image, 254)  # solarize inverts 255, as torchvision's does
        np.testing.assert_array_equal(OPERATIONS[name](image, 0.0), image)


@pytest.mark.parametrize(
    ('name', 'strength', 'want'),
    [
        ('autocontrast', 0, [0, 63, 127, 255]),  # (v - 50) 255 // 200
        ('solarize', 0.5, [50, 100, 105, 5]),  # inverted from 127.5 upwards
        ('posterize', 0.9, [48, 96, 144, 240]),  # 4 bits
        ('posterize', 0.5, [48, 100, 148, 248]),  # 6 bits
        ('brightness', 1, [95, 190, 255, 255]),  # 1.9 v
        ('brightness', -1, [5, 10, 15, 25]),  # 0.1 v
        ('contrast', -1, [129, 134, 139, 149]),  # mean 137.5 -> 138; 138 + 0.1 (v - 138)
        ('color', 1, [50, 100, 150, 250]),  # a gray image has no colour
        ('translate_x', 0.9, [0, 50, 100, 150]),  # int(4 * 150 / 331 * 0.9) = 1 to the right
        ('translate_x', -0.9, [100, 150, 250, 0]),
    ],
)
def test_four_pixels_by_hand(name, strength, want):
    row = np.array([50, 100, 150, 250], np.uint8).reshape(1, 4, 1)
    assert OPERATIONS[name](row, strength)[0, :, 0].tolist() == want


BINS = np.arange(31)  # torchvision's, of its 31
THEIRS = {  # the magnitude of each bin, as torchvision's `RandAugment` computes it
    'shear_x': np.linspace(0, 0.3, 31),
    'shear_y': np.linspace(0, 0.3, 31),
    'translate_x': np.linspace(0, 150 / 331 * WIDTH, 31),
    'translate_y': np.linspace(0, 150 / 331 * HEIGHT, 31),
    'rotate': np.linspace(0, 30, 31),
    'brightness': np.linspace(0, 0.9, 31),
    'color': np.linspace(0, 0.9, 31),
    'contrast': np.linspace(0, 0.9, 31),
    'sharpness': np.linspace(0, 0.9, 31),
    'posterize': 8 - np.round(BINS / (30 / 4)),
    'solarize': np.linspace(255, 0, 31),
}
APPLIED = {  # what a magnitude does, in Pillow
    'shear_x': affine(1, lambda m: m, 0, 0, 1, 0),
    'shear_y': affine(1, 0, 0, lambda m: m, 1, 0),
    'translate_x': affine(1, 0, lambda m: -int(m), 0, 1, 0),
    'translate_y': affine(1, 0, 0, 0, 1, lambda m: -int(m)),
    'rotate': lambda i, m: i.rotate(m, Image.Resampling.BILINEAR),
    **{
        name: lambda i, m, kind=kind: kind(i).enhance(1 + m)
        for name, kind in (
            ('brightness', ImageEnhance.Brightness),
            ('color', ImageEnhance.Color),
            ('contrast', ImageEnhance.Contrast),
            ('sharpness', ImageEnhance.Sharpness),
        )
    },
    'posterize': lambda i, m: ImageOps.posterize(i, int(m)),
    'solarize': lambda i, m: i.point(lambda v: v if v < m else 255 - v),
}


@pytest.mark.parametrize('name', THEIRS)
def test_magnitudes_are_those_of_torchvision_at_every_bin(image, name):
    """Magnitude M = b / 3 does what torchvision does at bin b; the mean image tells it apart."""
    tolerance = PILLOW[name][1]
    for b in BINS:
        ours = OPERATIONS[name](image, b / 30).astype(float)
        theirs = np.asarray(APPLIED[name](Image.fromarray(image), float(THEIRS[name][b])), float)
        far = np.abs(ours - theirs)
        if tolerance == 5:  # the borders differ, see above; the middle does not
            far = far[20:-20, 20:-20]
        assert far.max() <= tolerance, (b, far.max())


@pytest.mark.parametrize(
    ('magnitude', 'first'),
    [(0, 255), (1 / 3, 247), (3, 179), (5, 128), (10 / 3, 170), (9, 26), (10, 0)],
)
def test_solarize_starts_where_torchvision_does(magnitude, first):
    """The least value that is inverted is 255 (1 - s), rounded up."""
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
    out = OPERATIONS['solarize'](levels, magnitude / 10).ravel()
    want = [v if v < first else 255 - v for v in range(256)]
    assert out.tolist() == want


def test_color_by_hand():
    red = np.array([[[200, 0, 0]]], np.uint8)  # luma 0.299 * 200 = 60
    assert randaugment.color(red, -1)[0, 0].tolist() == [74, 54, 54]  # 60 + 0.1 (v - 60)


def test_sharpness_by_hand():
    dot = np.zeros((5, 5, 1), np.uint8)
    dot[2, 2] = dot[0, 0] = 130
    out = randaugment.sharpness(dot, -1)[..., 0]  # 0.1 of it, 0.9 of the smoothed image
    assert out[2, 2] == 58 and out[2, 3] == 9  # 50 + 0.1 * 80; 10 - 0.1 * 10
    assert out[0, 0] == 130 and out[1, 1] == 18  # the border stays; (1, 1) is near both dots


def test_equalize_by_hand():
    """1,020 pixels: 255 of value 10, 510 of 20 and 255 of 90, so s = 765 // 255 = 3."""
    image = np.repeat([10, 20, 90], [255, 510, 255]).astype(np.uint8).reshape(20, 51, 1)
    out = randaugment.equalize(image, 0)
    assert [int(out[image == v][0]) for v in (10, 20, 90)] == [0, 85, 255]  # (0, 255, 765) + 1 // 3


def test_what_is_drawn(image):
    """Each layer draws one of 14 operations, all equally likely, and a direction."""

    def one(seed):
        return randaugment.randaugment(image, np.random.default_rng(seed), 1, 9.0)

    possible = {}
    for name, operation in OPERATIONS.items():
        for sign in (1, -1) if name in SIGNED else (1,):
            possible[operation(image, sign * 0.9).tobytes()] = name, sign
    drawn = [possible[one(seed).tobytes()] for seed in range(1400)]
    assert set(drawn) == set(possible.values()) and len(possible) == 14 + len(SIGNED)
    counts = [sum(name == n for n, _ in drawn) for name in OPERATIONS]
    assert all(abs(c - 100) < 5 * 9.7 for c in counts), counts
    rng = np.random.default_rng(5)
    (a, b), (c, d) = rng.integers(0, [14, 2], (2, 2)).tolist()
    names = list(OPERATIONS)
    want = image
    for choice, negative in ((a, b), (c, d)):
        sign = -1 if negative and names[choice] in SIGNED else 1
        want = OPERATIONS[names[choice]](want, sign * 0.9)
    two = randaugment.randaugment(image, np.random.default_rng(5), 2, 9.0)
    np.testing.assert_array_equal(two, want)


def batches(tmp_path, **changes):
    cfg = config('digits', tmp_path, augment='pad_crop', **changes)
    with ip.train_batches(
        cfg, seed=1, batch_size=8, rows=[3, 5], start_step=2, num_steps=4
    ) as loader:
        return [batch['image'] for batch in loader]


def test_rows_are_keyed_and_off_changes_no_bit(tmp_path):
    off, on = batches(tmp_path), batches(tmp_path, randaugment_layers=2)
    assert not np.array_equal(off, on)
    cfg = config('digits', tmp_path, augment='pad_crop')
    with ip.train_batches(cfg, seed=1, batch_size=8, rows=[5], start_step=3, num_steps=4) as loader:
        index = int(next(loader)['index'][0])
    with ip.evaluation_batches(
        config('digits', tmp_path), split='train', batch_size=1437, rows=range(1437)
    ) as loader:
        whole = next(loader)
    image = whole['image'][whole['index'] == index][0]
    rng = augment.generator(1, 3, 5)
    cropped = augment.pad_crop(image, rng, flip=False)
    np.testing.assert_array_equal(off[1][1], cropped)
    np.testing.assert_array_equal(on[1][1], randaugment.randaugment(cropped, rng, 2, 9.0))


@pytest.mark.parametrize(
    ('changes', 'match'),
    [
        ({'randaugment_layers': -1}, 'randaugment_layers is -1'),
        (
            {'randaugment_layers': 1, 'randaugment_magnitude': 11.0},
            r'11.0; it must lie in \[0, 10\]',
        ),
        ({'randaugment_layers': 1, 'randaugment_magnitude': float('nan')}, 'nan; it must lie'),
        ({'randaugment_magnitude': 5.0}, '5.0 but is not read: randaugment_layers is 0'),
        ({'randaugment_layers': 1, 'resident': True}, 'resident is set, but randaugment_layers'),
    ],
)
def test_refusals(tmp_path, changes, match):
    with pytest.raises(ip.DataError, match=match) as caught:
        ip.info(config('digits', tmp_path, **changes))
    assert '\n' not in str(caught.value)
