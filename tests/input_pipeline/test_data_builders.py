"""Each data set is prepared from a small fake of its published files and read as batches."""

import gzip
import shutil
import struct
import zipfile

import numpy as np
import pytest
from image_fakes import WNIDS, config, encoded, imagenet, picture, rewrite, tar_bytes
from scipy.io import savemat

import input_pipeline as ip
from input_pipeline.datasets import imagenet2012
from input_pipeline.datasets.digits import arrays
from input_pipeline.datasets.fashion_mnist import read_idx
from input_pipeline.prepare import prepare
from input_pipeline.reader import Reader
from input_pipeline.registry import find


def read_all(cfg, split):
    """Returns (images, labels) of a split, in storage order."""
    with ip.evaluation_batches(cfg, split=split, batch_size=16, rows=range(16)) as batches:
        passed = list(batches)
    valid = np.concatenate([b['valid'] for b in passed])
    joined = {k: np.concatenate([b[k] for b in passed])[valid] for k in ('image', 'label', 'index')}
    order = np.argsort(joined['index'])
    return joined['image'][order], joined['label'][order]


def refused(match, *args, **kwargs):
    with pytest.raises(ip.DataError, match=match) as caught:
        prepare(*args, **kwargs)
    assert '\n' not in str(caught.value)


# digits


def test_digits_split_and_pixels(tmp_path):
    from sklearn.datasets import load_digits

    loaded = load_digits()
    cfg = config('digits', tmp_path)
    assert ip.info(cfg).split_sizes == {'train': 1437, 'test': 360}
    (train, train_labels), (test, test_labels) = read_all(cfg, 'train'), read_all(cfg, 'test')
    assert train.shape == (1437, 8, 8, 1) and test.shape == (360, 8, 8, 1)
    for digit in range(10):  # stratified: the same share of each digit, within one image
        count = (loaded.target == digit).sum()
        assert abs((test_labels == digit).sum() - count * 360 / 1797) <= 1
    rows = {split: rows for split, (_, _, rows) in arrays().items()}
    assert sorted(np.concatenate([rows['train'], rows['test']])) == list(range(1797))
    np.testing.assert_array_equal(test_labels, loaded.target[rows['test']])
    expected = [[round(v * 255 / 16) for v in row] for row in loaded.images[rows['test'][7]]]
    np.testing.assert_array_equal(test[7, :, :, 0], expected)
    mean, std = ip.mean_std(cfg)
    np.testing.assert_allclose([train.mean() / 255, train.std() / 255], [*mean, *std], atol=1e-4)
    assert len(train_labels) == 1437


# fashion_mnist


def idx(array):
    return (
        b'\0\0\x08'
        + bytes([array.ndim])
        + struct.pack(f'>{array.ndim}I', *array.shape)
        + (array.astype(np.uint8).tobytes())
    )


def test_idx_by_hand(tmp_path):
    data = b'\0\0\x08\x02' + b'\0\0\0\x02' + b'\0\0\0\x03' + bytes([1, 2, 3, 4, 5, 6])
    for raw in (data, gzip.compress(data)):
        array = read_idx(rewrite(tmp_path / 'x', raw))
        assert array.dtype == np.uint8 and array.tolist() == [[1, 2, 3], [4, 5, 6]]
    for wrong in (
        data[:-1],
        data + b'x',
        b'\0\0\x0d\x02' + data[4:],
        b'',
        gzip.compress(data)[:-9],
    ):
        with pytest.raises(ip.DataError):
            read_idx(rewrite(tmp_path / 'x', wrong))


def fashion(folder, train=5, test=3):
    images = {}
    for name, count in (('train', train), ('t10k', test)):
        images[name] = np.arange(count * 784).reshape(count, 28, 28) % 251
        pixels, labels = idx(images[name]), idx(np.arange(count) % 10)
        rewrite(folder / f'{name}-images-idx3-ubyte.gz', gzip.compress(pixels))
        rewrite(folder / f'{name}-labels-idx1-ubyte', labels)
    return images


def test_fashion_mnist(tmp_path):
    images = fashion(tmp_path / 'in')
    line = prepare('fashion_mnist', str(tmp_path), str(tmp_path / 'in'))
    assert 'train 5, test 3, 10 classes' in line and 'WARNING' in line  # fewer than published
    read, labels = read_all(config('fashion_mnist', tmp_path), 'train')
    np.testing.assert_array_equal(read[..., 0], images['train'])
    assert labels.tolist() == [0, 1, 2, 3, 4]


def test_fashion_mnist_unfit_source(tmp_path):
    fashion(tmp_path / 'in')
    (tmp_path / 'in/t10k-labels-idx1-ubyte').unlink()
    refused('t10k-labels', 'fashion_mnist', str(tmp_path), str(tmp_path / 'in'))
    rewrite(tmp_path / 'in/t10k-labels-idx1-ubyte', idx(np.zeros(9)))
    refused(r'labels \(9,\)', 'fashion_mnist', str(tmp_path), str(tmp_path / 'in'))
    assert not list((tmp_path / 'fashion_mnist').glob('[!.]*')), 'partial output is left'


# cifar


def cifar10_files(per_file=2):
    rng = np.random.default_rng(0)
    names = [f'data_batch_{i}.bin' for i in range(1, 6)] + ['test_batch.bin']
    records = rng.integers(0, 256, (6, per_file, 3073), np.uint8)
    records[..., 0] %= 10
    files = [('cifar-10-batches-bin/batches.meta.txt', b'airplane\n')]
    files += [
        (f'cifar-10-batches-bin/{n}', r.tobytes()) for n, r in zip(names, records, strict=True)
    ]
    return files, records


def test_cifar10(tmp_path):
    files, records = cifar10_files()
    path = rewrite(tmp_path / 'cifar-10-binary.tar.gz', tar_bytes(files, 'w:gz'))
    prepare('cifar10', str(tmp_path), str(tmp_path))  # the folder that holds it
    assert path.exists()
    images, labels = read_all(config('cifar10', tmp_path), 'train')
    assert images.shape == (10, 32, 32, 3)
    record = records[1, 1]  # data_batch_2, second record: the fourth image
    assert labels[3] == record[0]
    red, green, blue = record[1:1025], record[1025:2049], record[2049:]
    assert images[3, 0, 5].tolist() == [red[5], green[5], blue[5]]
    assert images[3, 31, 0].tolist() == [red[31 * 32], green[31 * 32], blue[31 * 32]]


def test_cifar100_uses_the_fine_label(tmp_path):
    records = np.zeros((3, 3074), np.uint8)
    records[:, 0], records[:, 1] = [1, 2, 3], [99, 50, 0]
    files = [('cifar-100-binary/' + n, records.tobytes()) for n in ('train.bin', 'test.bin')]
    path = rewrite(tmp_path / 'c100.tar.gz', tar_bytes(files, 'w:gz'))
    prepare('cifar100', str(tmp_path), str(path))
    assert read_all(config('cifar100', tmp_path), 'test')[1].tolist() == [99, 50, 0]


def test_cifar_refusals(tmp_path):
    python = [('cifar-10-batches-py/data_batch_1', b'\x80\x04.'), ('cifar-10-batches-py/meta', b'')]
    path = rewrite(tmp_path / 'cifar-10-python.tar.gz', tar_bytes(python, 'w:gz'))
    refused('pickles.*cifar-10-binary.tar.gz', 'cifar10', str(tmp_path), str(path))
    refused('holds none of cifar-10-binary', 'cifar10', str(tmp_path), str(tmp_path))
    files, _ = cifar10_files()
    files[2] = (files[2][0], files[2][1][:-1])
    path = rewrite(tmp_path / 'x.tar.gz', tar_bytes(files, 'w:gz'))
    refused('data_batch_2.bin.*3073-byte', 'cifar10', str(tmp_path), str(path))
    files, _ = cifar10_files()
    files[3] = (files[3][0], b'\x0a' + files[3][1][1:])
    path = rewrite(tmp_path / 'x.tar.gz', tar_bytes(files, 'w:gz'))
    refused('data_batch_3.bin: record 0 has label 10', 'cifar10', str(tmp_path), str(path))
    assert not list((tmp_path / 'cifar10').glob('[!.]*')), 'partial output is left'


# tiny_imagenet


def tiny_zip(path, classes=200, drop=''):
    wnids = [f'n{i:08d}' for i in range(classes)][::-1]
    top = 'tiny-imagenet-200'
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr(f'{top}/wnids.txt', '\n'.join(wnids))
        for i, wnid in enumerate(sorted(wnids)):
            image = encoded(np.full((64, 64, 3), i % 256, np.uint8))
            archive.writestr(f'{top}/train/{wnid}/images/{wnid}_0.JPEG', image)
            archive.writestr(f'{top}/train/{wnid}/{wnid}_boxes.txt', 'x')
        gray = encoded(np.full((64, 64), 77, np.uint8), mode='L')
        lines = []
        for i in range(3):
            archive.writestr(f'{top}/val/images/val_{i}.JPEG', gray)
            if f'val_{i}' != drop:
                lines.append(f'val_{i}.JPEG\t{sorted(wnids)[10 * i % classes]}\t0\t0\t62\t62')
        archive.writestr(f'{top}/val/val_annotations.txt', '\n'.join(lines))
        archive.writestr(f'{top}/test/images/test_0.JPEG', gray)
    return str(path)


def test_tiny_imagenet(tmp_path):
    prepare('tiny_imagenet', str(tmp_path), tiny_zip(tmp_path / 'x.zip'))
    cfg = config('tiny_imagenet', tmp_path, validation_fraction=0.1)
    info = ip.info(cfg)
    assert info.split_sizes == {'train': 180, 'validation': 20, 'test': 3}
    assert info.image_shape == (64, 64, 3) and info.class_names[199] == 'n00000199'
    images, labels = read_all(config('tiny_imagenet', tmp_path), 'train')
    assert labels.tolist() == list(range(200))
    assert (np.abs(images.mean((1, 2, 3)) - np.arange(200)) < 2).all()
    images, labels = read_all(cfg, 'test')
    assert labels.tolist() == [0, 10, 20] and (images == 77).all()


def test_tiny_imagenet_refusals(tmp_path):
    refused('lists 5 classes.*has 200', 'tiny_imagenet', str(tmp_path), tiny_zip(tmp_path / 'a', 5))
    path = tiny_zip(tmp_path / 'b', drop='val_1')
    refused('val_1.JPEG', 'tiny_imagenet', str(tmp_path), path)


# imagenet2012


def test_imagenet(tmp_path):
    originals = imagenet(tmp_path / 'in')
    labels = 'n15075141\nn01440764\nn01443537\n'
    rewrite(tmp_path / 'in/validation_labels.txt', labels.encode())
    prepare('imagenet2012', str(tmp_path), str(tmp_path / 'in'))
    with pytest.raises(ip.DataError, match='image_size'):
        ip.info(config('imagenet2012', tmp_path))
    cfg = config('imagenet2012', tmp_path, image_size=35)  # shorter side 40: nothing is resized
    info = ip.info(cfg)
    assert info.image_shape == (35, 35, 3) and info.num_classes == 1000
    assert info.split_sizes == {'train': 6, 'test': 3} and info.class_names[999] == WNIDS[2]
    images, labels = read_all(cfg, 'train')
    assert labels.tolist() == [0, 0, 1, 1, 999, 999]
    for i, image in enumerate(images):
        original = originals[WNIDS[i // 2]][i % 2][2:37, 7:42]  # centre of 40 x 50
        error = np.abs(image.astype(int) - original).mean()
        assert error < (6 if i == 2 else 2), (i, error)
    assert read_all(cfg, 'test')[1].tolist() == [999, 0, 1]
    augmented = config('imagenet2012', tmp_path, image_size=24, augment='random_resized_crop')
    with ip.train_batches(
        augmented, seed=0, batch_size=4, rows=range(4), start_step=0, num_steps=3
    ) as batches:
        assert all(batch['valid'].all() and batch['image'].std() > 1 for batch in batches)


def test_imagenet_labels_of_the_development_kit(tmp_path):
    table = np.array(
        [(1, WNIDS[2]), (2, WNIDS[0]), (3, WNIDS[1])],
        dtype=[('ILSVRC2012_ID', 'u2'), ('WNID', object)],
    )
    savemat(tmp_path / 'meta.mat', {'synsets': table})
    truth = b'3\n3\n1\n'
    kit = [
        ('ILSVRC2012_devkit_t12/data/meta.mat', (tmp_path / 'meta.mat').read_bytes()),
        ('ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt', truth),
    ]
    rewrite(tmp_path / 'in/ILSVRC2012_devkit_t12.tar.gz', tar_bytes(kit, 'w:gz'))
    imagenet(tmp_path / 'in')
    prepare('imagenet2012', str(tmp_path), str(tmp_path / 'in'))
    labels = read_all(config('imagenet2012', tmp_path, image_size=8), 'test')[1]
    assert labels.tolist() == [1, 1, 999]


def test_imagenet_refusals(tmp_path):
    args = 'imagenet2012', str(tmp_path), str(tmp_path / 'in')
    (tmp_path / 'in').mkdir()
    refused('ILSVRC2012_img_train.tar', *args)
    imagenet(tmp_path / 'in', odd=[('../evil', b'x')])
    refused("inside member 'n01440764.tar'.*refused.*evil", *args)
    imagenet(tmp_path / 'in', inner_damage=True)
    refused("inside member 'n01440764.tar'.*damaged at member 'n01440764_0.JPEG'", *args)
    imagenet(tmp_path / 'in')
    rewrite(tmp_path / 'in/validation_labels.txt', b'cat\n')
    refused("line 1 is 'cat'", *args)
    rewrite(tmp_path / 'in/validation_labels.txt', b'ILSVRC2012_val_00000001.JPEG n01440764\n')
    refused('no label is known for .*00000002', *args)


def test_imagenet_parts():
    parts = imagenet2012._parts(list(range(10)), 4)
    assert sum(parts, []) == list(range(10)) and [len(p) for p in parts] == [2, 3, 2, 3]
    assert imagenet2012._parts([1, 2], 4) == [[1], [2]]


# image_folder


def folder(root, test='test'):
    for i, name in enumerate(('<b>bee</b>', 'ant', 'cow')):
        for j in range(4):
            kind = 'PNG' if j % 2 else 'JPEG'
            data = encoded(picture(10 * i + j, 30 + j, 40), kind)
            # a file name cannot hold '/', so the closing tag gets another character
            safe = name.replace('/', '_')
            rewrite(root / f'train/{safe}/{j}.{kind.lower()}', data)
            rewrite(root / f'{test}/{safe}/{j}.{kind.lower()}', data)
    rewrite(root / 'train/ant/notes.txt', b'not an image')
    rewrite(root / 'train/.hidden/x.png', b'')


@pytest.mark.parametrize(
    ('name', 'split'),
    [(n, 'test') for n in ('test', 'Test', 'testing', 'TESTING', 'eval', 'evaluation')]
    + [(n, 'validation') for n in ('val', 'Val', 'valid', 'VALIDATION', 'dev')],
)
def test_image_folder(tmp_path, name, split):
    cfg = config('image_folder', tmp_path, image_size=16)
    with pytest.raises(ip.DataError, match='only known once prepared.*--source=PATH'):
        ip.info(cfg)
    folder(tmp_path / 'in', name)
    line = prepare('image_folder', str(tmp_path), str(tmp_path / 'in'))
    assert ('no test split, so runs are scored on validation' in line) == (split == 'validation')
    info = ip.info(cfg)
    assert info.class_names == ('<b>bee<_b>', 'ant', 'cow') and info.num_classes == 3
    assert info.split_sizes == {'train': 12, split: 12} and info.scored == split
    images, labels = read_all(cfg, split)
    assert images.shape == (12, 16, 16, 3) and labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4


def test_image_folder_with_its_own_validation(tmp_path):
    folder(tmp_path / 'in')
    rewrite(tmp_path / 'in/val/ant/x.png', encoded(picture(1), 'PNG'))
    prepare('image_folder', str(tmp_path), str(tmp_path / 'in'))
    cfg = config('image_folder', tmp_path, image_size=16, validation_fraction=0.5)
    assert ip.info(cfg).split_sizes == {'train': 12, 'validation': 1, 'test': 12}


def test_image_folder_refusals(tmp_path):
    args = 'image_folder', str(tmp_path), str(tmp_path / 'in')
    (tmp_path / 'in').mkdir()
    refused('no folder train/', *args)
    (tmp_path / 'in/train').mkdir()
    refused('no class folders', *args)
    (tmp_path / 'in/train/ant').mkdir()
    refused('train/ant holds no images', *args)
    rewrite(tmp_path / 'in/train/ant/photo.heic', b'text')
    refused(r'no images that can be read \(but train/ant/photo.heic\)', *args)
    (tmp_path / 'in/train/ant/photo.heic').unlink()
    folder(tmp_path / 'in')
    rewrite(tmp_path / 'in/test/dog/x.png', b'')
    refused('test/dog: train/ has no class', *args)
    rewrite(tmp_path / 'in/test/Ant/x.png', b'')
    refused("test/Ant: train/ has no class of this name. Did you mean 'ant'?", *args)
    (tmp_path / 'in/Testing').mkdir()
    refused('both Testing/ and test/ for test', *args)


@pytest.mark.parametrize('name', ['train', 'Train', 'TRAINING'])
def test_a_folder_with_training_images_alone(tmp_path, name):
    folder(tmp_path / 'in')
    shutil.rmtree(tmp_path / 'in/test')
    (tmp_path / 'in/train').rename(tmp_path / 'in/unnamed')
    (tmp_path / 'in/unnamed').rename(tmp_path / 'in' / name)
    line = prepare('image_folder', str(tmp_path), str(tmp_path / 'in'))
    assert 'scored on the part of train held out for it' in line
    info = ip.info(config('image_folder', tmp_path, image_size=16, validation_fraction=0.25))
    assert info.split_sizes == {'train': 9, 'validation': 3} and info.scored == 'validation'
    refused(
        r'no folder train/ \(it has: .*\)',
        'image_folder',
        str(tmp_path / 'x'),
        f'{tmp_path}/in/{name}',
    )


def test_images_below_a_class_are_read_and_all_else_is_named(tmp_path):
    """At any depth, of any ending, also through links; nothing is lost without a word."""
    data = encoded(picture(1), 'PNG')
    for name in (
        'b/direct.png',
        'b/c/below.JFIF',
        'b/c/d/deep.image',
        'b/.hidden/no.png',
        '.no/a.png',
    ):
        rewrite(tmp_path / 'in/train' / name, data)
    rewrite(tmp_path / 'elsewhere/linked.png', data)
    (tmp_path / 'in/train/b/link').symlink_to(tmp_path / 'elsewhere')
    (tmp_path / 'in/train/b/again').symlink_to('c')
    (tmp_path / 'in/train/b/c/up').symlink_to('../../..')
    (tmp_path / 'in/train/b/gone').symlink_to('nowhere')
    (tmp_path / 'in/train/root').symlink_to('..')
    for name in ('train/stray.jpg', 'train/list.csv', 'train/b/notes.txt', 'Extra/a.png', 'a.png'):
        rewrite(tmp_path / 'in' / name, b'text')
    line = prepare('image_folder', str(tmp_path), str(tmp_path / 'in'))
    stored = Reader(tmp_path / 'image_folder/1.0.0', 'train', 3, 2, cache=False).read(range(4))
    names = 'c/below.JFIF', 'c/d/deep.image', 'direct.png', 'link/linked.png'
    assert [item.key for item in stored] == [f'train/b/{name}' for name in names]
    for part in (
        'WARNING: 1 folder is left out, not named like a split (train, test, val',
        ', or a usual variant): Extra/.',
        ', or a usual variant): a.png.',
        '2 files are left out, not in the folder of a class: train/list.csv, train/stray.jpg.',
        '1 file is left out, not an image that can be decoded: train/b/notes.txt.',
        'read already: train/b/c/up/, train/b/again/.',
        '1 folder is left out, it is a link to a folder above: train/root/.',
        '1 file is left out, it is a link to a file that does not exist: train/b/gone.',
        "there is one class, 'b'",
    ):
        assert part in line, (part, line)
    assert '.hidden' not in line and '.no' not in line


def test_a_set_keeps_its_source(tmp_path):
    """Preparing again from elsewhere into the same folder names both places."""
    folder(tmp_path / 'in')
    shutil.copytree(tmp_path / 'in', tmp_path / 'other')
    (tmp_path / 'link').symlink_to('in')
    args = 'image_folder', str(tmp_path / 'd')
    prepare(*args, str(tmp_path / 'in'))
    for same in ('in', 'link', 'other/../in', ''):
        source = str(tmp_path / same) if same else ''
        assert f'already prepared from {tmp_path}/in: train 12' in prepare(*args, source)
    shutil.rmtree(tmp_path / 'in')
    assert 'already prepared' in prepare(*args, str(tmp_path / 'in'))
    refused(
        f'already prepared from {tmp_path}/in, not from {tmp_path}/other',
        *args,
        str(tmp_path / 'other'),
    )
    refused(f'not from {tmp_path}/gone', *args, str(tmp_path / 'gone'))
    prepare(*args, str(tmp_path / 'other'), overwrite=True)
    assert f'already prepared from {tmp_path}/other' in prepare(*args)


# a set that tfds itself prepared


def test_stock_set_without_names_of_images(tmp_path):
    import tensorflow_datasets as tfds

    images = {'train': [picture(i, 32, 32) for i in range(3)], 'test': [picture(9, 32, 32)]}

    class Stock(tfds.core.ShardBasedBuilder, skip_registration=True):
        """Stores images as the cifar10 of tfds does."""

        name = 'cifar10'
        VERSION = tfds.core.Version('3.0.2')

        def _info(self):
            names = find('cifar10').class_names
            features = {
                'id': tfds.features.Text(),
                'image': tfds.features.Image(shape=(32, 32, 3)),
                'label': tfds.features.ClassLabel(names=list(names)),
            }
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _shard_iterators_per_split(self, dl_manager):
            def shard(split):
                for i, image in enumerate(images[split]):
                    yield i, {'id': str(i), 'image': encoded(image, 'PNG'), 'label': i}

            return {split: [lambda s=split: shard(s)] for split in images}

    Stock(data_dir=tmp_path, file_format='array_record').download_and_prepare()
    cfg = config('cifar10', tmp_path)
    read, labels = read_all(cfg, 'train')
    np.testing.assert_array_equal(read, images['train'])
    assert labels.tolist() == [0, 1, 2]
    assert ip.info(cfg).class_names[3] == 'cat'
