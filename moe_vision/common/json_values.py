"""JSON values: reading those that may be damaged, making strict ones, and comparing two."""

import json
import math
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from typing import Any

MISSING = object()
_BIDI = frozenset('\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069')
_LONGEST_NAME = 300
MAX_BYTES = 2**26  # of one value
DEEPEST = 100  # dictionaries and lists inside each other; what a run writes has fewer than 10


def parse(data: bytes) -> Any:
    """The JSON value in bytes that may be damaged.

    Raises:
      ValueError: there is none, it is nested so deeply that code which follows it would fail, or
        it is too large.
    """
    if len(data) > MAX_BYTES:
        raise ValueError(f'it has {len(data):,} bytes; at most {MAX_BYTES:,} are read')
    try:
        value = json.loads(data.decode())
    except RecursionError:
        value = None
        nested = True
    except ValueError as e:
        raise ValueError(f'not JSON ({e})') from e
    else:
        nested = _depth_exceeds(value, DEEPEST)
    if nested:
        raise ValueError(f'nested more than {DEEPEST} deep')
    return value


def _depth_exceeds(value: Any, most: int) -> bool:
    level = [value]
    for _ in range(most + 1):
        inner = (
            v.values() if isinstance(v, dict) else v for v in level if isinstance(v, dict | list)
        )
        level = [x for values in inner for x in values if isinstance(x, dict | list)]
        if not level:
            return False
    return True


def clean(value: str) -> str:
    """Text without control, direction-changing or unpaired characters, at most 300 long."""
    if len(value) <= _LONGEST_NAME and value.isascii() and value.isprintable():
        return value
    kept = value[: _LONGEST_NAME - 1] + '…' if len(value) > _LONGEST_NAME else value
    return ''.join('\ufffd' if _unfit(c) else c for c in kept)


def _unfit(c: str) -> bool:
    nonsense = unicodedata.category(c) in ('Cc', 'Cs') or ord(c) & 0xFFFE == 0xFFFE
    return nonsense or c in _BIDI


def plain(value: Any, not_finite: Callable[[float], Any] = str) -> Any:
    """The value with tuples as lists and a number that is not finite as a string, such as 'inf'."""
    if isinstance(value, Mapping):
        return {k: plain(v, not_finite) for k, v in value.items()}
    if isinstance(value, tuple | list):
        return [plain(v, not_finite) for v in value]
    return not_finite(value) if isinstance(value, float) and not math.isfinite(value) else value


def finite(value: Any) -> Any:
    """The same with None in place of every number that is not finite (JSON has none such)."""
    return plain(value, lambda _: None)


def as_dict(value: Any) -> dict[str, Any]:
    """The value if it is a dictionary, else an empty one."""
    return value if isinstance(value, dict) else {}


def value_at(value: Any, *keys: str) -> Any:
    """The value under nested keys of dictionaries; None where a key or a dictionary is missing."""
    for key in keys:
        value = as_dict(value).get(key)
    return value


def as_list(value: Any) -> list[Any]:
    """The value if it is a list, else an empty one."""
    return value if isinstance(value, list) else []


def number(value: Any) -> float:
    """The value as a float; NaN for null, infinities and whatever is not a number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.nan
    try:
        return float(value) if math.isfinite(value) else math.nan
    except OverflowError:
        return math.nan


def differences(
    old: Any,
    new: Any,
    default: Callable[[tuple[Any, ...], Any], Any] = lambda path, new: MISSING,
    path: tuple[Any, ...] = (),
    top: Any = None,
) -> Iterator[str]:
    """'train.epochs 30.0 -> 60.0' for every leaf at which two plain values differ.

    Args:
      default: (path, the whole new value) -> what an absent key stands for, or MISSING.
    """
    top = new if top is None else top
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in dict.fromkeys([*old, *new]):
            at = (*path, key)
            if key not in old or key not in new:
                value = new[key] if key in new else old[key]
                if plain(default(at, top)) == value:
                    continue
                was, now = (_word(x, key) for x in (old, new))
                yield f'{".".join(map(str, at))} {was} -> {now}'
            else:
                yield from differences(old[key], new[key], default, at, top)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for number, (a, b) in enumerate(zip(old, new, strict=True)):
            yield from differences(a, b, default, (*path, number), top)
    elif old != new:
        yield f'{".".join(map(str, path))} {old!r} -> {new!r}'


def _word(of: Mapping[str, Any], key: str) -> str:
    if key not in of:
        return 'nothing'
    return f'{{{", ".join(of[key])}}}' if isinstance(of[key], Mapping) else repr(of[key])
