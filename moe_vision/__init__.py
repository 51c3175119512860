"""Sparse mixture-of-experts for vision: routed layers, compute leverage, honest comparisons.

    >>> import moe_vision as mv
    >>> run = mv.train(mv.config('digits_k2'), 'runs/digits_k2', train__epochs=5.0)
    >>> run.history['loss'], run.result['test_accuracy'], run.plot()
    >>> model = mv.load('runs/digits_k2')
    >>> model(images).probabilities  # images: uint8 [B, H, W, C]

`config` and `leverage` are packages, and functions as well. Importing this package imports neither
jax nor a model.
"""

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from moe_vision import config as config
from moe_vision import leverage as leverage

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from moe_vision.in_python.run import Run as Run
    from moe_vision.predict.model import Model

__all__ = ['Run', 'config', 'leverage', 'load', 'summary', 'train']


def train(config: 'ConfigDict', workdir: str | os.PathLike[str], **overrides: Any) -> 'Run':
    """Checks a config and trains it in a folder, as `main.py` does; continues what is there.

    Args:
      config: of `moe_vision.config`, or of a config file's `get_config`. It stays as it is.
      workdir: folder of the run.
      overrides: keys with `__` for the dots (`train__epochs=5.0`, `model__moe__k=1`), or sections
        as dictionaries (`train={'epochs': 5.0}`).

    Raises:
      UserError, input_pipeline.DataError: the first mistake, in one line, before anything runs.
    """
    from moe_vision.common.paths import expanded
    from moe_vision.config import rules, source
    from moe_vision.config.check import check
    from moe_vision.in_python.run import Run
    from moe_vision.training import continuing, loop

    checked = check(source.changed(config, overrides))
    folder = expanded(os.fspath(workdir))
    rules.check_init(checked)
    continuing.check(folder, checked, rules.check_data(checked, reads=True))
    with rules.workdir(folder, create=True):
        loop.train(checked, folder)
    return Run(folder)


def load(workdir: str | os.PathLike[str], best: bool = False, trust: Iterable[str] = ()) -> 'Model':
    """The network of a run as a function of images; see `moe_vision.predict.model.load`."""
    from moe_vision.predict import model

    return model.load(os.fspath(workdir), best, trust)


def summary(config: 'ConfigDict', **overrides: Any) -> str:
    """What a config will train and what it costs, before anything runs; it shows as a table.

    Args:
      config, overrides: as `train` takes them.

    Raises:
      UserError, input_pipeline.DataError: as `train`.
    """
    from moe_vision.config import rules, source
    from moe_vision.config.check import check
    from moe_vision.training import preflight

    checked = check(source.changed(config, overrides))
    info = rules.check_data(checked, reads=False)
    rules.check_to_train(checked, info)
    return preflight.Text(preflight.described(checked, info))


def __getattr__(name: str) -> Any:
    if name == 'Run':
        from moe_vision.in_python.run import Run

        return Run
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__() -> list[str]:
    return [*__all__, '__doc__', '__file__', '__path__']
