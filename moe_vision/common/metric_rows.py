"""Reads the rows of a run's metrics from files that may be damaged, for runs, reports and studies.

A row is a JSON object in a line of its own. `check` says what it must be; nothing else reads lines.
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moe_vision.common import files, json_values

SPLITS = ('train', 'validation')
_TABLES = ('losses', 'layers', 'timing', 'probe')
_LARGEST = 2**63  # whole numbers below it; a float holds any of them
_DEEPEST = 8


@dataclasses.dataclass(frozen=True)
class Damage:
    """A line that cannot be read; `line` 0 is a whole file, whose data is then empty."""

    file: str  # its name
    line: int
    data: bytes
    why: str


def read(folder: Path) -> tuple[list[dict[str, Any]], list[Damage]]:
    """The rows in the `*.jsonl` of a folder by step, and the lines that are left out.

    A row that is there twice, because a restart was killed while it rewrote the files, counts once.
    """
    rows: dict[tuple[int, bool], dict[str, Any]] = {}
    damaged = []
    for path in sorted(folder.glob('*.jsonl')) if folder.is_dir() else []:
        try:
            lines = files.read(path).split(b'\n')
        except (OSError, ValueError) as e:
            damaged.append(Damage(path.name, 0, b'', str(e)))
            continue
        for number, data in enumerate(lines, 1):
            if not data.strip():
                continue
            try:
                row = _row(data)
            except ValueError as e:
                damaged.append(Damage(path.name, number, data, str(e)))
            else:
                rows[row['step'], row['split'] != 'train'] = row
    return [rows[key] for key in sorted(rows)], damaged


def _row(data: bytes) -> dict[str, Any]:
    """The row in a line; NaN and Infinity are None. Raises ValueError with what is wrong."""
    if len(data) > json_values.MAX_BYTES:
        raise ValueError(f'it has {len(data):,} bytes; at most {json_values.MAX_BYTES:,} are read')
    try:
        row = json.loads(data.decode(), parse_constant=lambda name: None)
    except RecursionError as e:
        raise ValueError('nested too deeply') from e
    except ValueError as e:
        raise ValueError(f'not JSON ({e})') from e
    check(row)
    return row


def check(row: Any) -> None:
    """Raises ValueError unless `row` is what a run writes.

    It has a 'step' and a 'split'. All other values are numbers or null, and dictionaries of such
    where a run writes dictionaries. The accuracy of a validation is a share, because it decides
    which checkpoint is the best.
    """
    if not isinstance(row, dict):
        raise ValueError('not an object')
    if not _is_count(row.get('step')):
        raise ValueError("its 'step' is not a whole number")
    if row.get('split') not in SPLITS:
        raise ValueError(f"its 'split' is not {' or '.join(SPLITS)}")
    for key, value in row.items():
        if key in _TABLES:
            if not isinstance(value, dict) or not _is_numeric(value):
                raise ValueError(f"its '{key}' is not a table of numbers")
        elif key != 'split' and (isinstance(value, list | dict) or not _is_numeric(value)):
            raise ValueError(f'its {key[:40]!r} is not a number')
    if not all(isinstance(x, dict) for x in row.get('layers', {}).values()):
        raise ValueError("its 'layers' are not tables of numbers")
    if not all(
        isinstance(x, list) and all(type(i) is int for i in x)
        for x in row.get('probe', {}).values()
    ):
        raise ValueError("its 'probe' is not lists of whole numbers")
    if not _is_count(row.get('skipped_in_a_row', 0)):
        raise ValueError("its 'skipped_in_a_row' is not a whole number")
    accuracy = row.get('accuracy')
    if row['split'] == 'validation' and (accuracy is None or not 0 <= accuracy <= 1):
        raise ValueError("its 'accuracy' is not a share")


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < _LARGEST


def _is_numeric(value: Any, depth: int = 0) -> bool:
    """Whether there are only numbers and null in a value, in dictionaries and lists at most."""
    if isinstance(value, dict):
        return depth < _DEEPEST and all(_is_numeric(x, depth + 1) for x in value.values())
    if isinstance(value, list):
        kinds = set(map(type, value))
        if kinds <= {float, type(None)}:  # the most frequent case, and the longest lists
            return True
        return depth < _DEEPEST and all(_is_numeric(x, depth + 1) for x in value)
    return (
        value is None
        or type(value) is float
        or (type(value) is int and -_LARGEST < value < _LARGEST)
    )


def in_words(damaged: Sequence[Damage]) -> list[str]:
    """One line for each damaged file: what cannot be read, and why."""
    told = []
    for name in dict.fromkeys(d.file for d in damaged):
        first, *more = [d for d in damaged if d.file == name]
        told.append(
            f'{name}, line {first.line}: {first.why}' if first.line else f'{name}: {first.why}'
        )
        told[-1] += f', and {len(more)} more lines' if more else ''
    return told
