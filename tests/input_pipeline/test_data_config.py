"""Facts of sets are known without data on disk, and mistakes are refused in one line."""

import dataclasses
import json
import re
import subprocess
import sys

import pytest
from image_fakes import config

import input_pipeline as ip
from input_pipeline import metadata, splits
from input_pipeline.registry import find

PUBLISHED = {
    'digits': (10, (8, 8, 1), {'train': 1437, 'test': 360}),
    'fashion_mnist': (10, (28, 28, 1), {'train': 60000, 'test': 10000}),
    'cifar10': (10, (32, 32, 3), {'train': 50000, 'test': 10000}),
    'cifar100': (100, (32, 32, 3), {'train': 50000, 'test': 10000}),
    'tiny_imagenet': (200, (64, 64, 3), {'train': 100000, 'test': 10000}),
    'imagenet2012': (1000, (224, 224, 3), {'train': 1281167, 'test': 50000}),
}


def test_import_is_light():
    code = (
        'import sys, time; start = time.process_time(); import input_pipeline\n'
        'took = time.process_time() - start\n'
        'heavy = {"jax", "numpy", "tensorflow_datasets", "grain", "cv2"} & set(sys.modules)\n'
        'assert not heavy, heavy\n'
        'assert took < 0.2, took'
    )
    subprocess.run([sys.executable, '-c', code], check=True)


def test_info_needs_neither_jax_nor_tfds(tmp_path):
    code = (
        'import sys, input_pipeline as ip\n'
        f'cfg = ip.DatasetConfig(name="cifar10", data_dir={str(tmp_path)!r})\n'
        'assert ip.info(cfg).num_classes == 10\n'
        'heavy = {"jax", "tensorflow_datasets", "grain", "moe_vision"} & set(sys.modules)\n'
        'assert not heavy, heavy'
    )
    subprocess.run([sys.executable, '-c', code], check=True)


@pytest.mark.parametrize('name', sorted(set(ip.DATASETS) - {'image_folder'}))
def test_info_without_preparing(tmp_path, name):
    classes, shape, sizes = PUBLISHED[name]
    cfg = config(name, tmp_path, image_size=224 if name == 'imagenet2012' else 0)
    info = ip.info(cfg)
    assert (info.num_classes, info.image_shape, info.split_sizes) == (classes, shape, sizes)
    assert len(set(info.class_names)) == classes
    mean, std = ip.mean_std(cfg)
    assert len(mean) == len(std) == shape[2] and all(0 < v < 1 for v in (*mean, *std))
    held = ip.info(dataclasses.replace(cfg, validation_fraction=0.1)).split_sizes
    assert held['validation'] == round(sizes['train'] * 0.1)
    assert held['train'] + held['validation'] == sizes['train']


@pytest.mark.parametrize('name', ip.DATASETS)
def test_every_entry_of_the_table_says_what_it_is(name):
    builder = find(name)
    assert builder.name == name and builder.wants
    assert builder.__doc__ and '\n' not in builder.wants


def error(call, *args, **kwargs):
    with pytest.raises(ip.DataError) as caught:
        call(*args, **kwargs)
    assert '\n' not in str(caught.value)
    return str(caught.value)


def test_wrong_values(tmp_path):
    message = error(ip.info, config('cifar_10', tmp_path))
    assert "'cifar_10'" in message and "Did you mean 'cifar10'?" in message
    message = error(ip.info, config('digits', tmp_path, augment='pad_crop_flp'))
    assert "Did you mean 'pad_crop_flip'?" in message and 'random_resized_crop' in message
    for fraction in (-0.1, 1.0, 2, float('nan')):
        message = error(ip.info, config('digits', tmp_path, validation_fraction=fraction))
        assert '[0, 1)' in message
    assert 'vary in size' in error(ip.info, config('imagenet2012', tmp_path))
    assert '-1' in error(ip.info, config('digits', tmp_path, image_size=-1))
    assert '-1' in error(ip.info, config('digits', tmp_path, workers=-1))
    assert 'no_such' in error(ip.info, config('no_such.module:Builder', tmp_path))
    assert 'not a subclass' in error(ip.info, config('pathlib:Path', tmp_path))


def test_missing_data_says_where_and_what_to_do(tmp_path):
    message = error(ip.require, config('cifar10', tmp_path))
    assert str(tmp_path / 'cifar10/1.0.0') in message
    assert f'python -m input_pipeline.prepare --dataset=cifar10 --data_dir={tmp_path}' in message
    assert 'configs/digits_k2.py' in message


def test_digits_prepare_themselves_or_say_why_not(tmp_path):
    ip.require(config('digits', tmp_path))
    assert ip.info(config('digits', tmp_path)).split_sizes == {'train': 1437, 'test': 360}
    (tmp_path / 'file').write_text('')
    assert 'cannot be written' in error(ip.require, config('digits', tmp_path / 'file'))


@pytest.mark.parametrize(
    ('file', 'old', 'new', 'match'),
    [
        ('features.json', '"numClasses": "10"', '"numClasses": "11"', 'holds 11 classes'),
        ('features.json', '"8"', '"9"', 'images of shape'),
        ('features.json', '{', '', 'does not describe'),
        ('dataset_info.json', 'array_record', 'tfrecord', "stored as 'tfrecord'"),
    ],
)
def test_disk_contradicts(tmp_path, file, old, new, match):
    cfg = config('digits', tmp_path)
    ip.require(cfg)
    path = tmp_path / 'digits/1.0.0' / file
    path.write_text(path.read_text().replace(old, new))
    assert match in error(ip.info, cfg)


def test_what_is_on_disk_counts(tmp_path):
    cfg = config('digits', tmp_path)
    ip.require(cfg)
    path = tmp_path / 'digits/1.0.0/dataset_info.json'
    described = json.loads(path.read_text())
    described['splits'][0]['shardLengths'] = ['1436']
    path.write_text(json.dumps(described))
    assert ip.info(cfg).split_sizes['train'] == 1436


@pytest.mark.parametrize(
    ('images', 'fraction', 'match'),
    [
        (1, 0.1, r'leaves no image for validation: .* has 1; give 0 to hold out none'),
        (4, 0.1, r'validation: .* has 4; give at least 0.25, or 0 to hold out none'),
        (4, 0.99, r'leaves no image for train: .* has 4; give less, such as 0.5, or 0'),
        (1437, 1e-4, r'validation: .* has 1437; give at least 0.0007, or 0'),
        (0, 0.0, "'digits' has no training images; it has: train, test"),
    ],
)
def test_a_fraction_that_leaves_a_split_empty(tmp_path, images, fraction, match):
    cfg = config('digits', tmp_path, validation_fraction=fraction)
    known = metadata.facts(find('digits'), cfg.data_dir)
    known = dataclasses.replace(known, sizes={'train': images, 'test': 360})
    assert re.search(match, error(splits.split_sizes, find('digits'), known, fraction))
    if 'at least' in match:  # the advice works
        enough = float(re.search('at least ([0-9.]+)', match)[1])
        assert splits.split_sizes(find('digits'), known, enough)['validation'] == 1


def test_a_set_without_images_or_sizes_is_known_once_prepared(tmp_path):
    class Unsized(type(find('digits'))):
        sizes = {}

    with pytest.raises(ip.DataError, match='only known once prepared'):
        metadata.facts(Unsized(), str(tmp_path))
