"""Packs the files of all cells into one file with a line per cell: W/rows.jsonl, W/timings.jsonl.

`run` writes a file per cell (W/rows/ARM/seed_S.json), because several processes may work on a study
at once. `pack` merges them into one file that is easy to browse and to keep under version control.
Only `pack` changes the packed file. If a cell is in both, its own file takes precedence.
"""

import contextlib
import dataclasses
import functools
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from input_pipeline import json_data
from input_pipeline.files import read as read_file
from moe_vision.common import files
from moe_vision.common.errors import UserError

Cell = tuple[str, int]  # arm, seed
MAX_BYTES = 2**30  # of a file of rows
_CELL = re.compile(rb'"arm": ?"([a-z0-9_]+)", ?"seed": ?([0-9]{1,10})[,}]')


@dataclasses.dataclass(frozen=True)
class Line:
    """A line of a packed file.

    Attributes:
      number: its number, from 1.
      data: its bytes, without the line break.
      value: its JSON value; None if it has none.
      error: why it has no value, else ''.
      cell: the arm and seed that it names; None if it names none.
    """

    number: int
    data: bytes
    value: Any
    error: str
    cell: Cell | None


@dataclasses.dataclass(frozen=True)
class Packed:
    """The lines of a packed file: all of them, and by the cell that they name."""

    lines: tuple[Line, ...]
    by_cell: Mapping[Cell, Sequence[Line]]


def path(workdir: str, kind: str) -> Path:
    """The packed file; `kind` is 'rows' or 'timings'."""
    return Path(workdir) / f'{kind}.jsonl'


def cell_path(workdir: str, kind: str, cell: Cell) -> Path:
    """The file that holds one cell alone."""
    return Path(workdir) / kind / cell[0] / f'seed_{cell[1]}.json'


def load(data: bytes) -> Any:
    """The JSON value in the bytes. Raises ValueError with one line that says what is wrong."""
    try:
        return json_data.parse(data)
    except ValueError as e:
        raise ValueError(f'half-written or damaged, not JSON ({e})') from e


def read_cell(file: Path) -> Any:
    """The JSON value in a file of one cell. Raises OSError or, as `load`, ValueError."""
    return load(read_file(file, MAX_BYTES))


def read(workdir: str, kind: str) -> Packed:
    """The packed file, parsed again only when it has changed. Treat its values as read-only.

    To look up a cell that others may be packing, look for its own file first, then here: `pack`
    writes the line before it removes the file.

    Raises:
      UserError: the file exists but cannot be read.
    """
    file = path(workdir, kind)
    try:
        stat = file.stat()
        return _read(file, (stat.st_ino, stat.st_mtime_ns, stat.st_size))
    except FileNotFoundError:
        return Packed((), {})
    except OSError as e:
        raise UserError(
            f"'{file}' cannot be read: {e.strerror or e}; make it readable, or restore "
            'it from version control.'
        ) from e


@functools.lru_cache(maxsize=4)
def _read(file: Path, version: tuple[int, ...]) -> Packed:
    """The parsed file, cached by `version`, which changes whenever the file does."""
    whole = read_file(file, MAX_BYTES)
    lines = [
        _line(number, data) for number, data in enumerate(whole.split(b'\n'), 1) if data.strip()
    ]
    by_cell: dict[Cell, list[Line]] = {}
    for line in lines:
        if line.cell:
            by_cell.setdefault(line.cell, []).append(line)
    return Packed(tuple(lines), by_cell)


def _line(number: int, data: bytes) -> Line:
    try:
        value = load(data)
    except ValueError as e:  # its start may still name the cell
        start = _CELL.search(data)
        cell = (start[1].decode(), int(start[2])) if start else None
        return Line(number, data, None, str(e), cell)
    return Line(number, data, value, '', _cell_in(value))


def _cell_in(value: Any) -> Cell | None:
    """The cell that a JSON value names; None if it names none."""
    if not isinstance(value, dict):
        return None
    arm, seed = value.get('arm'), value.get('seed')
    if isinstance(arm, str) and isinstance(seed, int | float) and seed % 1 == 0:
        return arm, int(seed)
    return None


def pack(
    workdir: str, kind: str, cells: Sequence[Cell], usable: Callable[[Any, Cell], bool]
) -> tuple[int, Path | None]:
    """Merges the files of these cells into the packed file, in the order of `cells`.

    The packed file is written whole or not at all, and a cell's file is removed only once its line
    is on disk, so a kill at any moment loses nothing and the next call continues. Files that are
    not usable stay where they are. Lines that are not usable, or that repeat a cell with another
    value, are moved to a file beside it, W/rows.jsonl.set_aside_1.

    Args:
      cells: all cells of the study.
      usable: whether a JSON value belongs to the cell.

    Returns:
      (number of cells in the packed file, file with the lines set aside or None).

    Raises:
      UserError: a file cannot be read or written.
    """
    target, known = path(workdir, kind), set(cells)
    kept: dict[Cell, bytes] = {}
    merged = []
    for cell in cells:
        file = cell_path(workdir, kind, cell)
        with contextlib.suppress(OSError, ValueError):
            value = read_cell(file)
            if usable(value, cell):
                kept[cell] = _dump(value, cell)
                merged.append(file)
    spare = []
    for line in read(workdir, kind).lines:
        if line.cell in known and not line.error and usable(line.value, line.cell):
            data = _dump(line.value, line.cell)
            if kept.setdefault(line.cell, data) == data:
                continue
        spare.append(line.data)
    data = b''.join(kept[cell] + b'\n' for cell in cells if cell in kept)
    try:
        aside = _set_aside(target, b'\n'.join(spare) + b'\n') if spare else None
        if data != (target.read_bytes() if target.exists() else b''):
            files.write(target, data)
        if merged:
            with target.open('rb') as f:
                os.fsync(f.fileno())  # before any file goes, so that a power cut loses no row
        for file in merged:
            file.unlink(missing_ok=True)
    except OSError as e:
        raise UserError(
            f"'{target}' cannot be written: {e.strerror or e}; nothing is lost. Make "
            'room, and pack again.'
        ) from e
    folder = Path(workdir) / kind
    for empty in (*folder.glob('*'), folder):
        with contextlib.suppress(OSError):  # it is a file, or not empty
            empty.rmdir()
    return len(kept), aside


def _dump(value: Any, cell: Cell) -> bytes:
    """A line that reads back as the same value; a timing, which names no cell, gets its cell."""
    named = value if 'arm' in value else {'arm': cell[0], 'seed': cell[1]} | value
    return json.dumps(named, separators=(',', ':')).encode()


def _set_aside(file: Path, data: bytes) -> Path:
    """The file beside `file` that holds these bytes, written unless it exists."""
    number = 1
    while (aside := file.with_name(f'{file.name}.set_aside_{number}')).exists():
        with contextlib.suppress(OSError):
            if read_file(aside, MAX_BYTES) == data:
                return aside
        number += 1
    files.write(aside, data)
    return aside
