"""Preparing ImageNet keeps the original bytes and survives interruptions, damage and full disks."""

import fcntl
import hashlib
import json
import os
import re
import subprocess
import sys
import threading

import cv2
import numpy as np
import pytest
from image_fakes import WNIDS, config, encoded, imagenet, picture, rewrite, tar_bytes

import input_pipeline as ip
from input_pipeline import storage
from input_pipeline.datasets.imagenet2012 import Imagenet2012
from input_pipeline.prepare import main, prepare
from input_pipeline.types import Report

TRAIN, VAL = 'ILSVRC2012_img_train.tar', 'ILSVRC2012_img_val.tar'


@pytest.fixture
def source(tmp_path):
    imagenet(tmp_path / 'in')
    return tmp_path / 'in'


def archives(folder, train, val=()):
    """Writes both archives: train is {class: [(name, bytes)]}, val is [(name, bytes)]."""
    outer = [(f'{wnid}.tar', tar_bytes(files)) for wnid, files in train.items()]
    rewrite(folder / TRAIN, tar_bytes(outer))
    val = val or [('ILSVRC2012_val_00000001.JPEG', encoded(picture(1)))]
    rewrite(folder / VAL, tar_bytes(val))


def stored(data_dir, split):
    """Returns (key, encoded image, label) of each record in storage order."""
    from tensorflow_datasets.proto import tf_example_pb2

    rows = []
    records = storage.records(data_dir / 'imagenet2012/1.0.0', split)
    for raw in records.__getitems__(range(len(records))):
        fields = tf_example_pb2.Example.FromString(raw).features.feature
        key, image = (fields[n].bytes_list.value[0] for n in ('key', 'image'))
        rows.append((key.decode(), image, fields['label'].int64_list.value[0]))
    return rows


def digest(data_dir):
    return ip.info(config('imagenet2012', data_dir, image_size=8)).digest


def files(data_dir):
    folder = data_dir / 'imagenet2012/1.0.0'
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_the_original_bytes_are_stored(tmp_path):
    members = {
        WNIDS[0]: [
            (f'{WNIDS[0]}_{i}.JPEG', data)
            for i, data in enumerate(
                (
                    encoded(picture(1)),
                    encoded(picture(2), mode='CMYK'),
                    encoded(picture(3), 'PNG'),
                    encoded(picture(4), 'PNG', 'RGBA'),
                    encoded(picture(5), mode='L'),
                )
            )
        ],
        WNIDS[2]: [('one.JPEG', encoded(picture(6)) + b'what follows the image')],
    }
    val = [(f'ILSVRC2012_val_{i:08d}.JPEG', encoded(picture(i))) for i in (2, 1)]
    archives(tmp_path, members, val)
    line = prepare('imagenet2012', str(tmp_path), str(tmp_path))
    assert 'cannot be decoded' not in line and f'digest {digest(tmp_path)[:16]}' in line
    want = [
        (name, data, label)
        for (wnid, label) in ((WNIDS[0], 0), (WNIDS[2], 999))
        for name, data in members[wnid]
    ]
    assert stored(tmp_path, 'train') == want
    assert [row[:2] for row in stored(tmp_path, 'validation')] == sorted(val)
    assert prepare('imagenet2012', str(tmp_path), '').count(digest(tmp_path)[:16]) == 1

    cfg = config('imagenet2012', tmp_path, image_size=30)
    with ip.evaluation_batches(cfg, split='train', batch_size=6, rows=range(6)) as batches:
        batch = next(batches)
    for index, pixels in zip(batch['index'], batch['image'], strict=True):
        alone = ip.evaluation_image(cfg, (30, 30, 3), want[index][1])
        np.testing.assert_array_equal(alone, pixels)
    assert ip.evaluation_image(cfg, (30, 30, 3), b'no image') is None


def test_what_an_evaluation_does_to_an_image_can_be_done_from_what_is_told():
    cfg, image = config('imagenet2012', '', image_size=30), picture(1, 80, 100)
    told = ip.evaluation_steps(cfg, (30, 30, 3))
    assert told['channels'] == 'RGB' and told['shrink'] == 'area'
    side, (height, width) = told['shorter_side'], told['centre_crop']
    resized = cv2.resize(image, (side * 100 // 80, side), interpolation=cv2.INTER_AREA)
    top, left = (side - height) // 2, (resized.shape[1] - width) // 2
    want = ip.evaluation_image(cfg, (30, 30, 3), encoded(image, 'PNG'))
    np.testing.assert_array_equal(resized[top : top + height, left : left + width], want)
    assert (told['mean'], told['std']) == tuple(map(list, ip.mean_std(cfg)))
    assert told['scale'] * 255 == 1
    small = ip.evaluation_steps(config('digits', '', image_size=16), (16, 16, 1))
    assert small['channels'] == 'gray' and small['resize'] == [16, 16]
    assert small['shorter_side'] is None


def test_the_digest_tells_two_preparations_apart(tmp_path, source):
    prepare('imagenet2012', str(tmp_path / 'a'), str(source))
    prepare('imagenet2012', str(tmp_path / 'b'), str(source))
    assert files(tmp_path / 'a') == files(tmp_path / 'b')
    first = digest(tmp_path / 'a')
    assert len(first) == 64 and int(first, 16)
    labels = source / 'validation_labels.txt'
    labels.write_text(f'{WNIDS[0]}\n' * 3)
    prepare('imagenet2012', str(tmp_path / 'c'), str(source))
    labels.write_text(f'{WNIDS[1]}\n' * 3)
    prepare('imagenet2012', str(tmp_path / 'd'), str(source))
    assert len({digest(tmp_path / x) for x in 'abcd'}) == 3
    (tmp_path / 'a/imagenet2012/1.0.0/prepared.json').unlink()  # tfds itself writes none
    assert digest(tmp_path / 'a') == ''


class Count(Report):
    """Counts images and warnings; after `stop` images it interrupts, as a user or signal would."""

    def __init__(self, stop=10**9):
        self.stop, self.written, self.reused, self.warned = stop, 0, 0, []

    def images(self, split, more):
        self.written += more
        if self.written >= self.stop:
            raise KeyboardInterrupt

    def kept(self, split, images):
        self.reused += images

    def warn(self, message):
        self.warned.append(message)


def write(source, data_dir, stop=10**9):
    report = Count(stop)
    storage.write(Imagenet2012(), source, str(data_dir), report=report)
    return report


@pytest.fixture
def interrupted(tmp_path, source):
    """Three train shards of two images, three test shards of one; stopped inside the third."""
    with pytest.raises(KeyboardInterrupt):
        write(source, tmp_path, stop=5)
    return tmp_path / 'imagenet2012/unfinished_1.0.0'


def test_an_interrupted_preparation_goes_on(tmp_path, source, interrupted):
    with pytest.raises(ip.DataError, match='is not prepared'):
        ip.require(config('imagenet2012', tmp_path))
    report = write(source, tmp_path)
    assert (report.reused, report.written) == (4, 5)
    assert not interrupted.exists()
    write(source, tmp_path / 'at once')
    assert files(tmp_path) == files(tmp_path / 'at once')


def test_it_goes_on_only_from_whole_files_of_the_same_source(tmp_path, source, interrupted):
    first = interrupted / 'imagenet2012-train.array_record-00000-of-00003'
    whole = first.read_bytes()
    first.write_bytes(whole[:-1])
    with pytest.raises(KeyboardInterrupt):
        write(source, tmp_path, stop=4)
    assert first.read_bytes() == whole  # written again; the second was kept
    os.utime(source / TRAIN, ns=(1, 1))
    report = write(source, tmp_path)
    assert (report.reused, report.written) == (0, 9)


def test_the_command_says_that_it_goes_on(tmp_path, source, interrupted, capsys):
    args = ['--dataset=imagenet2012', f'--data_dir={tmp_path}', f'--source={source}']
    assert main(args) == 0
    out, error = capsys.readouterr()
    assert 'continuing where an earlier preparation stopped' in error
    assert 'train 6, validation 3, 1000 classes' in out


def test_damage_leaves_nothing_half_made(tmp_path, source, interrupted):
    (source / VAL).unlink()
    with pytest.raises(ip.DataError, match=VAL):
        write(source, tmp_path)
    assert interrupted.exists()  # the source may come back unchanged
    imagenet(source, inner_damage=True)
    with pytest.raises(ip.DataError, match="inside member 'n01440764.tar'"):
        write(source, tmp_path)
    assert not interrupted.exists()


@pytest.mark.parametrize('cut', [512, 1024, 1300])
def test_a_truncated_archive_is_refused_before_anything_is_written(tmp_path, source, cut):
    for name in (TRAIN, VAL):
        imagenet(source)
        (source / name).write_bytes((source / name).read_bytes()[:cut])
        report = Count()
        with pytest.raises(ip.DataError, match=f'{name} is damaged at member'):
            storage.write(Imagenet2012(), source, str(tmp_path), report=report)
        assert report.written == 0


IMAGE = encoded(picture(1))


@pytest.mark.parametrize(
    ('train', 'val', 'match'),
    [
        ([('a.tar', b'')] * 2, [], "img_train.tar holds member 'a.tar' twice"),
        ([('a.tar', b''), ('x/a.tar', b'')], [], "img_train.tar holds member 'x/a.tar' twice"),
        (
            [(f'{WNIDS[0]}.tar', tar_bytes([('1.JPEG', IMAGE)] * 2))],
            [],
            "inside member 'n01440764.tar': .*img_train.tar holds member '1.JPEG' twice",
        ),
        (
            [(f'{WNIDS[0]}.tar', tar_bytes([('1.JPEG', IMAGE)]))],
            [('ILSVRC2012_val_00000001.JPEG', IMAGE)] * 2,
            "img_val.tar holds member 'ILSVRC2012_val_00000001.JPEG' twice",
        ),
    ],
)
def test_what_is_there_twice_is_refused(tmp_path, train, val, match):
    val = val or [('ILSVRC2012_val_00000001.JPEG', IMAGE)]
    rewrite(tmp_path / TRAIN, tar_bytes(train))
    rewrite(tmp_path / VAL, tar_bytes(val))
    with pytest.raises(ip.DataError, match=match) as caught:
        write(tmp_path, tmp_path)
    assert '\n' not in str(caught.value)


def test_images_that_cannot_be_decoded_are_named(tmp_path, caplog):
    cut = encoded(picture(2))[:-200]
    members = [
        ('good.JPEG', IMAGE),
        ('cut.JPEG', cut),
        ('text.JPEG', b'not an image'),
        ('empty.JPEG', b''),
    ]
    val = [(f'ILSVRC2012_val_{i:08d}.JPEG', d) for i, d in ((1, IMAGE), (2, cut))]
    archives(tmp_path, {WNIDS[0]: members, WNIDS[1]: []}, val)
    line = prepare('imagenet2012', str(tmp_path), str(tmp_path))
    assert '3 of train cannot be decoded (cut.JPEG, text.JPEG, empty.JPEG)' in line
    assert '1 of validation cannot be decoded (ILSVRC2012_val_00000002.JPEG)' in line
    prepared = json.loads(files(tmp_path)['prepared.json'])
    assert prepared['unreadable']['train'] == ['cut.JPEG', 'text.JPEG', 'empty.JPEG']
    cfg = config('imagenet2012', tmp_path, image_size=8)
    with ip.train_batches(
        cfg, seed=0, batch_size=4, rows=range(4), start_step=0, num_steps=1
    ) as batches:
        assert next(batches)['valid'].sum() == 1 and batches.bad_images == 3
    with pytest.raises(ip.DataError, match="'ILSVRC2012_val_00000002.JPEG'"):
        with ip.evaluation_batches(cfg, split='test', batch_size=2, rows=[0, 1]) as batches:
            list(batches)


@pytest.mark.parametrize(
    ('size', 'md5', 'difference'), [(0, '', ''), (0, '0' * 32, 'has MD5'), (1, '', 'has .* bytes')]
)
def test_an_archive_that_is_not_the_published_one_is_reported(
    tmp_path, source, monkeypatch, capsys, size, md5, difference
):
    data = (source / TRAIN).read_bytes()
    actual = hashlib.md5(data).hexdigest()
    monkeypatch.setattr(Imagenet2012, 'published', {TRAIN: (len(data) + size, md5 or actual)})
    line = prepare('imagenet2012', str(tmp_path), str(source))
    warning = f'{TRAIN} is not the published file: it {difference}'
    assert bool(re.search(warning, line)) == bool(difference)
    # a wrong MD5 is also reported before anything is written
    assert bool(re.search(warning, capsys.readouterr().err)) == ('MD5' in difference)
    (about,) = json.loads(files(tmp_path)['prepared.json'])['sources']
    assert about == {
        'name': TRAIN,
        'bytes': len(data),
        'published': not difference,
        'md5': None if size else actual,
    }


def test_a_full_disk(tmp_path, source):
    """A limit of 200 kB per file stands in for a full disk: it takes the same path in the code."""
    code = (
        'import resource, signal, sys\n'
        'signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n'
        'resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))\n'
        'from input_pipeline.prepare import main\n'
        f'sys.exit(main(["--dataset=imagenet2012", "--source={source}", "--data_dir={tmp_path}"]))'
    )
    large = encoded(picture(0, 1000, 1000)) + bytes(200_000)
    archives(source, {WNIDS[0]: [('a.JPEG', IMAGE)], WNIDS[1]: [('b.JPEG', large)]})
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count('\n') == 1 and 'File too large' in done.stderr
    assert 'finished files stay in' in done.stderr and 'run the command again' in done.stderr
    report = write(source, tmp_path)
    assert (report.reused, report.written) == (1, 2)


def test_little_room_is_reported_first(tmp_path, source, monkeypatch):
    usage = storage.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(storage.shutil, 'disk_usage', lambda path: usage._replace(free=1000))
    warned = write(source, tmp_path).warned
    assert any(message.startswith('1,000 bytes are free') for message in warned)


def test_the_second_of_two_preparations_waits(tmp_path, source):
    folder = tmp_path / 'imagenet2012'
    folder.mkdir()
    reports = []
    with (folder / '.lock').open('w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        second = threading.Thread(target=lambda: reports.append(write(source, tmp_path)))
        second.start()
        second.join(1)
        assert second.is_alive() and sorted(os.listdir(folder)) == ['.lock']
    second.join(60)
    assert reports[0].written == 9
    assert f'another process is preparing {folder}; waiting for it' in reports[0].warned
    assert write(source, tmp_path).written == 0
