"""Makes a package a function as well, so that `moe_vision.config` can be both."""

import inspect
import sys
import types
from collections.abc import Callable
from typing import Any


def called(name: str, function: Callable[..., Any]) -> None:
    """Calling the module of this name calls the function. Importing from it works as before.

    Python allows the class of a module to be replaced for such ends; see "Customizing module
    attribute access" in its language reference.
    """
    module, signature = sys.modules[name], inspect.signature(function)
    summary = (function.__doc__ or '').partition('\n')[0]

    class Called(types.ModuleType):
        __call__ = staticmethod(function)
        __signature__ = signature  # shown by help in notebooks

        def __repr__(self) -> str:
            return f'<package and function {name}{signature}: {summary}>'

    module.__class__ = Called
