"""Lists what is left to do in a study, what it costs, and how long it will take.

Training FLOPs of a cell: 3 × the forward pass as executed (padded buffers included) × images ×
epochs; a backward pass counts as two forward passes.
"""

import dataclasses
import datetime
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import input_pipeline
from moe_vision.config.schema import Config
from moe_vision.study import lent, rows
from moe_vision.study.run.claims import Cell, Claims
from moe_vision.training.schedule import durations

State = Literal['done', 'diverged', 'running', 'half-done', 'unusable', 'missing']
Timings = Mapping[str, Mapping[int, Mapping[str, Any]]]  # what `stopwatch.timings` returns
_FLOPS_NOTE = 'training FLOPs: 3 x forward (as executed, padded buffers included) x images x epochs'


def folder(workdir: str, cell: Cell) -> Path:
    """The folder of a cell's run."""
    return Path(workdir) / 'runs' / cell[0] / f'seed_{cell[1]}'


def states(
    workdir: str, record: Mapping[str, Any], arms: Iterable[str], claims: Claims
) -> dict[Cell, State]:
    """The state of each cell of these arms."""
    out: dict[Cell, State] = {}
    near = lent.neighbours(workdir, record)
    for arm in arms:
        for seed in record['seeds']:
            row = rows.usable(workdir, record, arm, seed) or near[arm].get(seed)
            if row:
                out[arm, seed] = row['status']
            elif claims.taken((arm, seed)):
                out[arm, seed] = 'running'
            elif rows.exists(workdir, arm, seed):
                out[arm, seed] = 'unusable'
            elif folder(workdir, (arm, seed)).exists():
                out[arm, seed] = 'half-done'
            else:
                out[arm, seed] = 'missing'
    return out


def ended(state: State) -> bool:
    return state in ('done', 'diverged')


def training_flops(config: Config) -> int:
    """Training FLOPs of one cell. Traces its network, which takes about a second; needs no data."""
    from moe_vision import leverage

    info = input_pipeline.info(config.dataset)
    images = durations(config, info.split_sizes['train']).total * config.train.batch_size
    return 3 * leverage.measure(config, info).flops_executed * images


def costs(configs: Mapping[str, Config], timings: Timings) -> dict[str, int]:
    """Training FLOPs of one cell of each arm; arms that were timed are not traced again."""
    known = {
        arm: t['flops'] for arm, cells in timings.items() for t in cells.values() if t.get('flops')
    }
    return {arm: known.get(arm) or training_flops(config) for arm, config in configs.items()}


def this_device() -> dict[str, Any]:
    """What must be equal for timings of cells to be comparable."""
    import jax

    return {
        'device': jax.devices()[0].device_kind,
        'devices': jax.device_count(),
        'host_cores': os.cpu_count(),
    }


@dataclasses.dataclass(frozen=True)
class Plan:
    """The cells of a study and their cost.

    Attributes:
      flops: arm -> training FLOPs of one cell.
      todo: arm -> number of cells left to do.
      cells: arm -> number of all its cells.
    """

    flops: dict[str, int]
    todo: dict[str, int]
    cells: dict[str, int]

    @classmethod
    def from_states(cls, flops: dict[str, int], states: Mapping[Cell, State]) -> 'Plan':
        cells, todo = dict.fromkeys(flops, 0), dict.fromkeys(flops, 0)
        for (arm, _), state in states.items():
            cells[arm] += 1
            todo[arm] += not ended(state)
        return cls(flops, todo, cells)

    def share_done(self) -> float:
        """The share of the study's FLOPs that is done."""
        whole = sum(self.flops[a] * n for a, n in self.cells.items())
        return 1 - sum(self.flops[a] * n for a, n in self.todo.items()) / whole

    def seconds(
        self, timings: Timings, device: Mapping[str, Any], started: str = ''
    ) -> dict[str, float] | None:
        """arm -> seconds that one process needs for its cells; None if no cell has been timed yet.

        Seconds per FLOP come from the arm's own cells on the same device and number of devices,
        else from all arms' cells there. The extra time of an arm's first cell (compiling) is added
        once per arm.

        Args:
          timings: of the study's cells.
          device: what `this_device` returns.
          started: the arm that this process has compiled already.
        """
        timed = [
            (arm, t)
            for arm, cells in timings.items()
            for t in cells.values()
            if t.get('trained_flops')
            and t.get('seconds')
            and device.items() <= ({'devices': 1} | dict(t)).items()
        ]
        if not timed:
            return None
        steady = [(arm, t) for arm, t in timed if not t.get('first')]

        def rate(chosen: list[tuple[str, Mapping[str, Any]]]) -> float:
            return sum(t['seconds'] for _, t in chosen) / sum(t['trained_flops'] for _, t in chosen)

        def rate_of(arm: str) -> float:
            return rate([x for x in steady if x[0] == arm] or steady or timed)

        starts = [
            t['seconds'] - rate_of(arm) * t['trained_flops'] for arm, t in timed if t.get('first')
        ]
        start = max(sum(starts) / len(starts), 0.0) if starts and steady else 0.0
        return {
            arm: n * self.flops[arm] * rate_of(arm) + (start if n and arm != started else 0.0)
            for arm, n in self.todo.items()
        }


def clock(seconds: float) -> str:
    """'1:02:03', or 'unknown' where timings that were read as data give no length of time."""
    try:
        return str(datetime.timedelta(seconds=round(seconds)))
    except (ValueError, OverflowError):
        return 'unknown'


def table(plan: Plan, timings: Timings, device: Mapping[str, Any]) -> str:
    """The table that --dry_run prints."""
    seconds = plan.seconds(timings, device)
    width = max(map(len, [*plan.todo, 'all']))
    lines = [f'{"arm":{width}}  cells  FLOPs/cell  FLOPs      time']
    for arm, n in plan.todo.items():
        flops, time = plan.flops[arm], clock(seconds[arm]) if seconds else 'unknown'
        lines.append(f'{arm:{width}}  {n:5}  {flops:.3e}   {n * flops:.3e}  {time}')
    total = sum(n * plan.flops[a] for a, n in plan.todo.items())
    time = clock(sum(seconds.values())) if seconds else 'unknown'
    lines.append(f'{"all":{width}}  {sum(plan.todo.values()):5}  {"":9}   {total:.3e}  {time}')
    time_note = (
        'time: one process, from the seconds per FLOP of cells done on the same number of '
        'devices of this kind'
        if seconds
        else 'time unknown: no cell has been timed yet on this device'
    )
    return '\n'.join([*lines, _FLOPS_NOTE, time_note])
