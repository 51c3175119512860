"""Reads what depends on the clock: how long cells took, how fast they trained, and latencies.

`rows.write` writes the timing of a cell beside its row; `pack` merges timings as it merges rows.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from moe_vision.common.files import read_json, write_json
from moe_vision.study import fields, packed
from moe_vision.study.packed import Cell

Tell = Callable[[str], None]


def _nobody(line: str) -> None:
    """Drops a line that no caller wants."""


def timings(workdir: str, tell: Tell = _nobody) -> dict[str, dict[int, dict[str, Any]]]:
    """Every timing that can be read: arm -> seed -> the timing that `rows.write` wrote.

    Args:
      tell: called with a line for each timing that is left out.
    """
    by_cell: dict[Cell, dict[str, Any]] = {}
    for file in sorted((Path(workdir) / 'timings').glob('*/seed_*.json')):
        try:
            seed, value = int(file.stem.removeprefix('seed_')), packed.read_cell(file)
            if wrong := fields.wrong_timing(value):
                raise ValueError(wrong)
            by_cell[file.parent.name, seed] = value
        except (OSError, ValueError) as e:
            tell(f'{file.relative_to(workdir)}: {_reason(e)}; it is left out.')
    for line in packed.read(workdir, 'timings').lines:
        if wrong := line.error or fields.wrong_timing(line.value):
            tell(f'timings.jsonl line {line.number}: {wrong}; it is left out.')
        elif line.cell:
            by_cell.setdefault(
                line.cell, {k: v for k, v in line.value.items() if k not in ('arm', 'seed')}
            )
    out: dict[str, dict[int, dict[str, Any]]] = {}
    for arm, seed in sorted(by_cell, key=lambda cell: (cell[0], f'seed_{cell[1]}.json')):
        out.setdefault(arm, {})[seed] = by_cell[arm, seed]
    return out


def images_per_second(folder: str) -> float | None:
    """Training speed of a run that ended, without compiling and evaluations; None if unknown."""
    return read_json(Path(folder) / 'result.json')['images_per_second']


def write_latency(workdir: str, latencies: Mapping[str, Any]) -> Path:
    """Writes what `latency.measure` returned; returns the file."""
    file = Path(workdir) / 'timings' / 'latency.json'
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, dict(latencies))
    return file


def latency(workdir: str, tell: Tell = _nobody) -> dict[str, Any] | None:
    """What `write_latency` wrote, or None; calls `tell` with a line if it cannot be used."""
    file = Path(workdir) / 'timings' / 'latency.json'
    try:
        value = packed.read_cell(file)
        if wrong := fields.wrong_latency(value):
            raise ValueError(f'damaged, {wrong}')
        return value
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as e:
        tell(f'timings/latency.json: {_reason(e)}; it is left out.')
        return None


def _reason(error: Exception) -> str:
    return str(getattr(error, 'strerror', None) or error)
