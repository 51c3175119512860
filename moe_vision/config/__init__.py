"""Configs: the keys, the checks, and the command lines that override them.

The package is a function, too: `moe_vision.config('digits_k2')` is a config.

>>> import moe_vision
>>> config = moe_vision.config('digits_k2')
>>> config.train.epochs = 2.0
>>> moe_vision.train(config, 'runs/first')
"""

from typing import TYPE_CHECKING, Any

from moe_vision.common.called import called

if TYPE_CHECKING:
    from ml_collections import ConfigDict


def defaults() -> 'ConfigDict':
    """Every common key with its default; `schema` says what each means."""
    from ml_collections import ConfigDict

    from moe_vision.config import schema

    return ConfigDict(schema.defaults())


def config(name: str, **overrides: Any) -> 'ConfigDict':
    """A config that ships with the package, or that of a file, to be changed and trained.

    Args:
      name: a file of `moe_vision/config/examples`, such as 'digits_k2', or a path: 'mine.py', or
        'mine.py:variant'.
      overrides: keys with `__` for the dots, as `moe_vision.train` takes them.

    Raises:
      UserError: there is no such config or key.
    """
    import importlib
    import pkgutil

    from moe_vision.common.errors import UserError, nearest
    from moe_vision.config import examples, source

    names = [module.name for module in pkgutil.iter_modules(examples.__path__)]
    if name in names:
        made = importlib.import_module(f'{examples.__name__}.{name}').get_config()
    elif name.partition(':')[0].endswith('.py'):
        made = source.load(name)
    else:
        raise UserError(
            f"no config '{name}' ships with the package.{nearest(name, names)} Allowed: "
            f"{', '.join(sorted(names))}, or the path of a file, such as 'configs/{name}.py'."
        )
    return source.changed(made, overrides).lock()


called(__name__, config)
