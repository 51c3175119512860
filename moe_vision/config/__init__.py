"""Configs: the keys, the checks, and the command lines that override them.

>>> import moe_vision
>>> config = moe_vision.config.example('digits_k2')
>>> config.train.epochs = 2.0
>>> moe_vision.train(config, 'runs/first')
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ml_collections import ConfigDict


def defaults() -> 'ConfigDict':
    """Every common key with its default; `schema` says what each means."""
    from ml_collections import ConfigDict

    from moe_vision.config import schema

    return ConfigDict(schema.defaults())


def example(name: str) -> 'ConfigDict':
    """A config that ships with the package, to be changed and trained.

    Args:
      name: a file of `moe_vision/config/examples`, such as 'digits_k2'.

    Raises:
      UserError: there is no example of this name.
    """
    import importlib
    import pkgutil

    from moe_vision.common.errors import unknown
    from moe_vision.config import examples

    names = [module.name for module in pkgutil.iter_modules(examples.__path__)]
    if name not in names:
        raise unknown('example', name, names)
    return importlib.import_module(f'{examples.__name__}.{name}').get_config()
