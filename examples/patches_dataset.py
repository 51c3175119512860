"""A data set of your own: patches of the two photographs that come with scikit-learn.

The task is to say which photograph a 16x16 patch comes from. The left half of each is for training,
the right half for the test.

    python -m input_pipeline.prepare --dataset=examples.patches_dataset:Patches --data_dir=D
    python main.py --config=configs/digits_k2.py --workdir=W --config.dataset.data_dir=D \
        --config.dataset.name=examples.patches_dataset:Patches --config.dataset.augment=none
"""

from collections.abc import Iterator
from pathlib import Path

from input_pipeline.builder import Builder, Contents, Example
from input_pipeline.decode import encode_png

_SIDE = 16


class Patches(Builder):
    name = 'patches'
    num_classes = 2
    image_shape = (_SIDE, _SIDE, 3)
    sizes = {'train': 1040, 'test': 1040}
    class_names = ('china', 'flower')
    embedded = True
    wants = 'nothing: the photographs come with scikit-learn'

    def open(self, source: Path) -> Contents:
        from sklearn.datasets import load_sample_images

        photographs = load_sample_images().images

        def half(left: bool) -> Iterator[Example]:
            for label, image in enumerate(photographs):
                rows, columns = image.shape[0] // _SIDE, image.shape[1] // _SIDE
                for r in range(rows):
                    for c in range(columns // 2) if left else range(columns // 2, columns):
                        patch = image[r * _SIDE : (r + 1) * _SIDE, c * _SIDE : (c + 1) * _SIDE]
                        yield f'{self.class_names[label]} {r} {c}', encode_png(patch), label

        return Contents(
            self.class_names, {'train': [lambda: half(True)], 'test': [lambda: half(False)]}
        )
