"""Measures what a config computes: FLOPs by block, parameters and leverages.

The numbers come from traced programs; nothing runs. FLOPs are per image, in the forward pass of
training: 2 per multiply-accumulate, matrix products and convolutions only. `flops` counts k active
experts; `flops_executed` counts the padded buffers.

The package is a function, too: `moe_vision.leverage(moe_vision.config('digits_k2')).rho_place`.
`__all__` lists the public names. Importing this package does not import jax, so that the command
(`python -m moe_vision.leverage`) reports a mistake at once.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from moe_vision.common.called import called
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


def leverage(config: Any, **overrides: Any) -> Leverage:
    """Counts what a config computes and what share of it is routed; nothing runs.

    Args:
      config, overrides: a ConfigDict and keys, as `moe_vision.train` takes them.

    Raises:
      UserError, input_pipeline.DataError: the first mistake in the config, in one line.
    """
    from moe_vision.config import rules, source
    from moe_vision.config.check import check
    from moe_vision.leverage.trace import measure

    checked = check(source.changed(config, overrides))
    return measure(checked, rules.check_data(checked, reads=False))


called(__name__, leverage)
