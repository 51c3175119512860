"""Imports the user's own methods by their dotted paths, and says what is wrong with them."""

import dataclasses
import importlib
import inspect
import re
import sys
import sysconfig
import traceback
import typing
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from input_pipeline.registry import is_path
from moe_vision.common.errors import UserError, nearest
from moe_vision.common.paths import ROOT
from moe_vision.config.method_args import NoArgs

_METHODS = {  # what the user's own class must be, by kind; imported for such classes alone
    'router': 'moe_vision.routing.router:Router',
    'expert': 'moe_vision.layers.experts:Expert',
    'backbone': 'flax.linen:Module',
    'transform': 'moe_vision.transforms.types:Transform',
}
# What to do about errors that do not say so.
_REMEDIES = {
    'TracerBoolConversionError': 'write jnp.where(condition, a, b) where values decide',
    'TracerIntegerConversionError': 'take sizes from x.shape, and not from values',
    'ConcretizationTypeError': 'take sizes from x.shape, and not from values',
    'UnexpectedTracerError': 'keep no array on self: return it, or make it state',
    "'NoArgs' object has no attribute": 'declare it in a frozen dataclass Args of the class',
    "'_DimExpr' object": 'the export does not know how many groups there are: take x.shape for '
    'len(x), and jax.vmap for a loop over groups',
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
    for field in ('needs', 'supplies', 'ignores'):
        if isinstance(getattr(found, field, ()), str):
            raise UserError(
                f"{kind} '{name}': {field} is '{getattr(found, field)}'; write a tuple, "
                f"('{getattr(found, field)}',)."
            )
    args = getattr(found, 'Args', NoArgs)
    if not (isinstance(args, type) and dataclasses.is_dataclass(args)):
        raise UserError(
            f"{kind} '{name}': Args is no dataclass; write @dataclasses.dataclass(frozen=True) "
            'above it.'
        )
    if not args.__dataclass_params__.frozen:
        raise UserError(
            f"{kind} '{name}': Args can be changed; write @dataclasses.dataclass(frozen=True) "
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
    """What went wrong in a user's module, where, and if that is known, what to do.

    Such as `ValueError: no (my/routers.py, line 3).`
    """
    frames = traceback.extract_tb(error.__traceback__)
    file = file_of(module) or getattr(error, 'filename', None)
    at = [f for f in frames if f.filename == file] or [
        f for f in frames if not _is_installed(f.filename)
    ]
    where = ''
    if isinstance(error, SyntaxError):
        where = f' ({error.filename}, line {error.lineno})'
    elif at:
        where = f' ({at[-1].filename}, line {at[-1].lineno})'
    message = str(getattr(error, 'msg', error)).partition('\n')[0][:300].rstrip('.')
    what = f'{type(error).__name__}: {message}'
    remedy = next((f'; {do}' for sign, do in _REMEDIES.items() if sign in what), '')
    return f'{what}{where}{remedy}.'


def file_of(module: str) -> str | None:
    """The file of a module that was imported."""
    return getattr(sys.modules.get(module), '__file__', None)


def blamed(error: BaseException, paths: Iterable[str]) -> list[str]:
    """Which of the user's own methods raised an error, or cannot be called as they are called.

    That is the method in whose file the innermost frame lies that lies in one of them; of several
    in one file the one to which the frame belongs. Where no frame does, but one is in code of the
    user's that theirs imports, it may be any of them. [] if the error is not theirs.
    """
    paths = list(paths)
    for frame, _ in reversed(list(traceback.walk_tb(error.__traceback__))):
        code = frame.f_code
        near = [p for p in paths if file_of(p.partition(':')[0]) == code.co_filename]
        exact = [p for p in near if code.co_qualname.split('.')[0] in _names(p)]
        if near:
            return exact or near
    for path in paths:
        leaked = f'{file_of(path.partition(":")[0])}:' in str(error)  # as jax tells of tracers
        if leaked or _called(error, path):
            return [path]
    frames = traceback.extract_tb(error.__traceback__)
    return paths if any(not _is_installed(f.filename) for f in frames) else []


def due(error: BaseException, path: str) -> str:
    """How the method `path` is called, if the error is that it cannot be called so; else ''."""
    found, name = load(path), _called(error, path)
    if not name:
        return ''
    if not isinstance(found, type):
        form = '(view, key)' if getattr(found, 'of_layer', False) else '(routing, context, view)'
        return f'; it is called as {name}{form}'
    bases = (vars(c).get(name) for c in found.__mro__[1:] if c.__module__.startswith('moe_vision.'))
    base = next((b for b in bases if inspect.isfunction(b)), None)
    given = ', '.join(inspect.signature(base).parameters) if base else ''
    return f'; it is called as {name}({given})' if base else ''


def _called(error: BaseException, path: str) -> str:
    """The name of the function of a method that cannot be called as it is called, or ''."""
    called = re.match(r'(?:(\w+)\.)?(\w+)\(\) ', str(error))
    wrong = isinstance(error, TypeError) and called and _names(path) & set(called.groups())
    return called[2] if called and wrong else ''


def _names(path: str) -> set[str]:
    """The names of a method, and of the classes of the user's that it derives from."""
    found = load(path)
    above = found.__mro__ if isinstance(found, type) else ()
    own = {c.__name__ for c in above if not c.__module__.startswith(('moe_vision.', 'flax.'))}
    return {path.partition(':')[2], *own}


def _is_installed(file: str) -> bool:
    """Whether a file belongs to this project or to a library, and not to the user."""
    path = Path(file).resolve()
    ours = any(path.is_relative_to(ROOT / name) for name in ('moe_vision', 'input_pipeline'))
    library = path.is_relative_to(Path(sysconfig.get_path('stdlib')).resolve())
    named = {'site-packages', 'dist-packages'} & set(path.parts)
    return file.startswith('<') or ours or library or bool(named)
