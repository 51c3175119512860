"""Reads Fashion-MNIST, 70,000 gray 28x28 pictures of clothes, from its four idx files."""

from __future__ import annotations

import functools
import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from input_pipeline.builder import Builder, Contents, Example
from input_pipeline.decode import encode_png
from input_pipeline.types import DataError

_FILES = {
    'train': ('train-images-idx3-ubyte', 'train-labels-idx1-ubyte'),
    'test': ('t10k-images-idx3-ubyte', 't10k-labels-idx1-ubyte'),
}


def read_idx(path: Path) -> np.ndarray:
    """Returns the uint8 array of an idx file (gzipped or not), in the shape its header states.

    Raises:
        DataError: it is not an idx file of bytes, or its length contradicts its header.
    """
    try:
        raw = path.read_bytes()
        data = gzip.decompress(raw) if raw[:2] == b'\x1f\x8b' else raw
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f'{path} is damaged ({error}); download the file again.') from error
    rank = data[3] if len(data) > 3 else 0
    if data[:3] != b'\0\0\x08' or not 1 <= rank <= 4 or len(data) < 4 + 4 * rank:
        raise DataError(f'{path} is not an idx file of bytes (wrong header).')
    shape = tuple(np.frombuffer(data, '>u4', rank, 4).tolist())
    expected = 4 + 4 * rank + int(np.prod(shape, dtype=object))
    if len(data) != expected:
        raise DataError(
            f'{path} is damaged: its header gives the shape {shape}, which takes {expected} bytes, '
            f'but it has {len(data)}; download the file again.'
        )
    return np.frombuffer(data, np.uint8, offset=4 + 4 * rank).reshape(shape)


def _find(folder: Path, name: str, wants: str) -> Path:
    for path in (folder / f'{name}.gz', folder / name):
        if path.is_file():
            return path
    raise DataError(f'{folder} holds neither {name}.gz nor {name}; wanted: {wants}.')


class FashionMnist(Builder):
    """28x28 gray pictures of 10 kinds of clothes; 60,000 for training, 10,000 for the test."""

    name = 'fashion_mnist'
    num_classes = 10
    image_shape = (28, 28, 1)
    sizes = {'train': 60000, 'test': 10000}
    class_names = (
        'T-shirt/top',
        'Trouser',
        'Pullover',
        'Dress',
        'Coat',
        'Sandal',
        'Shirt',
        'Sneaker',
        'Bag',
        'Ankle boot',
    )
    # python -c "from input_pipeline.datasets.fashion_mnist import *; x = read_idx(Path(
    #            '/usr/share/datasets/fashion-mnist/train-images-idx3-ubyte.gz')) / 255;
    #            print(x.mean(), x.std())"
    mean = (0.2860,)
    std = (0.3530,)
    wants = (
        'the folder of the four files {train,t10k}-{images-idx3,labels-idx1}-ubyte[.gz], published '
        "at github.com/zalandoresearch/fashion-mnist and in Debian's package dataset-fashion-mnist"
    )
    places = ('/usr/share/datasets/fashion-mnist',)

    def open(self, source: Path) -> Contents:
        """Finds the four idx files in the folder `source`."""
        if not source.is_dir():
            raise DataError(f'{source} is not a folder; wanted: {self.wants}.')
        files = {s: [_find(source, f, self.wants) for f in names] for s, names in _FILES.items()}

        def shard(split: str) -> Iterator[Example]:
            images, labels = (read_idx(path) for path in files[split])
            if images.shape[1:] != (28, 28) or labels.shape != images.shape[:1]:
                raise DataError(
                    f'{files[split][0]} has shape {images.shape} and its labels {labels.shape}; '
                    'expected (N, 28, 28) and (N,).'
                )
            if labels.size and labels.max() > 9:
                raise DataError(f'{files[split][1]} holds label {labels.max()}; labels are 0 to 9.')
            for i, (image, label) in enumerate(zip(images, labels, strict=True)):
                yield f'{files[split][0].name} image {i}', encode_png(image[..., None]), int(label)

        return Contents(self.class_names, {s: [functools.partial(shard, s)] for s in _FILES})
