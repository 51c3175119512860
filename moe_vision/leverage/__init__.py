"""What a config computes: FLOPs by block, parameters and leverages, from traced programs.

FLOPs are per image, forward, in training: 2 per multiply-accumulate, products and convolutions
only. `flops` is what k active experts need; `flops_executed` what the padded buffers run.

What a caller uses is listed in `__all__`. Importing this package does not import jax: the command
(`python -m moe_vision.leverage`) answers a mistake at once.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from moe_vision.leverage.types import Block, Capacity, Leverage, Twin

if TYPE_CHECKING:
    from moe_vision.leverage.trace import (
        measure,
        soft,
        tokens_per_image,
        trace_images,
        twins,
    )

__all__ = ['Block', 'Capacity', 'Leverage', 'Twin', 'measure', 'soft',
           'tokens_per_image', 'trace_images', 'twins']


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    value = getattr(importlib.import_module(f'{__name__}.trace'), name)
    globals()[name] = value
    return value
