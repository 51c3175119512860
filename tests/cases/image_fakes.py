"""Makes small files in the published layouts, and data sets of a user's own."""

import io
import tarfile
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from input_pipeline import Builder, Contents, DatasetConfig
from input_pipeline.decode import encode_png


def config(name, data_dir, **changes):
    values = {
        'validation_fraction': 0.0,
        'image_size': 0,
        'augment': 'none',
        'workers': 0,
        'cache': False,
        'train_images': 0,
        'resident': False,
        'randaugment_layers': 0,
        'randaugment_magnitude': 9.0,
    }
    return DatasetConfig(name=name, data_dir=str(data_dir), **(values | changes))


def picture(seed, height=40, width=50, channels=3):
    """A smooth random picture, so that JPEG changes it little."""
    small = np.random.default_rng(seed).integers(0, 256, (3, 4, channels), np.uint8)
    return cv2.resize(small, (width, height)).reshape(height, width, channels)


def encoded(image, kind='JPEG', mode='RGB'):
    file = io.BytesIO()
    options = {'quality': 95, 'subsampling': 0} if kind == 'JPEG' and mode == 'RGB' else {}
    Image.fromarray(image).convert(mode).save(file, kind, **options)
    return file.getvalue()


def tar_bytes(files, mode='w'):
    """A tar of (name, bytes or TarInfo) pairs."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as tar:
        for name, data in files:
            member = data if isinstance(data, tarfile.TarInfo) else tarfile.TarInfo(name)
            if isinstance(data, bytes):
                member.size = len(data)
            tar.addfile(member, io.BytesIO(data) if isinstance(data, bytes) else None)
    return file.getvalue()


def rewrite(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


WNIDS = ('n01440764', 'n01443537', 'n15075141')  # labels 0, 1 and 999


def imagenet(folder, *, odd=(), inner_damage=False):
    """Writes small versions of ImageNet's two archives; returns the training images by class.

    There are two training images of each class, some as CMYK and PNG, and three for validation.
    """
    images = {w: [picture(10 * i + j) for j in range(2)] for i, w in enumerate(WNIDS)}
    outer = []
    for wnid in WNIDS:
        data = [encoded(image) for image in images[wnid]]
        if wnid == WNIDS[1]:
            data[0] = encoded(images[wnid][0], mode='CMYK')
            data[1] = encoded(images[wnid][1], 'PNG')
        inner = tar_bytes([(f'{wnid}_{j}.JPEG', d) for j, d in enumerate(data)] + list(odd))
        outer.append((f'{wnid}.tar', inner[:900] if inner_damage else inner))
    rewrite(folder / 'ILSVRC2012_img_train.tar', tar_bytes(outer))
    val = [(f'ILSVRC2012_val_{i:08d}.JPEG', encoded(picture(90 + i))) for i in (2, 1, 3)]
    rewrite(folder / 'ILSVRC2012_img_val.tar', tar_bytes(val))
    return images


class Numbered(Builder):
    """23 gray 4x4 images to train and 10 to test; image i is filled with the value i."""

    name = 'numbered'
    num_classes = 3
    image_shape = (4, 4, 1)
    sizes = {'train': 23, 'test': 10}
    embedded = True

    def open(self, source):
        def shard(numbers):
            for i in numbers:
                yield f'number {i}', encode_png(np.full((4, 4, 1), i, np.uint8)), i % 3

        return Contents(
            ('a', 'b', 'c'),
            {
                'train': [lambda: shard(range(10)), lambda: shard(range(10, 23))],
                'test': [lambda: shard(range(10))],
            },
        )


class Broken(Numbered):
    """Like `Numbered`, but image 3 of each split cannot be decoded."""

    name = 'broken'

    def open(self, source):
        whole = super().open(source)

        def damage(shard):
            for key, data, label in shard():
                yield key, (b'no image' if key == 'number 3' else data), label

        return Contents(
            whole.class_names,
            {k: [lambda s=s: damage(s) for s in shards] for k, shards in whole.splits.items()},
        )


class Unlisted(Numbered):
    """A set whose source may change unseen: it lists no files."""

    name = 'unlisted'
    num_classes, sizes = 0, {}
    embedded = False
    wants = 'a folder with a file `first`'

    def open(self, source):
        first = int((source / 'first').read_text())

        def shard():
            for i in range(5):
                picture = np.full((4, 4, 1), (first + i) % 256, np.uint8)
                yield f'number {first + i}', encode_png(picture), first + i

        return Contents(('a', 'b', 'c', 'd', 'e'), {'train': [shard, shard], 'test': [shard]})
