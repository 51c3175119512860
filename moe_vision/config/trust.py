"""Which code a config may import.

A file given as --config or --study is code: it may name any module. A config that was read from a
folder (a run's config.json) is data: somebody else may have written it. There a name like
`package.module:Class` is refused, unless the user trusts that module by name, and always if the
module's file lies inside the folder. See docs/trust.md.
"""

import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from input_pipeline.registry import is_path
from moe_vision.common.errors import UserError

_trusted: set[str] = set()  # modules that --trust of this process named


def allow(modules: str) -> None:
    """Trusts these modules, separated by commas, for the rest of the process.

    Raises:
      UserError: an item is not the name of a module.
    """
    for module in filter(None, modules.split(',')):
        if not is_path(f'{module}:x'):
            raise UserError(
                f"--trust is '{modules}'; write the names of modules, such as "
                '--trust=package.module,package.other.'
            )
        _trusted.add(module)


def check(values: Any, folder: str, trusted: Iterable[str] = ()) -> None:
    """Looks for names of code in a config that was read from a folder. Imports nothing.

    Every text in the config is looked at, whatever its key, so that a new key needs no new rule.

    Args:
      values: what JSON held.
      folder: where it was read.
      trusted: modules that the caller trusts, besides those of `allow`.

    Raises:
      UserError: a name of code whose module is not trusted, or lies inside the folder.
    """
    for key, text in _texts(values):
        if not is_path(text):
            continue
        module = text.partition(':')[0]
        told = f"{key} is '{text}' in the config that '{folder}' holds"
        if module not in _trusted.union(trusted):
            raise UserError(
                f'{told}; a folder is data, and data may not import code. If you know '
                f'this module and trust it, add --trust={module}.'
            )
        if inside := next((f for f in _files(module) if _is_inside(f, folder)), None):
            raise UserError(
                f"{told}, and '{inside}' lies inside that folder; code from there is "
                'never imported. Move the module to where your own code stands.'
            )


def _texts(values: Any, key: str = '') -> Iterator[tuple[str, str]]:
    """(dotted key, text) of every string in nested values, names of entries included."""
    if isinstance(values, Mapping):
        for name, value in values.items():
            at = f'{key}.{name}' if key else str(name)
            yield at, str(name)
            yield from _texts(value, at)
    elif isinstance(values, list | tuple):
        for value in values:
            yield from _texts(value, key)
    elif isinstance(values, str):
        yield key, values


def _files(module: str) -> Iterator[str]:
    """Where a module and the packages around it stand, found without importing any of them."""
    path = None
    parts = module.split('.')
    for count in range(1, len(parts) + 1):
        name = '.'.join(parts[:count])
        specs = (
            finder.find_spec(name, path) for finder in sys.meta_path if hasattr(finder, 'find_spec')
        )
        spec = getattr(sys.modules.get(name), '__spec__', None) or next(filter(None, specs), None)
        if spec is None:
            return  # importing will say that there is no such module
        path = list(spec.submodule_search_locations or ())
        yield from filter(None, [spec.origin, *path])


def _is_inside(file: str, folder: str) -> bool:
    root = os.path.realpath(folder)
    return os.path.realpath(file).startswith(os.path.join(root, ''))
