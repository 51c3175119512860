"""Checks the fields of a row: everything that the analysis and the report rely on."""

import re
import sys
from collections.abc import Callable, Mapping
from typing import Any

_POINT = ('step', 'epoch', 'accuracy', 'loss')
_FACTOR = r'inf|[0-9.e+-]{1,24}'  # a capacity factor, as Python writes it
_MAX_FACTORS = 32  # of one arm; each is a column of a table


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


def _result(value: Any) -> bool:
    """Whether it maps names to numbers, but for two: a run without a number as its test_accuracy
    diverged, and accuracy_at_capacity has a number for each capacity factor."""
    return isinstance(value, dict) and all(
        _at_capacity(v) if k == 'accuracy_at_capacity' else _number(v) or k == 'test_accuracy'
        for k, v in value.items()
    )


def _at_capacity(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and len(value) <= _MAX_FACTORS
        and all(re.fullmatch(_FACTOR, k) and _number(v) for k, v in value.items())
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
    'result': ('an object of numbers', _result),
    'layers': ('an object of objects', _tables),
    'curve': (f'a list of points with the numbers {", ".join(_POINT)} and layers', _curve),
    'mechanism': ('an object or null', lambda v: v is None or isinstance(v, dict) and _fits(v)),
}
KEYS = ('arm', 'seed', 'run_seed', 'status', 'config', *_KINDS)
_MAY_LACK = {'validation_images': _KINDS['images'], 'data': _TEXT}  # rows of older versions do


_TIMES = ('seconds', 'compile_seconds', 'flops', 'trained_flops', 'images_per_second')
_LATENCY = ('median_ms', 'low_ms', 'high_ms', 'images_per_second', 'rest_ms')
_SHARES = ('rho_time', 'rho_time_low', 'rho_time_high')  # below zero if noise is larger
_MAX_BATCHES = 32  # of one arm; each is a column of a figure
_MAX_SIZE = 1e100


def _size(value: Any) -> bool:
    """A number that sums and products can be made of, not negative, or None."""
    return (
        value is None
        or not isinstance(value, bool)
        and isinstance(value, int | float)
        and 0 <= value <= _MAX_SIZE
    )


def _share(value: Any) -> bool:
    """A part of something that noise may push below zero, or None."""
    return (
        value is None
        or not isinstance(value, bool)
        and isinstance(value, int | float)
        and -_MAX_SIZE <= value <= 1
    )


def wrong_timing(value: Any) -> str:
    """'' or what of a cell's timing is of another kind, the first of it."""
    if not isinstance(value, Mapping):
        return 'it is no object'
    odd = [key for key in _TIMES if not _size(value.get(key))]
    odd += [key for key in ('device',) if not _line(value.get(key, ''))]
    return f'its {odd[0]} is not what a timing has' if odd else ''


def wrong_latency(value: Any) -> str:
    """'' or what of the measured latencies is of another kind, the first of it."""
    if not isinstance(value, Mapping) or not isinstance(value.get('arms'), Mapping):
        return 'it is no object with arms'
    if not _line(value.get('device', '')):
        return 'its device is not a line of text'
    for arm, measured in value['arms'].items():
        batches = measured.get('batches') if isinstance(measured, Mapping) else None
        if not isinstance(batches, Mapping) or len(batches) > _MAX_BATCHES:
            return f"its arm '{arm}' has no object of up to {_MAX_BATCHES} batches"
        for size, times in batches.items():
            if not re.fullmatch('[1-9][0-9]{0,8}', size) or not isinstance(times, Mapping):
                return f"its arm '{arm}' has a batch that is no size with an object"
            sized = all(_size(times.get(key)) for key in _LATENCY)
            if not sized or not all(_share(times.get(key)) for key in _SHARES):
                return f"its arm '{arm}' has a measure that is no number"
        if not _size(measured.get('flops')):
            return f"its arm '{arm}' has flops that are no number"
    return ''


def wrong(row: Any) -> str:
    """The first thing that is missing or of the wrong kind in a row; '' if nothing is."""
    if not isinstance(row, Mapping):
        return 'it is not an object'
    lacking = [k for k in KEYS if k not in row]
    if lacking:
        return f'it lacks {", ".join(lacking)}'
    kinds = _KINDS | {key: kind for key, kind in _MAY_LACK.items() if key in row}
    return next(
        (f'its {key} is not {what}' for key, (what, fits) in kinds.items() if not fits(row[key])),
        '',
    )
