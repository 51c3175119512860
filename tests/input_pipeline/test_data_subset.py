"""`train_images` makes a fixed choice of training images and leaves validation and test alone."""

import numpy as np
import pytest
from image_fakes import config

import input_pipeline as ip
from input_pipeline import order

NUMBERED = 'image_fakes:Numbered'  # 23 train and 10 test images; image i is filled with i


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp('data')


def passed(cfg, split):
    """Returns the values of the images of one evaluation pass, in order."""
    with ip.evaluation_batches(cfg, split=split, batch_size=4, rows=range(4)) as batches:
        return [v for b in batches for v in b['image'][b['valid']][:, 0, 0, 0].tolist()]


def trained(cfg, seed, steps=6):
    with ip.train_batches(
        cfg, seed=seed, batch_size=4, rows=range(4), start_step=0, num_steps=steps
    ) as batches:
        return [v for b in batches for v in b['image'][:, 0, 0, 0].tolist()]


@pytest.mark.parametrize('fraction', [0.0, 0.2])
def test_a_fixed_part_of_train_and_nothing_else_changes(data_dir, fraction):
    all_of_it = config(NUMBERED, data_dir, validation_fraction=fraction)
    few = config(NUMBERED, data_dir, validation_fraction=fraction, train_images=8)
    whole, part = ip.info(all_of_it).split_sizes, ip.info(few).split_sizes
    assert part == whole | {'train': 8}
    for split in set(whole) - {'train'}:
        assert passed(few, split) == passed(all_of_it, split)
    available = sorted(passed(all_of_it, 'train'))  # in storage order
    chosen = [available[i] for i in order.subset(len(available), 8)]
    assert sorted(passed(few, 'train')) == chosen != available[:8]
    for seed in (0, 1):  # 6 steps of 4 are 3 epochs of 8: each image three times
        assert sorted(trained(few, seed)) == sorted(3 * chosen)
    assert trained(few, 0) != trained(few, 1)


def test_more_images_keep_those_of_fewer_and_all_is_all(data_dir):
    eight = set(order.subset(1293, 8).tolist())
    assert eight < set(order.subset(1293, 100).tolist())
    np.testing.assert_array_equal(order.subset(1293, 1293), np.arange(1293))
    # Spread over the whole split: the mean of 100 indices out of 0..1292 is 646 +- 4 * 37
    assert abs(order.subset(1293, 100).mean() - 646) < 4 * 37
    everything = config(NUMBERED, data_dir, train_images=23)
    assert trained(everything, 0) == trained(config(NUMBERED, data_dir), 0)


@pytest.mark.parametrize(
    'wanted, message',
    [
        (20, "train_images is 20, but 'numbered' has 18 training images; give at most"),
        (-1, 'train_images is -1; give a number of images, or 0'),
    ],
)
def test_more_than_there_are_is_refused_in_one_line(data_dir, wanted, message):
    cfg = config(NUMBERED, data_dir, validation_fraction=0.2, train_images=wanted)
    with pytest.raises(ip.DataError, match=message) as caught:
        ip.info(cfg)
    assert '\n' not in str(caught.value)
