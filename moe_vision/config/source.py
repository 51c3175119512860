"""Reads a config file and the command line's overrides of it into one locked ConfigDict.

`ml_collections.config_flags` overrides common keys and keeps their types. Keys inside the open
dictionaries (a method's own arguments) do not exist beforehand, so a locked ConfigDict would refuse
them: they are taken out of the command line first and merged in afterwards. `config.check` then
judges types and names.
"""

import ast
import copy
import dataclasses
import glob
import importlib.util
import inspect
import os
import re
import sys
import traceback
import types
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from input_pipeline import DataError
from input_pipeline.registry import is_path
from moe_vision.common.errors import UserError, nearest, unknown
from moe_vision.common.paths import expanded
from moe_vision.config import schema, typed

if TYPE_CHECKING:
    from ml_collections import ConfigDict

Entry = TypeVar('Entry')
KEYS = typed.flatten(schema.Config)
OPEN = tuple(k for k, kind in KEYS.items() if typed.is_open(kind))


def take_overrides(args: Iterable[str]) -> tuple[list[str], dict[str, Any], list[str]]:
    """Splits a command line into the parts that different parsers read.

    Returns:
      Overrides of common keys, as `--config.key=value`; overrides in the open dictionaries, as
      {'model.moe.router_args.noise': value}, where a value that is a Python literal is evaluated;
      and the arguments that override nothing.

    Raises:
      UserError: an override names no key, or has no value.
    """
    opened: dict[str, Any] = {}
    common, others = [], []
    args = iter(args)
    for arg in args:
        match = re.fullmatch(r'--?(no)?config\.([^=]*)(?:=(.*))?', arg, re.DOTALL)
        if not match:
            others.append(arg)
            continue
        no, key, value = match.groups()
        inside = key.startswith(tuple(f'{k}.' for k in OPEN))
        if key not in KEYS and not inside:
            below = [k for k in KEYS if k.startswith(f'{key}.')]
            hint = f" Set one of its keys, such as '--config.{below[0]}'." if below else ''
            raise UserError(
                f"unknown key '--config.{key}'.{hint or nearest_key(key)} "
                'All keys stand in configs/base.py.'
            )
        switch = KEYS.get(key) is bool
        if no and value is not None:
            raise UserError(f"'{arg}' has 'no' and a value; write --config.{key}=VALUE.")
        if value is None:
            value = ('False' if no else 'True') if switch else next(args, None)
        if value is None or (no and not switch):
            raise UserError(f"'{arg}' has no value; write --config.{key}=VALUE.")
        if inside or key in OPEN:
            opened.pop(key, None)  # so that the override given last is applied last
            opened[key] = literal(value)
        else:
            common.append(f'--config.{key}={value}')
    return common, opened, others


def load(
    file: str,
    common: Iterable[str] = (),
    opened: Mapping[str, Any] | None = None,
) -> 'ConfigDict':
    """The locked config of `FILE.py` or `FILE.py:argument`, with the overrides applied.

    Args:
      file: a Python file with `get_config()`, or `get_config(argument)`.
      common, opened: overrides, as `take_overrides` returns them.

    Raises:
      UserError: there is no such file, it fails, it returns no ConfigDict, or an override has a
        wrong type.
    """
    from absl import flags
    from ml_collections import ConfigDict, config_flags  # an extra: `--help` works without

    config, values = run(file), flags.FlagValues()
    if not isinstance(config, ConfigDict):
        path = file.split(':', 1)[0]
        raise UserError(
            f"config file '{path}': get_config() returned a {type(config).__name__}; "
            'it must return a ConfigDict.'
        )
    args = ['', *common]
    try:
        config_flags.DEFINE_config_dict('config', config, flag_values=values, sys_argv=args)
        values(args)
    except flags.IllegalFlagValueError as e:
        key, _, value = str(e).removeprefix('flag --config.').split(': ', 1)[0].partition('=')
        raise UserError(f"{key} is '{value}'; it must be {typed.describe(KEYS[key])}.") from e
    except (KeyError, AttributeError, TypeError, flags.Error) as e:
        raise UserError(
            f"config file '{file}' lacks keys that the command line sets; start it "
            f'from configs/base.py ({type(e).__name__}).'
        ) from e
    for key, value in (opened or {}).items():
        put(config, key, value)
    return config


def put(config: 'ConfigDict', key: str, value: Any) -> None:
    """Sets a key, or an argument of a method in one of the open dictionaries, by its dotted path.

    `config.check` judges the value.

    Raises:
      UserError: there is no such key, or the config cannot hold the value.
    """
    path = next((k for k in OPEN if key.startswith(f'{k}.')), key)
    if path not in KEYS:
        raise UserError(f"unknown key '{key}'.{nearest(key, KEYS)} All stand in configs/base.py.")
    *parents, last = path.split('.')
    with config.unlocked(), config.ignore_type():
        try:
            holder: Any = config
            for parent in parents:
                holder = holder[parent]
            if key == path:
                holder[last] = escaped(value)
            else:
                inner = holder[last]
                *outer, name = _names(key.removeprefix(f'{path}.'))
                for part in outer:
                    inner[part] = inner.get(part, {})
                    inner = inner[part]
                inner[name] = value
        except KeyError as e:
            raise UserError(
                f'{path} cannot be set: the config has no {e}; start it from configs/base.py.'
            ) from e
        except (ValueError, TypeError, AttributeError) as e:
            raise UserError(f'{path} cannot be set to {value!r}: {e}') from e


def changed(config: 'ConfigDict', values: Mapping[str, Any], at: str = '') -> 'ConfigDict':
    """A copy of a config with these values.

    Args:
      values: by dotted path, or with `__` for the dots: {'train__epochs': 5.0}. A dictionary for
        a section sets the keys in it: {'train': {'epochs': 5.0}}.

    Raises:
      UserError: there is no such key.
    """
    config = config if at else copy.deepcopy(config)
    for name, value in values.items():
        key = at + name.replace('__', '.')
        if isinstance(value, Mapping) and any(k.startswith(f'{key}.') for k in KEYS):
            changed(config, value, f'{key}.')
        else:
            put(config, key, value)
    return config


def run(file: str, what: str = 'config', folder: str = 'configs') -> Any:
    """Calls `get_WHAT()` of the Python file `FILE.py`, or `get_WHAT(arg)` of `FILE.py:arg`.

    Args:
      folder: the folder that the hint names when the file does not exist.

    Raises:
      UserError: there is no such file or function, or it fails.
    """
    path, *argument = file.split(':', 1)
    path = expanded(path)
    if not os.path.isfile(path):
        folders = (os.path.dirname(path) or '.', folder)
        known = {os.path.basename(p): p for f in folders for p in glob.glob(f'{f}/*.py')}
        near = nearest(os.path.basename(path), known).removesuffix("'?")
        name = near.rpartition("'")[2]
        hint = f" Did you mean '{known[name]}'?" if name else f' See the folder {folder}/.'
        raise UserError(f"{what} file '{path}' does not exist.{hint}")
    own = os.path.abspath(path)
    try:
        spec = importlib.util.spec_from_file_location(f'{what}_file', own)
        if spec is None or spec.loader is None:
            raise UserError(f"{what} file '{path}' is not a Python file (.py).")
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # where dataclasses look their module up
        try:
            with open(own, 'rb') as f:  # cached bytecode would miss a change in the same second
                exec(compile(f.read(), own, 'exec'), module.__dict__)
        finally:
            del sys.modules[spec.name]
        if not hasattr(module, f'get_{what}'):
            near = nearest(f'get_{what}', dir(module))
            hint = near or f' See the folder {folder}/.'
            raise UserError(f"{what} file '{path}' has no get_{what}().{hint}")
        make = getattr(module, f'get_{what}')
        try:
            inspect.signature(make).bind(*argument)
        except TypeError as e:
            fault = (
                f"takes no argument; leave ':{argument[0]}' out"
                if argument
                else f"needs an argument; write it after a colon, '{path}:ARGUMENT'"
            )
            raise UserError(f"{what} file '{path}' {fault}.") from e
        return make(*argument)
    except (UserError, DataError):
        raise
    except Exception as e:  # whatever such a file does
        at = [f.lineno for f in traceback.extract_tb(e.__traceback__) if f.filename == own]
        line = getattr(e, 'lineno', None) or (at[-1] if at else '?')
        raise UserError(f"{what} file '{path}', line {line}: {_fault(e, e.__traceback__)}") from e


def _fault(error: Exception, trace: Any) -> str:
    """What a config or study file did wrong. Names the fields where a dataclass was made badly."""
    dots = 'does not accept dots' in str(error)
    hint = " Write slashes for them, such as 'my/losses:l1'." if dots else ''
    text = f'{type(error).__name__}: {getattr(error, "msg", error)}{hint}'
    made = re.match(r'(\w+)\.__init__\(\) (.*)', str(error))
    if not isinstance(error, TypeError) or not made:
        return text
    values = {n: v for frame, _ in traceback.walk_tb(trace) for n, v in frame.f_globals.items()}
    modules = [vars(v) for v in values.values() if isinstance(v, types.ModuleType)]
    cls = next(
        (n[made[1]] for n in (values, *modules) if dataclasses.is_dataclass(n.get(made[1]))), None
    )
    if cls is None:
        return text
    fields = [f.name for f in dataclasses.fields(cls)]
    unexpected = re.search("unexpected keyword argument '(.*)'", made[2])
    if unexpected:
        return (
            f"{made[1]} has no field '{unexpected[1]}'.{nearest(unexpected[1], fields)} "
            f'Allowed: {", ".join(fields)}.'
        )
    missing = re.findall("'(.*?)'", made[2]) if 'missing' in made[2] else []
    return f'{made[1]} lacks {", ".join(missing)}; give a value to each.' if missing else text


def escaped(values: Any) -> Any:
    """Values with names that a ConfigDict can hold: 'my.losses:l1' becomes 'my/losses:l1'.

    A ConfigDict takes no names with dots. `config.check` turns them back.
    """
    if not isinstance(values, Mapping):
        return values
    return {_escaped_name(name): escaped(value) for name, value in values.items()}


def _escaped_name(name: Any) -> Any:
    return name.replace('.', '/') if isinstance(name, str) and is_path(name) else name


def _names(path: str) -> list[str]:
    """The names in a path of nested dictionaries: 'my.transforms:Mine.rate' has two."""
    module, colon, rest = path.rpartition(':')
    first, *others = rest.split('.')
    return [_escaped_name(f'{module}{colon}{first}'), *others]


def unescaped(values: Any) -> Any:
    """The values before `escaped`."""
    if not isinstance(values, Mapping):
        return values

    def own(name: Any) -> Any:
        path = name.replace('/', '.') if isinstance(name, str) else ''
        return path if is_path(path) else name

    return {own(name): unescaped(value) for name, value in values.items()}


def chosen(kind: str, name: str, table: Mapping[str, Entry]) -> Entry:
    """The entry that the argument of `FILE.py:NAME` names; for files that hold several variants.

    Args:
      name: the argument, '' where none was given.

    Raises:
      UserError: no name was given, or the table does not have it.
    """
    if not name:
        raise UserError(
            f'no {kind} is named; write one after the file and a colon, such as '
            f"'FILE.py:{next(iter(table))}'. Allowed: {', '.join(sorted(table))}."
        )
    if name not in table:
        raise unknown(kind, name, table)
    return table[name]


def nearest_key(key: str) -> str:
    """` Did you mean '--config.…'?` for the closest key; keys with the same last part go first."""
    namesakes = [k for k in KEYS if k.rsplit('.', 1)[-1] == key.rsplit('.', 1)[-1]]
    return nearest(f'--config.{key}', [f'--config.{k}' for k in namesakes or KEYS])


def literal(text: str) -> Any:
    """The value of a Python literal (`0.1`, `16,32`, `true`), or the text if it is not one."""
    try:
        return ast.literal_eval(text.capitalize() if text in ('true', 'false') else text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text
