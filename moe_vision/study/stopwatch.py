"""Reads what depends on the clock: how long cells took, how fast they trained, and latencies.

`rows.write` writes the timing of a cell beside its row; `pack` merges timings as it merges rows.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moe_vision.common.files import read_json, write_json
from moe_vision.study import packed
from moe_vision.study.packed import Cell


def timings(workdir: str) -> dict[str, dict[int, dict[str, Any]]]:
    """Every timing that can be read: arm -> seed -> the timing that `rows.write` wrote."""
    by_cell: dict[Cell, dict[str, Any]] = {}
    for file in (Path(workdir) / 'timings').glob('*/seed_*.json'):
        try:
            value, seed = packed.load(file.read_bytes()), int(file.stem.removeprefix('seed_'))
        except (OSError, ValueError):
            continue
        if isinstance(value, dict):
            by_cell[file.parent.name, seed] = value
    for line in packed.read(workdir, 'timings').lines:
        if line.cell and not line.error:
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


def latency(workdir: str) -> dict[str, Any] | None:
    """What `write_latency` wrote; None if it cannot be read."""
    try:
        return json.loads((Path(workdir) / 'timings' / 'latency.json').read_text())
    except (OSError, ValueError):
        return None
