"""Lists the data sets. To add one, write a file in `datasets/` and add a line here."""

from __future__ import annotations

import functools
import importlib
import re
from typing import TYPE_CHECKING

from input_pipeline.types import DataError, nearest

if TYPE_CHECKING:
    from input_pipeline.builder import Builder

DATASETS: dict[str, str] = {
    'digits': 'input_pipeline.datasets.digits:Digits',
    'fashion_mnist': 'input_pipeline.datasets.fashion_mnist:FashionMnist',
    'cifar10': 'input_pipeline.datasets.cifar:Cifar10',
    'cifar100': 'input_pipeline.datasets.cifar:Cifar100',
    'tiny_imagenet': 'input_pipeline.datasets.tiny_imagenet:TinyImagenet',
    'imagenet2012': 'input_pipeline.datasets.imagenet2012:Imagenet2012',
    'image_folder': 'input_pipeline.datasets.image_folder:ImageFolder',
}

_PATH = re.compile(r'[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*')


def is_path(name: str) -> bool:
    """Whether a name has the form 'package.module:Class'. No other name is ever imported."""
    return _PATH.fullmatch(name) is not None


@functools.cache
def find(name: str) -> Builder:
    """Returns the builder called `name`: a key of DATASETS or 'package.module:Builder'.

    Raises:
        DataError: there is no such name, module or class, or the class is not a `Builder`.
    """
    from input_pipeline.builder import Builder

    path = DATASETS.get(name, name)
    if not is_path(path):
        raise DataError(
            f"unknown data set '{name}'; known: {', '.join(DATASETS)}, or 'package.module:Builder' "
            f'of your own.{nearest(name, DATASETS)}'
        )
    module, _, attribute = path.partition(':')
    try:
        cls = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise DataError(
            f"data set '{name}' cannot be imported: {error}. If it is your own, put the folder "
            'that holds its module on PYTHONPATH.'
        ) from error
    if not (isinstance(cls, type) and issubclass(cls, Builder)):
        raise DataError(f"data set '{name}' is not a subclass of input_pipeline.Builder.")
    return cls()
