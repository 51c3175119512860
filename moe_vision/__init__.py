"""Sparse mixture-of-experts for vision: routed layers, compute leverage, honest comparisons."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moe_vision.predict.model import load as load

__all__ = ['load']


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    from moe_vision.predict import model  # imports jax

    return model.load
