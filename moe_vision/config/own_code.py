"""Imports the user's own methods by their dotted paths, and says what is wrong with them."""

import dataclasses
import importlib
import sys
import traceback
import typing
from typing import Any

from input_pipeline.registry import is_path
from moe_vision.common.errors import UserError, nearest
from moe_vision.config.method_args import NoArgs

_METHODS = {  # what the user's own class must be, by kind; imported for such classes alone
    'router': 'moe_vision.routing.router:Router',
    'expert': 'moe_vision.layers.experts:Expert',
    'backbone': 'flax.linen:Module',
    'transform': 'moe_vision.transforms.types:Transform',
}
_BASES = _METHODS | {'tracker': 'moe_vision.run_folder.trackers:Tracker'}


def kind_of(name: str) -> str:
    """The kind of the user's own method `package.module:Class`, by what it derives from.

    Raises UserError: there is no such module or class, or it is of no kind.
    """
    found = load(name)
    for kind, base in _METHODS.items():
        if isinstance(found, type) and issubclass(found, load(base)):
            return kind
    if isinstance(found, type) or not callable(found):
        bases = ', '.join(b.replace(':', '.') for b in _METHODS.values())
        raise UserError(
            f"'{name}' is {repr(found)[:80]}; a method is a function (a loss) or a subclass of one "
            f'of {bases}.'
        )
    return 'loss'


def check_kind(kind: str, name: str, found: Any) -> None:
    """Raises UserError unless what `name` names can be this kind of method."""
    if kind in _BASES:
        base = load(_BASES[kind])
        if not (isinstance(found, type) and issubclass(found, base)):
            told = (
                f'a class of its own, {found.__name__}' if isinstance(found, type) else repr(found)
            )
            raise UserError(
                f"{kind} '{name}' is {told[:80]}; it must be a subclass of "
                f'{base.__module__}.{base.__name__}.'
            )
    elif not callable(found):
        raise UserError(f"{kind} '{name}' is {repr(found)[:80]}; it must be a function.")
    args = getattr(found, 'Args', NoArgs)
    if not (isinstance(args, type) and dataclasses.is_dataclass(args)):
        raise UserError(
            f"{kind} '{name}': Args is no dataclass; write @dataclasses.dataclass(frozen=True) "
            'above it.'
        )
    try:
        typing.get_type_hints(args)
    except (NameError, TypeError, AttributeError) as e:
        raise UserError(f"{kind} '{name}': an annotation of Args is wrong: {e}.") from e


def load(path: str) -> Any:
    """Imports the object that 'module:Class' names.

    Raises UserError: it is not written so, or there is no such module or object.
    """
    module, _, name = path.partition(':')
    if not is_path(path):
        raise UserError(f"'{path}' must be written 'package.module:Class'.")
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as e:
        if not f'{module}.'.startswith(f'{e.name}.'):
            raise UserError(f"'{path}' needs the module '{e.name}', which there is not.") from e
        raise UserError(
            f"'{path}': there is no module '{e.name}'. Put the folder that holds "
            f"'{module.partition('.')[0]}' on PYTHONPATH: PYTHONPATH=FOLDER python ..."
        ) from e
    except UserError:
        raise
    except Exception as e:  # whatever a user's module does
        raise UserError(f"'{path}' cannot be imported: {told(e, module)}") from e
    if not hasattr(found, name):
        raise UserError(f"'{path}': module '{module}' has no '{name}'.{nearest(name, dir(found))}")
    return getattr(found, name)


def told(error: BaseException, module: str) -> str:
    """What went wrong in a user's module, and where: `ValueError: no (my/routers.py, line 3).`"""
    file = getattr(sys.modules.get(module), '__file__', None) or getattr(error, 'filename', None)
    frames = traceback.extract_tb(error.__traceback__)
    at = [f for f in frames if f.filename == file] or [
        f for f in frames if 'importlib' not in f.filename
    ]
    where = ''
    if isinstance(error, SyntaxError):
        where = f' ({error.filename}, line {error.lineno})'
    elif at:
        where = f' ({at[-1].filename}, line {at[-1].lineno})'
    message = str(getattr(error, 'msg', error)).partition('\n')[0][:300].rstrip('.')
    return f'{type(error).__name__}: {message}{where}.'
