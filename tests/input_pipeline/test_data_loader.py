"""A training row depends only on (seed, step, row); an evaluation sees every image once."""

import logging
import subprocess
import sys
import time
from collections import Counter

import numpy as np
import pytest
from image_fakes import config

import input_pipeline as ip
from input_pipeline import loader, order, reader
from input_pipeline.registry import find

NUMBERED, BROKEN = 'image_fakes:Numbered', 'image_fakes:Broken'


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp('data')


def train(cfg, rows=range(8), start=0, stop=6, seed=1, batch_size=8):
    with ip.train_batches(
        cfg, seed=seed, batch_size=batch_size, rows=rows, start_step=start, num_steps=stop
    ) as batches:
        return list(batches)


def evaluate(cfg, split='test', batch_size=4, rows=None):
    rows = range(batch_size) if rows is None else rows
    with ip.evaluation_batches(cfg, split=split, batch_size=batch_size, rows=rows) as batches:
        return list(batches)


def assert_same(left, right):
    assert len(left) == len(right)
    for one, other in zip(left, right, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def joined(batches, name):
    return np.concatenate([batch[name] for batch in batches])


def test_shapes_and_types(data_dir):
    batch = train(config('digits', data_dir))[0]
    assert {k: (v.shape, v.dtype) for k, v in batch.items()} == {
        'image': ((8, 8, 8, 1), np.uint8),
        'label': ((8,), np.int32),
        'valid': ((8,), np.bool_),
        'index': ((8,), np.int32),
    }


@pytest.mark.parametrize('changes', [{'workers': 2}, {'cache': True}], ids=str)
def test_where_rows_are_loaded_changes_nothing(data_dir, changes):
    augmented = {'augment': 'pad_crop', 'randaugment_layers': 2}
    one = train(config('digits', data_dir, **augmented))
    other = train(config('digits', data_dir, **augmented, **changes))
    assert_same(one, other)


@pytest.mark.parametrize(
    ('slow', 'at_once'),
    [((), []), ((4, 3), [[1, 5]]), ((7, 3, 5), []), ((1, 5), []), ((7, 4, 3, 1, 5), [[3, 1, 5]])],
)
def test_records_are_read_one_by_one_until_storage_makes_two_wait(
    data_dir, monkeypatch, slow, at_once
):
    cfg = config('digits', data_dir)
    steps = loader.build_steps(cfg, 'train', 8, range(8), 1)
    expected, asked = [item.key for item in steps.reader.read([7, 4, 3, 1, 5])], []
    opened = reader._records(steps.reader.directory, 'train')
    now = iter(range(10**6))
    clock = {'seconds': 0.0}

    class Records:
        def __getitem__(self, position):
            clock['seconds'] += 2e-3 * (position in slow)
            return opened[position]

        def __getitems__(self, positions):
            asked.append(positions)
            return opened.__getitems__(positions)

    monkeypatch.setattr(reader, '_records', lambda *_: Records())
    monkeypatch.setattr(reader.time, 'perf_counter', lambda: clock['seconds'] + 1e-6 * next(now))
    assert [item.key for item in steps.reader.read([7, 4, 3, 1, 5])] == expected
    assert asked == at_once


def test_start_step_and_rows_change_nothing(data_dir):
    cfg = config('digits', data_dir, augment='pad_crop_flip', validation_fraction=0.1)
    whole = train(cfg)
    assert_same(train(cfg, start=4), whole[4:])
    parts = [train(cfg, rows=rows) for rows in ([0, 1, 2], [7, 3], [4, 5, 6])]
    for step, batch in enumerate(whole):
        for rows, part in zip(([0, 1, 2], [7, 3], [4, 5, 6]), parts, strict=True):
            for name in batch:
                np.testing.assert_array_equal(part[step][name], batch[name][list(rows)])


def test_seed_and_step_change_order_and_augmentation(data_dir):
    cfg = config('digits', data_dir, augment='pad_crop')
    one, other = train(cfg, seed=1), train(cfg, seed=2)
    assert not np.array_equal(joined(one, 'index'), joined(other, 'index'))
    unaugmented = train(config('digits', data_dir))
    assert not np.array_equal(joined(one, 'image'), joined(unaugmented, 'image'))


def test_the_same_image_is_augmented_anew_each_epoch(data_dir):
    batches = train(config('digits', data_dir, augment='pad_crop'), stop=450)
    index, images = joined(batches, 'index'), joined(batches, 'image')
    (places,) = np.nonzero(index == index[0])
    assert len(places) >= 2
    assert len({images[p].tobytes() for p in places}) > 1


def test_every_image_once_per_epoch_across_batches(data_dir):
    batches = train(config(NUMBERED, data_dir), stop=23)  # 23 steps of 8 are 8 epochs of 23
    index, images = joined(batches, 'index'), joined(batches, 'image')
    epochs = index.reshape(8, 23)
    for epoch in epochs:
        assert sorted(epoch) == list(range(23))
    assert len({tuple(epoch) for epoch in epochs}) == 8
    np.testing.assert_array_equal(images[:, 0, 0, 0], index)
    np.testing.assert_array_equal(joined(batches, 'label'), index % 3)
    assert joined(batches, 'valid').all()


def test_epochs_of_one_seed_are_not_epochs_of_the_next():
    size = 50
    orders = {
        tuple(order.train_indices(seed, np.arange(e * size, (e + 1) * size), size))
        for seed in range(5)
        for e in range(5)
    }
    assert len(orders) == 25


def test_shuffle_is_even():
    """In 2,000 orders of 10 images, each comes first 200 times, within 5 standard deviations."""
    firsts = Counter(int(order.fixed_permutation(10, order.mix64(s, 0))[0]) for s in range(2000))
    assert all(abs(firsts[i] - 200) < 5 * 13.5 for i in range(10))


def test_held_out_part(data_dir):
    cfg = config(NUMBERED, data_dir, validation_fraction=0.2)  # round(4.6) = 5 images
    seen = {s: joined(evaluate(cfg, s), 'image')[:, 0, 0, 0] for s in ('train', 'validation')}
    valid = {s: joined(evaluate(cfg, s), 'valid') for s in seen}
    images = {s: sorted(seen[s][valid[s]].tolist()) for s in seen}
    assert (len(images['train']), len(images['validation'])) == (18, 5)
    assert sorted(images['train'] + images['validation']) == list(range(23))
    trained = train(cfg, stop=9)
    assert set(joined(trained, 'image')[:, 0, 0, 0].tolist()) == set(images['train'])
    assert set(joined(trained, 'index').tolist()) == set(range(18))


@pytest.mark.parametrize('batch_size', [1, 4, 10, 16])
def test_evaluation_counts_every_image_once(data_dir, batch_size):
    batches = evaluate(config(NUMBERED, data_dir), batch_size=batch_size)
    assert all(len(batch['valid']) == batch_size for batch in batches)
    valid, index = joined(batches, 'valid'), joined(batches, 'index')
    assert valid.sum() == 10 and valid[:10].all()  # padding comes last
    assert sorted(index[valid].tolist()) == list(range(10))
    assert (index[~valid] == -1).all()
    assert not joined(batches, 'image')[~valid].any() and not joined(batches, 'label')[~valid].any()
    np.testing.assert_array_equal(joined(batches, 'image')[valid][:, 0, 0, 0], index[valid])


def test_evaluation_order_is_fixed_and_shuffled(data_dir):
    cfg = config('digits', data_dir)
    by_one_size = joined(evaluate(cfg, batch_size=100), 'index')[:360]
    by_another = joined(evaluate(cfg, batch_size=7), 'index')[:360]
    np.testing.assert_array_equal(by_one_size, by_another)
    assert abs(np.corrcoef(by_one_size, np.arange(360))[0, 1]) < 0.2
    rows = evaluate(cfg, batch_size=100, rows=[99, 5])
    np.testing.assert_array_equal(rows[0]['index'], by_one_size[[99, 5]])


def test_undecodable_image_is_masked_in_training(data_dir, caplog):
    cfg = config(BROKEN, data_dir)
    with (
        caplog.at_level(logging.WARNING, logger='absl'),
        ip.train_batches(
            cfg, seed=0, batch_size=23, rows=range(23), start_step=0, num_steps=3
        ) as batches,
    ):
        for batch in batches:
            bad = batch['index'] == 3
            np.testing.assert_array_equal(batch['valid'], ~bad)
            assert not batch['image'][bad].any() and batch['label'][bad].tolist() == [0]
    assert batches.bad_images == 3
    assert caplog.text.count("'number 3'") == 1


def test_undecodable_image_stops_an_evaluation_by_name(data_dir):
    with pytest.raises(ip.DataError, match="'number 3'"):
        evaluate(config(BROKEN, data_dir))
    with pytest.raises(ip.DataError, match="'number 3'"):
        evaluate(config(BROKEN, data_dir, workers=1))


def test_closing_early(data_dir):
    batches = ip.train_batches(
        config(NUMBERED, data_dir), seed=0, batch_size=4, rows=range(4), start_step=0, num_steps=99
    )
    next(batches)
    batches.close()
    batches.close()
    assert list(batches) == []
    assert train(config(NUMBERED, data_dir), start=5, stop=5) == []


@pytest.mark.parametrize('split', ['validation', 'tset'])
def test_missing_split(data_dir, split):
    with pytest.raises(ip.DataError, match=f"no split '{split}'; it has: train, test"):
        evaluate(config(NUMBERED, data_dir), split)


def test_missing_record_file(tmp_path):
    cfg = config(NUMBERED, tmp_path)
    ip.require(cfg)
    gone = tmp_path / 'numbered/1.0.0/numbered-train.array_record-00001-of-00002'
    gone.unlink()
    with pytest.raises(ip.DataError, match=f'{gone} is missing'):
        train(cfg)


@pytest.mark.parametrize('size', [0, 65536, 131000])
def test_damaged_record_file(tmp_path, size):
    cfg = config(NUMBERED, tmp_path)
    ip.require(cfg)
    path = tmp_path / 'numbered/1.0.0/numbered-test.array_record-00000-of-00001'
    path.write_bytes(path.read_bytes()[:size])
    reason = "split 'test' in .* damaged|too few for 10 images"
    with pytest.raises(ip.DataError, match=reason) as caught:
        evaluate(cfg)
    assert '\n' not in str(caught.value)


def test_rows_outside_the_batch(data_dir):
    with pytest.raises(ip.DataError, match='batch_size=8'):
        train(config(NUMBERED, data_dir), rows=[0, 8])


def test_two_processes_prepare_at_once(tmp_path):
    code = (
        'import input_pipeline as ip\n'
        f'cfg = ip.DatasetConfig(name="digits", data_dir={str(tmp_path)!r})\n'
        'ip.require(cfg); print(ip.info(cfg).split_sizes["train"])'
    )
    command = [sys.executable, '-c', code]
    runs = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [run.communicate()[0].strip() for run in runs] == ['1293', '1293']
    assert sorted(p.name for p in (tmp_path / 'digits').iterdir()) == ['.lock', '1.0.0']


def test_training_reads_without_tensorflow(data_dir):
    code = (
        'import sys, input_pipeline as ip\n'
        f'cfg = ip.DatasetConfig(name="digits", data_dir={str(data_dir)!r}, augment="pad_crop")\n'
        'with ip.train_batches(cfg, seed=0, batch_size=4, rows=[0, 1], start_step=0, num_steps=1)'
        ' as b: next(b)\n'
        'assert "tensorflow" not in sys.modules'
    )
    subprocess.run([sys.executable, '-c', code], check=True)


def test_threads_that_read_find_what_they_need_imported(data_dir):
    """tfds resolves imports when they are used, and two threads that do so wait for each other."""
    evaluate(config('digits', data_dir))  # prepares the set
    code = (
        'import sys\n'
        'from input_pipeline import DatasetConfig, loader, reader\n'
        f'cfg = DatasetConfig(data_dir={str(data_dir)!r})\n'
        'steps = loader.build_steps(cfg, "test", 1, [0], 0)\n'
        'reader._records(steps.reader.directory, steps.reader.split)\n'
        'before = set(sys.modules)\n'
        'list(steps.reader.read([0]))\n'
        'print(sorted(n for n in set(sys.modules) - before if "tensorflow_datasets" in n))\n'
    )
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=120)
    assert out.stdout.strip() == '[]', out.stdout + out.stderr


def test_threads_share_one_decoding_of_a_split(data_dir, monkeypatch):
    cfg, decoded = config('image_fakes:Numbered', data_dir, cache=True), []
    real = reader.Reader.read_all

    def read_all(self, positions, keep):
        decoded.append(len(positions))
        time.sleep(0.2)  # so that the other threads come meanwhile
        return real(self, positions, keep)

    monkeypatch.setattr(reader.Reader, 'read_all', read_all)
    monkeypatch.setattr(loader, 'cores', lambda: 4)
    reader._decoded.cache_clear()
    with ip.evaluation_batches(cfg, split='train', batch_size=2, rows=[0, 1]) as batches:
        assert sum(batch['valid'].sum() for batch in batches) == 23
    assert decoded == [23]


def test_a_label_of_no_class_is_named_and_never_trained_on(tmp_path, monkeypatch):
    """A set that another program prepared may have -1 for what has no label."""
    cfg = config('image_fakes:Numbered', tmp_path)
    ip.storage.require(cfg)
    path = next(tmp_path.glob('numbered/*/features.json'))
    path.write_text(path.read_text().replace('"numClasses": "3"', '"numClasses": "2"'))
    monkeypatch.setattr(find(cfg.name), 'num_classes', 2, raising=False)
    with (
        pytest.raises(ip.DataError, match="'number [0-9]+' in .* has label 2, but its 2 classes"),
        ip.evaluation_batches(cfg, split='test', batch_size=10, rows=range(10)) as batches,
    ):
        list(batches)


def test_records_that_hold_no_example_are_one_line(tmp_path, monkeypatch):
    cfg = config('image_fakes:Numbered', tmp_path)
    ip.storage.require(cfg)
    monkeypatch.setattr(reader, '_records', lambda *at: [b'\xff' * 9] * 10)
    with (
        pytest.raises(ip.DataError, match="records of split 'test' in .* are damaged") as error,
        ip.evaluation_batches(cfg, split='test', batch_size=10, rows=range(10)) as batches,
    ):
        list(batches)
    assert '\n' not in str(error.value)
