"""Measures what a config computes: FLOPs by block, parameters and leverages.

The numbers come from traced programs; nothing runs. FLOPs are per image, in the forward pass of
training: 2 per multiply-accumulate, matrix products and convolutions only. `flops` counts k active
experts; `flops_executed` counts the padded buffers.

`__all__` lists the public names. Importing this package does not import jax, so that the command
(`python -m moe_vision.leverage`) reports a mistake at once.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from moe_vision.leverage.types import Block, Capacity, Leverage, TrainingStep, Twin

if TYPE_CHECKING:
    from moe_vision.leverage.step import measure_step
    from moe_vision.leverage.trace import (
        measure,
        soft,
        tokens_per_image,
        trace_images,
        twins,
    )

__all__ = [
    'Block',
    'Capacity',
    'Leverage',
    'TrainingStep',
    'Twin',
    'measure',
    'measure_step',
    'soft',
    'tokens_per_image',
    'trace_images',
    'twins',
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    module = 'step' if name == 'measure_step' else 'trace'
    value = getattr(importlib.import_module(f'{__name__}.{module}'), name)
    globals()[name] = value
    return value
