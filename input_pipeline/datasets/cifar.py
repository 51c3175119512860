"""Reads CIFAR-10 and CIFAR-100 from their published binary archives, never the pickled ones."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np

from input_pipeline import archives
from input_pipeline.builder import Builder, Contents, Example
from input_pipeline.decode import encode_png
from input_pipeline.types import DataError

_PIXELS = 3 * 32 * 32
_RECORDS_AT_ONCE = 1000


class _Cifar(Builder):
    """Reads the format of both: label bytes, then 1,024 bytes each of red, green and blue."""

    image_shape = (32, 32, 3)
    sizes = {'train': 50000, 'test': 10000}
    archive = ''
    folder = ''
    files: dict[str, tuple[str, ...]] = {}
    label_bytes = 1  # the last one is the label

    def open(self, source: Path) -> Contents:
        """Checks that the archive `source`, or the one in that folder, holds all files."""
        path = archives.pick(source, (self.archive,), self.wants)
        places = {}
        for name, start, size in archives.tar_places(path):
            pure = PurePosixPath(name)
            if pure.parent.name == self.folder:
                places[pure.name] = (name, start, size)
        required = [f for files in self.files.values() for f in files]
        if missing := [f for f in required if f not in places]:
            raise DataError(
                f'{path} lacks {self.folder}/{missing[0]}: this is not the binary version (the '
                f'Python version holds pickles, which are never read); wanted: {self.wants}.'
            )
        record_bytes = self.label_bytes + _PIXELS
        for file in required:
            name, _, size = places[file]
            if size % record_bytes:
                raise DataError(
                    f'{path}: member {name!r} has {size} bytes, which is not a whole number of '
                    f'{record_bytes}-byte records.'
                )

        def shard(file: str) -> Iterator[Example]:
            name, start, size = places[file]
            chunk = record_bytes * _RECORDS_AT_ONCE
            with archives.open_tar(path) as stream:
                for first in range(0, size, chunk):
                    count = min(chunk, size - first)
                    data = archives.read_at(stream, path, name, start + first, count)
                    rows = np.frombuffer(data, np.uint8).reshape(-1, record_bytes)
                    yield from self._examples(file, first // record_bytes, rows)

        return Contents(
            self.class_names,
            {s: [functools.partial(shard, f) for f in files] for s, files in self.files.items()},
        )

    def _examples(self, file: str, first: int, rows: np.ndarray) -> Iterator[Example]:
        images = rows[:, self.label_bytes :].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        for i, (image, label) in enumerate(zip(images, rows[:, self.label_bytes - 1], strict=True)):
            if label >= self.num_classes:
                raise DataError(
                    f'{file}: record {first + i} has label {label}; labels are 0 to '
                    f'{self.num_classes - 1}.'
                )
            yield f'{file} record {first + i}', encode_png(image), int(label)


class Cifar10(_Cifar):
    """32x32 photographs of 10 classes; 50,000 for training, 10,000 for the test."""

    name = 'cifar10'
    num_classes = 10
    class_names = (
        *('airplane', 'automobile', 'bird', 'cat', 'deer'),
        *('dog', 'frog', 'horse', 'ship', 'truck'),
    )
    mean, std = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
    archive = 'cifar-10-binary.tar.gz'
    folder = 'cifar-10-batches-bin'
    files = {
        'train': tuple(f'data_batch_{i}.bin' for i in range(1, 6)),
        'test': ('test_batch.bin',),
    }
    wants = f'{archive}, the binary version published at www.cs.toronto.edu/~kriz/cifar.html'


class Cifar100(_Cifar):
    """32x32 photographs of 100 classes; 50,000 for training, 10,000 for the test."""

    name = 'cifar100'
    num_classes = 100
    class_names = tuple(
        """apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus
        butterfly camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch
        crab crocodile cup dinosaur dolphin elephant flatfish forest fox girl hamster house
        kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle
        mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree
        plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew
        skunk skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank
        telephone television tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf
        woman worm""".split()
    )
    mean, std = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)
    archive = 'cifar-100-binary.tar.gz'
    folder = 'cifar-100-binary'
    files = {'train': ('train.bin',), 'test': ('test.bin',)}
    label_bytes = 2  # coarse, fine
    wants = f'{archive}, the binary version published at www.cs.toronto.edu/~kriz/cifar.html'
