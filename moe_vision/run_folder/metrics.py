"""Metrics of a run: rows as JSON lines and as TensorBoard events, in files never appended to.

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

from moe_vision.common.files import write
from moe_vision.common.json_values import finite
from moe_vision.routing import telemetry
from moe_vision.run_folder import tensorboard


class Interval:
    """Collects the metrics of steps, on the device until `row` fetches them.

    Args:
      num_experts: E.
      may_skip: steps in a row whose loss or gradient may be not finite; their update was skipped.
    """

    def __init__(self, num_experts: int, may_skip: int = 0):
        self._num_experts, self._may_skip = num_experts, may_skip
        self._pending: list[tuple[int, Any]] = []
        self.in_a_row = 0  # steps skipped until now

    def add(self, step: int, metrics: Any) -> None:
        self._pending.append((step, metrics))

    def pending(self) -> list[tuple[int, Any]]:
        """The steps since the last row, as JSON can hold them to the bit."""
        return [(s, jax.tree.map(lambda x: np.asarray(x).tolist(), jax.device_get(m)))
                for s, m in self._pending]

    def put_back(self, pending: list[tuple[int, Any]]) -> None:
        """What `pending` gave."""
        as_arrays = lambda x: jax.tree.map(  # noqa: E731
            np.asarray, x, is_leaf=lambda leaf: isinstance(leaf, list))
        self._pending = [(s, as_arrays(m)) for s, m in pending]

    def row(self, per_epoch: float) -> dict[str, Any]:
        """The row for the steps since the last one; means over those that were not skipped.

        Raises:
          NonFiniteStep: a loss or gradient was not finite once too often; carries that step.
        """
        steps = [s for s, _ in self._pending]
        fetched = jax.device_get([m for _, m in self._pending])
        self._pending = []
        values = [v for s, v in zip(steps, fetched, strict=True) if self._is_finite(s, v)]
        skipped = {'skipped': len(steps) - len(values), 'skipped_in_a_row': self.in_a_row}
        values = values or fetched
        n = len(values)
        mean = lambda *xs: float(sum(map(float, xs)) / n)  # noqa: E731
        scalars = jax.tree.map(mean, *[{k: x for k, x in v.items() if k != 'layers'}
                                       for v in values])
        sums = jax.tree.map(lambda *xs: np.sum([np.float64(x) for x in xs], axis=0),
                            *[v['layers'] for v in values])
        scalars['learning_rate'] = float(fetched[-1]['learning_rate'])
        scalars['bad_images'] = sum(int(v['bad_images']) for v in fetched)
        return {'step': steps[-1], 'epoch': steps[-1] / per_epoch, 'split': 'train', **scalars,
                **(skipped if self._may_skip else {}),
                'layers': {n: telemetry.summarize(s, self._num_experts) for n, s in sums.items()}}

    def _is_finite(self, step: int, values: Any) -> bool:
        for name in ('loss', 'grad_norm'):
            if not math.isfinite(float(values[name])):
                self.in_a_row += 1
                if self.in_a_row > self._may_skip:
                    raise NonFiniteStep(step, name, self.in_a_row)
                return False
        self.in_a_row = 0
        return True


class NonFiniteStep(Exception):
    """The loss or the gradient norm of `step` is not a finite number."""

    def __init__(self, step: int, what: str, in_a_row: int = 1):
        often = f', in {in_a_row} steps in a row' if in_a_row > 1 else ''
        super().__init__(f'{what} is not finite at step {step}{often}')


class Writer:
    """Writes rows to W/metrics/*.jsonl and W/events, from a step on.

    What cannot be written is kept, and written with the rows that follow.

    Args:
      kept: rows until `start_step`; those of an earlier life of the run after it are dropped.
    """

    def __init__(self, workdir: str, start_step: int, kept: list[dict[str, Any]]):
        self._rows, self._events = (epath.Path(workdir) / n for n in ('metrics', 'events'))
        for folder in (self._rows, self._events):
            folder.mkdir(parents=True, exist_ok=True)
        self._waiting: list[dict[str, Any]] = []
        self._start = start_step
        name = f'until-{start_step:09d}'
        old = list(self._rows.glob('*.json*'))
        if kept:
            write(self._rows / f'{name}.jsonl', _lines(kept))
        for path in old:
            if path.name not in (f'{name}.jsonl' if kept else '', _pending(start_step)):
                path.unlink()
        for path in self._events.glob('*until-*'):
            if path.name.rpartition('until-')[2] > f'{start_step:09d}':
                path.unlink()

    def add(self, row: dict[str, Any]) -> None:
        self._waiting.append(row)

    def flush(self) -> None:
        """Puts what was added into files of its own."""
        if not self._waiting:
            return
        # The first rows may be of the step at which an earlier life ended: another name than its.
        name = f'{self._start:09d}-until-{self._waiting[-1]["step"]:09d}'
        try:
            write(self._rows / f'{name}.jsonl', _lines(self._waiting))
            write(self._events / f'events.out.tfevents.{name}', tensorboard.encode(self._waiting))
        except OSError as e:
            logging.warning('rows of metrics cannot be written (%s); %d are kept and tried again '
                            'with the next', e.strerror or e, len(self._waiting))
        else:
            self._waiting = []

    def leave_pending(self, step: int, pending: list[tuple[int, Any]]) -> None:
        """Keeps the steps since the last row, for `read_pending` in the next life of the run."""
        try:
            write(self._rows / _pending(step), json.dumps(pending).encode())
        except OSError as e:
            logging.warning('the metrics of %d steps cannot be kept (%s)', len(pending), e.strerror)

    def close(self) -> None:
        """The run is over: nothing goes on from a step between two rows."""
        for path in self._rows.glob('pending-*'):
            path.unlink()


def read_pending(workdir: str, step: int) -> list[tuple[int, Any]]:
    """What `leave_pending` kept at this step."""
    path = epath.Path(workdir) / 'metrics' / _pending(step)
    return json.loads(path.read_text()) if path.exists() else []


def _pending(step: int) -> str:
    return f'pending-{step:09d}.json'


def _lines(rows: list[dict[str, Any]]) -> bytes:
    return ''.join(json.dumps(finite(r)) + '\n' for r in rows).encode()


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
