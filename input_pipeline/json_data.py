"""Reads JSON that a stranger may have written: every failure is one exception with one line."""

from __future__ import annotations

import collections
import json
from pathlib import Path
from typing import Any

from input_pipeline import files

MAX_DEPTH = 100  # of lists and objects in each other
MAX_DIGITS = 4000  # of a whole number; Python refuses over 4,300, but not in every version
_MAX_BYTES = 2**26  # of one value
_SHOWN = 50  # characters of a key in a message


def parse(data: bytes) -> Any:
    """Returns the JSON value in UTF-8 bytes. NaN and infinities are allowed, as json writes them.

    Raises:
        ValueError: it is no JSON; it is too large, nested too deep, or holds a number of very many
            digits, a key twice in one object, or half a character. One line says which. A whole
            number may still be larger than any float.
    """
    if len(data) > _MAX_BYTES:
        raise ValueError(f'it has {len(data):,} bytes; at most {_MAX_BYTES:,} are read')
    try:
        text = data.decode()
        value = json.loads(text, object_pairs_hook=_object, parse_int=_whole_number)
    except RecursionError as error:
        raise _too_deep() from error
    except ValueError as error:
        raise ValueError(' '.join(str(error).split())) from error
    level = [value]
    for _ in range(MAX_DEPTH):
        nested = [x for x in level if isinstance(x, dict | list)]
        level = [y for x in nested for y in (x.values() if isinstance(x, dict) else x)]
        if not level:
            break
    else:
        raise _too_deep()
    if '\\ud' in text or '\\uD' in text:  # an escape can stand for half a character
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise ValueError('a string holds half of a surrogate pair') from error
    return value


def read(path: Path) -> Any:
    """Returns the JSON value in a regular file.

    Raises:
        OSError: it cannot be read, is no regular file or is too large; `strerror` says which.
        ValueError: as `parse`.
    """
    return parse(files.read(path, _MAX_BYTES))


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        keys = [key for key, _ in pairs]
        again = collections.Counter(keys).most_common(1)[0][0]
        raise ValueError(f'an object holds the key {again[:_SHOWN]!r} twice')
    return made


def _whole_number(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f'a whole number has {len(digits)} digits; at most {MAX_DIGITS} are read')
    return int(digits)


def _too_deep() -> ValueError:
    return ValueError(f'it is nested over {MAX_DEPTH} levels deep')
