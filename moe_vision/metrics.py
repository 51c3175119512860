"""Metrics of a run: rows as JSON lines in files that are never appended to, and TensorBoard events.

A row of training metrics is the mean over the steps since the row before ('bad_images', rows that
were masked because their image cannot be decoded, is their sum); where rows end depends
on the config alone, so that a continued run writes the rows of an uninterrupted one. What depends
on the clock stands under 'timing'.
"""

import json
import math
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epath

from moe_vision.files import finite
from moe_vision.routing import telemetry


class Interval:
    """Collects the metrics of steps, on the device until `row` fetches them."""

    def __init__(self, num_experts: int):
        self._num_experts = num_experts
        self._pending: list[tuple[int, Any]] = []

    def add(self, step: int, metrics: Any) -> None:
        self._pending.append((step, metrics))

    def row(self, per_epoch: float) -> dict[str, Any]:
        """The row for the steps since the last one.

        Raises:
          NonFinite: a loss or gradient was not finite; carries the first such step.
        """
        steps = [s for s, _ in self._pending]
        values = jax.device_get([m for _, m in self._pending])
        self._pending = []
        for step, v in zip(steps, values, strict=True):
            for name in ('loss', 'grad_norm'):
                if not math.isfinite(float(v[name])):
                    raise NonFinite(step, name)
        n = len(values)
        mean = lambda *xs: float(sum(map(float, xs)) / n)  # noqa: E731
        scalars = jax.tree.map(mean, *[{k: x for k, x in v.items() if k != 'layers'}
                                       for v in values])
        sums = jax.tree.map(lambda *xs: np.sum([np.float64(x) for x in xs], axis=0),
                            *[v['layers'] for v in values])
        scalars['learning_rate'] = float(values[-1]['learning_rate'])
        scalars['bad_images'] = sum(int(v['bad_images']) for v in values)
        return {'step': steps[-1], 'epoch': steps[-1] / per_epoch, 'split': 'train', **scalars,
                'layers': {n: telemetry.summarize(s, self._num_experts) for n, s in sums.items()}}


class NonFinite(Exception):
    """The loss or the gradient norm of `step` is not a finite number."""

    def __init__(self, step: int, what: str):
        super().__init__(f'{what} is not finite at step {step}')


class Writer:
    """Writes rows to W/metrics/*.jsonl and W/events, from a step on.

    Rows of an earlier life of the run after `start_step` are dropped.
    """

    def __init__(self, workdir: str, start_step: int):
        from tensorboardX import SummaryWriter

        self._folder = epath.Path(workdir) / 'metrics'
        self._folder.mkdir(parents=True, exist_ok=True)
        self.kept = [r for r in read(workdir) if r['step'] <= start_step]
        self._waiting: list[dict[str, Any]] = []
        old = list(self._folder.glob('*.jsonl'))
        if self.kept:
            self._write(f'until-{start_step:09d}.jsonl', self.kept)
        for path in old:
            if path.name != f'until-{start_step:09d}.jsonl' or not self.kept:
                path.unlink()
        purge = {'purge_step': start_step + 1} if start_step else {}
        self._events = SummaryWriter(str(epath.Path(workdir) / 'events'), **purge)

    def add(self, row: dict[str, Any]) -> None:
        self._waiting.append(row)
        for name, value in flat(row):
            if math.isfinite(value):
                self._events.add_scalar(f'{row["split"]}/{name}', value, row['step'])

    def flush(self) -> None:
        """Puts what was added into a file of its own."""
        if self._waiting:
            self._write(f'until-{self._waiting[-1]["step"]:09d}.jsonl', self._waiting)
            self._waiting = []
        self._events.flush()

    def close(self) -> None:
        self.flush()
        self._events.close()

    def _write(self, name: str, rows: list[dict[str, Any]]) -> None:
        text = ''.join(json.dumps(finite(r)) + '\n' for r in rows)
        part = self._folder / f'.{name}.part'
        part.write_text(text)
        part.replace(self._folder / name)


def read(workdir: str) -> list[dict[str, Any]]:
    """All rows of a run, by step; a line that cannot be read is skipped and named in the log.

    A row found twice (a restart was interrupted while it rewrote the files) counts once.
    """
    rows = {}
    for path in sorted((epath.Path(workdir) / 'metrics').glob('*.jsonl')):
        for number, line in enumerate(path.read_text().splitlines(), 1):
            try:
                row = json.loads(line)
                rows[row['step'], row['split'] != 'train'] = row
            except (ValueError, KeyError, TypeError):
                logging.warning('%s line %d is not JSON and is left out', path, number)
    return [rows[at] for at in sorted(rows)]


def flat(row: dict[str, Any], prefix: str = '') -> list[tuple[str, float]]:
    """('layers/block_3/drop_rate', 0.1) for every number of a row, step and probe aside."""
    out: list[tuple[str, float]] = []
    for key, value in row.items():
        name = f'{prefix}{key}'
        if isinstance(value, dict) and name != 'probe':
            out += flat(value, f'{name}/')
        elif isinstance(value, list):
            out += [(f'{name}/{i}', v) for i, v in enumerate(value)]
        elif isinstance(value, (int, float)) and name != 'step':
            out.append((name, value))
    return out
