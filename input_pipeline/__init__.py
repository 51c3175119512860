"""Image data sets for training and exact evaluation, without TensorFlow.

What a caller uses is listed in `__all__`. Importing this package imports neither
jax, tfds nor grain: what needs them is loaded when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from input_pipeline.registry import DATASETS
from input_pipeline.types import DataError, DatasetConfig, DatasetInfo

if TYPE_CHECKING:
    from input_pipeline.builder import Builder, Contents
    from input_pipeline.loader import Batches, evaluation_batches, evaluation_image, train_batches
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
    'evaluation_batches',
    'evaluation_image',
    'info',
    'mean_std',
    'require',
    'train_batches',
]

_HOME = {
    'Batches': 'loader',
    'Builder': 'builder',
    'Contents': 'builder',
    'evaluation_batches': 'loader',
    'evaluation_image': 'loader',
    'info': 'metadata',
    'mean_std': 'metadata',
    'require': 'storage',
    'train_batches': 'loader',
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    value = getattr(importlib.import_module(f'{__name__}.{_HOME[name]}'), name)
    globals()[name] = value
    return value
