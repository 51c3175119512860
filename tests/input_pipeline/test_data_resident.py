"""A split on the device gives the same batches as the host, bit for bit."""

import logging

import jax
import numpy as np
import pytest
from image_fakes import config, encoded, picture, rewrite

import input_pipeline as ip
from input_pipeline import augment, domains, resident
from input_pipeline.prepare import prepare

NUMBERED, BROKEN = 'image_fakes:Numbered', 'image_fakes:Broken'


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp('data')


def on_device(cfg, seed, batch_size, rows, steps):
    split = jax.device_put(resident.load(cfg))
    pad = resident.padding(cfg, split['image'].shape[1:])
    step = resident.Rows(cfg, seed, batch_size, rows)
    codes = domains.codes(cfg.domains, split['image'].shape[1:]) if cfg.domains else None
    take = jax.jit(lambda split, rows: resident.gather(split, rows, pad, codes))
    return [jax.device_get(take(split, step(s))) for s in steps]


def on_host(cfg, seed, batch_size, rows, steps):
    with ip.train_batches(
        cfg,
        seed=seed,
        batch_size=batch_size,
        rows=rows,
        start_step=steps[0],
        num_steps=steps[-1] + 1,
    ) as batches:
        return list(batches)


def assert_same(ours, theirs):
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        for name in one:
            assert one[name].dtype == other[name].dtype
            np.testing.assert_array_equal(one[name], other[name], err_msg=name)


@pytest.mark.parametrize('marks', [0, 4])
@pytest.mark.parametrize('kind', ['none', 'pad_crop', 'pad_crop_flip'])
def test_the_batches_are_those_of_the_host(data_dir, kind, marks):
    """Across epochs and blocks of drawn steps, for some of the rows, with validation held out."""
    cfg = config(
        'digits', data_dir, augment=kind, validation_fraction=0.1, train_images=200, domains=marks
    )
    rows, steps = [5, 0, 31, 7], range(60, 70)
    ours = on_device(cfg, 3, 32, rows, steps)
    assert_same(ours, on_host(cfg, 3, 32, rows, steps))
    assert not np.array_equal(ours[0]['image'], on_device(cfg, 4, 32, rows, steps[:1])[0]['image'])


def test_any_step_may_be_asked_for(data_dir):
    cfg = config('digits', data_dir, augment='pad_crop_flip')
    rows = resident.Rows(cfg, 1, 8, range(8))
    straight = [rows(s) for s in range(130)]
    other = resident.Rows(cfg, 1, 8, range(8))
    for step in (129, 0, 63, 64, 65, 3):
        np.testing.assert_array_equal(other(step), straight[step])


def test_images_of_another_size_are_brought_to_the_shape(data_dir):
    cfg = config('digits', data_dir, augment='pad_crop', image_size=12)
    assert_same(on_device(cfg, 0, 8, range(8), range(2)), on_host(cfg, 0, 8, range(8), range(2)))


def test_an_undecodable_image_is_masked_and_named_once(data_dir, caplog):
    cfg = config(BROKEN, data_dir, augment='pad_crop')
    with caplog.at_level(logging.WARNING, logger='absl'):
        ours = on_device(cfg, 0, 23, range(23), range(3))
    assert caplog.text.count("'number 3'") == 1
    assert [int((~batch['valid']).sum()) for batch in ours] == [1, 1, 1]
    assert_same(ours, on_host(cfg, 0, 23, range(23), range(3)))


def test_leading_axes_are_kept(data_dir):
    """Rows [2, 3, R] stand for seeds or micro-batches."""
    cfg = config(NUMBERED, data_dir, augment='pad_crop_flip')
    split, rows = resident.load(cfg), resident.Rows(cfg, 0, 6, range(6))
    flat = resident.gather(split, rows(0), 1)
    deep = resident.gather(split, rows(0).reshape(2, 3, 1, 4), 1)
    assert deep['image'].shape == (2, 3, 1, 4, 4, 1)
    for name, value in flat.items():
        np.testing.assert_array_equal(deep[name].reshape(value.shape), value)


@pytest.mark.parametrize('high', [(3, 3, 2), (9, 9, 2), (57, 57, 2)])
def test_integers_are_those_of_numpy(high):
    steps, rows = np.array([0, 1, 77, 2**31 - 1]), np.array([0, 5, 1023])
    for seed in (0, 1, 2**40):
        want = [
            [augment.generator(seed, int(s), int(r)).integers(0, high) for r in rows] for s in steps
        ]
        np.testing.assert_array_equal(resident.integers(seed, steps, rows, high), want)


def test_second_tries_are_left_to_numpy():
    """Under these bounds Lemire's method rejects a quarter and a half of the words."""
    high = (2**31 + 2**30, 2**31 + 1, 3)
    steps, rows = np.arange(10), np.arange(20)
    want = [[augment.generator(1, s, r).integers(0, high) for r in range(20)] for s in range(10)]
    np.testing.assert_array_equal(resident.integers(1, steps, rows, high), want)


def test_what_cannot_be_resident_is_refused_in_one_line(data_dir):
    with pytest.raises(ip.DataError, match='use pad_crop') as e:
        ip.types.check(config('digits', data_dir, augment='random_resized_crop', resident=True))
    assert '\n' not in str(e.value)


@pytest.mark.parametrize('kind', ['none', 'pad_crop_flip'])
def test_images_of_several_sizes_are_kept_as_the_host_crops_them(tmp_path, kind):
    for i in range(10):
        data = encoded(picture(i, 9 + i, 30 - i), 'PNG')
        rewrite(tmp_path / f'in/train/{"ab"[i % 2]}/{i}.png', data)
    prepare('image_folder', str(tmp_path), str(tmp_path / 'in'))
    cfg = config('image_folder', tmp_path, augment=kind, image_size=8)
    assert_same(on_device(cfg, 0, 4, range(4), range(4)), on_host(cfg, 0, 4, range(4), range(4)))
