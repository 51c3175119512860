"""Checks the fields of a row: everything that the analysis and the report rely on."""

import sys
from collections.abc import Callable, Mapping
from typing import Any

_POINT = ('step', 'epoch', 'accuracy', 'loss')


def _number(value: Any) -> bool:
    """Whether it is a number that fits a float, or None, which stands for a non-finite one."""
    return (
        value is None
        or isinstance(value, float)
        or isinstance(value, int)
        and abs(value) <= sys.float_info.max
    )


def _whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and _number(value) and value >= least and value is not True


def _fits(value: Any) -> bool:
    """Whether every number in the value, however nested, fits a float."""
    if isinstance(value, dict | list):
        return all(map(_fits, value.values() if isinstance(value, dict) else value))
    return isinstance(value, str) or _number(value)


def _tables(value: Any) -> bool:
    """Whether it maps layers to objects that hold numbers and lists of them."""
    return isinstance(value, dict) and all(isinstance(v, dict) and _fits(v) for v in value.values())


def _curve(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(point, dict)
        and all(k in point and _number(point[k]) for k in _POINT)
        and _tables(point.get('layers'))
        and all(_number(v) for layer in point['layers'].values() for v in layer.values())
        for point in value
    )


def _line(value: Any) -> bool:
    return isinstance(value, str) and len(value.splitlines()) <= 1


_TEXT: tuple[str, Callable[[Any], bool]] = ('a line of text', _line)
_KINDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    'preregistration': _TEXT,
    'error': _TEXT,
    'device': _TEXT,
    'correct': _TEXT,
    'git_commit': ('a line of text or null', lambda v: v is None or _line(v)),
    'versions': (
        'an object of lines of text',
        lambda v: isinstance(v, dict) and all(_line(version) for version in v.values()),
    ),
    'num_classes': ('a whole number, 2 or more', lambda v: _whole(v, 2)),
    'images': ('a whole number, 1 or more', lambda v: _whole(v, 1)),
    'result': (
        'an object of numbers',
        lambda v: (
            isinstance(v, dict) and all(_number(n) for k, n in v.items() if k != 'test_accuracy')
        ),
    ),  # no number there: it diverged
    'layers': ('an object of objects', _tables),
    'curve': (f'a list of points with the numbers {", ".join(_POINT)} and layers', _curve),
    'mechanism': ('an object or null', lambda v: v is None or isinstance(v, dict) and _fits(v)),
}
KEYS = ('arm', 'seed', 'run_seed', 'status', 'config', *_KINDS)


def wrong(row: Any) -> str:
    """The first thing that is missing or of the wrong kind in a row; '' if nothing is."""
    if not isinstance(row, Mapping):
        return 'it is not an object'
    lacking = [k for k in KEYS if k not in row]
    if lacking:
        return f'it lacks {", ".join(lacking)}'
    return next(
        (f'its {key} is not {what}' for key, (what, fits) in _KINDS.items() if not fits(row[key])),
        '',
    )
