"""Reads the 1,797 handwritten 8x8 digits that come with scikit-learn (UCI optical digits)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from input_pipeline.builder import Builder, Contents, Example
from input_pipeline.decode import encode_png

_TEST_SIZE, _SPLIT_SEED = 360, 0


def arrays() -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Returns split -> (images uint8 [N, 8, 8, 1], labels int64 [N], rows int64 [N]).

    A pixel v in 0..16 becomes round(v * 255 / 16). The split is stratified with a fixed seed.
    `rows` are the indices of the images in scikit-learn's own array.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    pixels, labels = map(np.asarray, load_digits(return_X_y=True))
    images = np.round(pixels.reshape(-1, 8, 8, 1) * 255 / 16).astype(np.uint8)
    everything = np.arange(len(images))
    train, test = train_test_split(
        everything, test_size=_TEST_SIZE, stratify=labels, random_state=_SPLIT_SEED
    )
    splits = {'train': np.asarray(train), 'test': np.asarray(test)}
    return {split: (images[rows], labels[rows], rows) for split, rows in splits.items()}


class Digits(Builder):
    """8x8 gray digits that come with scikit-learn; prepared on first use."""

    name = 'digits'
    num_classes = 10
    image_shape = (8, 8, 1)
    sizes = {'train': 1437, 'test': 360}
    class_names = tuple('0123456789')
    # python -c "from input_pipeline.datasets.digits import arrays; x = arrays()['train'][0] / 255;
    #            print(x.mean(), x.std())"
    mean = (0.3054,)
    std = (0.3760,)
    embedded = True
    wants = 'nothing: the images come with scikit-learn'

    def open(self, source: Path) -> Contents:
        """Ignores `source`: the images come with scikit-learn."""
        del source
        splits: dict[str, Sequence] = {}
        for split, (images, labels, rows) in arrays().items():

            def shard(images=images, labels=labels, rows=rows) -> Iterator[Example]:
                for image, label, row in zip(images, labels, rows, strict=True):
                    yield f'digit {row}', encode_png(image), int(label)

            splits[split] = [shard]
        return Contents(self.class_names, splits)
