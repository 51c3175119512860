"""Image data sets for training and exact evaluation, without TensorFlow.

`__all__` lists the public names. Importing this package does not import jax, tfds or grain:
the modules that need them load on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from input_pipeline.registry import DATASETS
from input_pipeline.types import DataError, DatasetConfig, DatasetInfo, scored_split

if TYPE_CHECKING:
    from input_pipeline.builder import Builder, Contents
    from input_pipeline.checks import check_images, check_kept
    from input_pipeline.loader import (
        Batches,
        evaluation_batches,
        evaluation_image,
        evaluation_items,
        evaluation_steps,
        train_batches,
    )
    from input_pipeline.metadata import info, mean_std
    from input_pipeline.storage import require

__all__ = [
    'DATASETS',
    'Batches',
    'Builder',
    'Contents',
    'DataError',
    'DatasetConfig',
    'DatasetInfo',
    'check_images',
    'check_kept',
    'evaluation_batches',
    'evaluation_image',
    'evaluation_items',
    'evaluation_steps',
    'info',
    'mean_std',
    'require',
    'scored_split',
    'train_batches',
]

_MODULES = {
    'Batches': 'loader',
    'Builder': 'builder',
    'Contents': 'builder',
    'check_images': 'checks',
    'check_kept': 'checks',
    'evaluation_batches': 'loader',
    'evaluation_image': 'loader',
    'evaluation_items': 'loader',
    'evaluation_steps': 'loader',
    'info': 'metadata',
    'mean_std': 'metadata',
    'require': 'storage',
    'train_batches': 'loader',
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    value = getattr(importlib.import_module(f'{__name__}.{_MODULES[name]}'), name)
    globals()[name] = value
    return value
