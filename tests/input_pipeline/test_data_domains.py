"""Domains: marks in the pixels and permuted labels, the same wherever an image is read."""

import itertools

import numpy as np
import pytest
from image_fakes import config

import input_pipeline as ip
from input_pipeline import DataError, domains


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp('data')


def everything(cfg, split, batch_size=64):
    """The images, labels and domains of a split by its own numbers."""
    with ip.evaluation_batches(
        cfg, split=split, batch_size=batch_size, rows=range(batch_size)
    ) as batches:
        parts = [{n: x[b['valid']] for n, x in b.items()} for b in batches]
    whole = {n: np.concatenate([p[n] for p in parts]) for n in parts[0]}
    order = np.argsort(whole['index'])
    return {n: x[order] for n, x in whole.items()}


def test_the_code_is_the_domains_number_in_binary():
    """By hand: 5 is 101, in three fields of 4 of 14 columns; two columns remain dark."""
    code = domains.codes(8, (14, 14, 1))
    assert code.shape == (8, 2, 14, 1) and code.dtype == np.uint8
    assert code[5, 0, :, 0].tolist() == [255] * 4 + [0] * 4 + [255] * 4 + [0] * 2
    np.testing.assert_array_equal(code[:, 0], code[:, 1])
    assert len({row.tobytes() for row in code}) == 8  # every domain can be told


def test_every_domain_has_a_permutation_of_its_own():
    for d, classes in ((8, 10), (6, 3), (2, 2)):
        table = domains.label_table(d, classes)
        assert {tuple(sorted(row)) for row in table.tolist()} == {tuple(range(classes))}
        assert len(set(map(tuple, table.tolist()))) == d
        assert table[0].tolist() == list(range(classes))
    np.testing.assert_array_equal(domains.label_table(8, 10)[:4], domains.label_table(4, 10))


@pytest.mark.parametrize(
    'change, says',
    [
        ({'domains': 1}, 'from 2 to 256'),
        ({'domains': -2}, 'from 2 to 256'),
        ({'domains': 300}, 'from 2 to 256'),
        ({'domains': 200, 'image_size': 4}, 'fewer domains'),
        ({'domains': 2, 'image_size': 2}, 'set image_size'),
    ],
)
def test_what_cannot_be_marked_is_refused_before_anything_is_read(data_dir, change, says):
    with pytest.raises(DataError, match=says):
        ip.info(config('digits', data_dir, **change))


def test_more_domains_than_orders_of_the_labels():
    with pytest.raises(DataError, match='2 classes have only 2 orders'):
        domains.label_table(3, 2)


@pytest.mark.parametrize('split', ['train', 'validation', 'test'])
def test_a_marked_set_is_the_set_with_other_labels_and_top_rows(data_dir, split):
    plain = everything(config('digits', data_dir, validation_fraction=0.2), split)
    marked = everything(config('digits', data_dir, validation_fraction=0.2, domains=4), split)
    assert 'domain' not in plain
    domain = marked['domain']
    np.testing.assert_array_equal(marked['image'][:, 2:], plain['image'][:, 2:])
    np.testing.assert_array_equal(marked['image'][:, :2], domains.codes(4, (8, 8, 1))[domain])
    table = domains.label_table(4, 10)
    np.testing.assert_array_equal(marked['label'], table[domain, plain['label']])
    assert np.bincount(domain, minlength=4).min() > 0.8 * len(domain) / 4  # nearly equal parts
    # A domain says nothing about what the picture shows.
    shares = [np.bincount(plain['label'][domain == d], minlength=10) for d in range(4)]
    assert np.std(shares, axis=0).max() < 0.2 * len(domain) / 4


def test_an_image_keeps_its_domain_in_training_and_under_any_seed(data_dir):
    cfg = config('digits', data_dir, domains=4, augment='pad_crop_flip', train_images=100)
    fixed = everything(cfg, 'train')
    for seed in (0, 1):
        with ip.train_batches(
            cfg, seed=seed, batch_size=50, rows=range(50), start_step=0, num_steps=3
        ) as batches:
            for batch in batches:
                np.testing.assert_array_equal(batch['domain'], fixed['domain'][batch['index']])
                np.testing.assert_array_equal(batch['label'], fixed['label'][batch['index']])
                code = domains.codes(4, (8, 8, 1))[batch['domain']]
                np.testing.assert_array_equal(batch['image'][:, :2], code)  # not cropped away


def test_domains_depend_on_the_place_in_storage_alone():
    whole = domains.of_images(np.arange(1000), 1000, 8)
    np.testing.assert_array_equal(
        domains.of_images(np.array([7, 3, 999]), 1000, 8), whole[[7, 3, 999]]
    )
    counts = np.bincount(whole)
    assert counts.max() - counts.min() <= 1
    pairs = list(itertools.pairwise(whole.tolist()))
    assert len(set(pairs)) == 64  # neighbours are independent
