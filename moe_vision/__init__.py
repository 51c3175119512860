"""Sparse mixture-of-experts for vision: routed layers, compute leverage, honest comparisons.

    >>> import moe_vision
    >>> moe_vision.train(moe_vision.config.example('digits_k2'), 'runs/digits_k2')
    >>> model = moe_vision.load('runs/digits_k2')
    >>> model(images).probabilities  # images: uint8 [B, H, W, C]

Importing this package imports neither jax nor a model.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from moe_vision import config as config

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from moe_vision.predict.model import Model

__all__ = ['config', 'load', 'train']


def train(config: 'ConfigDict', workdir: str) -> dict[str, Any]:
    """Checks a config and trains it in a folder, as `main.py` does; continues what is there.

    Args:
      config: of `moe_vision.config.example`, or of a config file's `get_config`.
      workdir: folder of the run.

    Returns:
      What `result.json` holds.

    Raises:
      UserError, input_pipeline.DataError: the first mistake, in one line, before anything runs.
    """
    from moe_vision.common.paths import expanded
    from moe_vision.config import rules
    from moe_vision.config.check import check
    from moe_vision.training import continuing, loop

    checked, workdir = check(config), expanded(workdir)
    continuing.check(workdir, checked, rules.check_data(checked, reads=True))
    return loop.train(checked, workdir)


def load(workdir: str, best: bool = False, trust: Iterable[str] = ()) -> 'Model':
    """The network of a run as a function of images; see `moe_vision.predict.model.load`."""
    from moe_vision.predict import model

    return model.load(workdir, best, trust)
