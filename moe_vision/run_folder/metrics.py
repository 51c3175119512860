"""Collects a run's metrics in rows; writes them as JSON lines and as TensorBoard events.

A row of training metrics holds means over the steps since the row before it; only 'bad_images', the
images masked because they cannot be decoded, is a sum. The config alone decides where rows end, so
a continued run writes the same rows as an uninterrupted one. Whatever depends on the clock is under
'timing'. No file is appended to, because a bucket cannot do that.
"""

import contextlib
import json
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epath

from moe_vision.common import files, metric_rows
from moe_vision.common.files import write
from moe_vision.common.json_values import finite, parse
from moe_vision.common.metric_rows import Damage
from moe_vision.routing import telemetry
from moe_vision.run_folder import tensorboard


class Interval:
    """Collects the metrics of steps, which stay on the device until `row` fetches them.

    Args:
      may_skip: how many consecutive steps may have a loss or gradient that is not finite. The
        training step has skipped their updates.
    """

    def __init__(self, may_skip: int = 0):
        self._may_skip = may_skip
        self._pending: list[tuple[int, Any]] = []
        self._put_back = 0  # how many of them an earlier start of the run computed
        self.in_a_row = 0  # consecutive steps skipped up to now

    def add(self, step: int, metrics: Any) -> None:
        """Adds the metrics of a step, without waiting for them."""
        self._pending.append((step, metrics))

    def pending(self) -> list[tuple[int, Any]]:
        """(step, metrics) for each step since the last row, as values that JSON holds exactly."""
        return [
            (s, jax.tree.map(lambda x: np.asarray(x).tolist(), jax.device_get(m)))
            for s, m in self._pending
        ]

    def check(self) -> None:
        """Raises NonFiniteStep if `row` would now. The steps stay for the next row."""
        before = self.in_a_row
        self._drop_misfits()
        for step, values in self._pending:
            self._is_finite(step, values)
        self.in_a_row = before

    def put_back(self, pending: list[tuple[int, Any]]) -> None:
        """Restores the steps that `pending` returned."""
        self._put_back = len(pending)
        self._pending = [
            (s, jax.tree.map(np.asarray, m, is_leaf=lambda leaf: isinstance(leaf, list)))
            for s, m in pending
        ]

    def row(self, per_epoch: float) -> dict[str, Any]:
        """The row for the steps since the last one. Its means leave out skipped steps.

        Args:
          per_epoch: steps of an epoch.

        Raises:
          NonFiniteStep: more than `may_skip` consecutive steps were not finite.
        """
        self._drop_misfits()
        steps = [s for s, _ in self._pending]
        fetched = jax.device_get([m for _, m in self._pending])
        self._pending, self._put_back = [], 0
        values = [v for s, v in zip(steps, fetched, strict=True) if self._is_finite(s, v)]
        skipped = {'skipped': len(steps) - len(values), 'skipped_in_a_row': self.in_a_row}
        values = values or fetched
        scalars = jax.tree.map(
            _mean, *[{k: x for k, x in v.items() if k != 'layers'} for v in values]
        )
        sums = jax.tree.map(
            lambda *xs: np.sum([np.float64(x) for x in xs], axis=0), *[v['layers'] for v in values]
        )
        scalars['learning_rate'] = float(fetched[-1]['learning_rate'])
        scalars['bad_images'] = sum(int(v['bad_images']) for v in fetched)
        return {
            'step': steps[-1],
            'epoch': steps[-1] / per_epoch,
            'split': 'train',
            **scalars,
            **(skipped if self._may_skip else {}),
            'layers': {n: telemetry.summarize(s) for n, s in sums.items()},
        }

    def _drop_misfits(self) -> None:
        """Drops the steps that were put back if their metrics are not those of this run."""
        if not self._pending:
            return
        last = jax.tree.map(np.shape, self._pending[-1][1])
        misfits = [
            s for s, m in self._pending[: self._put_back] if jax.tree.map(np.shape, m) != last
        ]
        if misfits:
            logging.warning(
                'the metrics that the last start of the run kept of steps %d to %d are '
                'not those of this config; the row of step %d is without them',
                misfits[0],
                misfits[-1],
                self._pending[-1][0],
            )
            self._pending = [(s, m) for s, m in self._pending if s not in misfits]

    def _is_finite(self, step: int, values: Any) -> bool:
        """Whether the step was not skipped; counts consecutive skipped ones."""
        for name in ('loss', 'grad_norm'):
            if not math.isfinite(float(values[name])):
                self.in_a_row += 1
                if self.in_a_row > self._may_skip:
                    raise NonFiniteStep(step, name, self.in_a_row)
                return False
        self.in_a_row = 0
        return True


def _mean(*values: Any) -> float:
    return float(sum(map(float, values)) / len(values))


class NonFiniteStep(Exception):
    """The loss or the gradient norm of `step` is not a finite number."""

    def __init__(self, step: int, name: str, in_a_row: int = 1):
        count = f', in {in_a_row} steps in a row' if in_a_row > 1 else ''
        super().__init__(f'{name} is not finite at step {step}{count}')


class Writer:
    """Writes rows to W/metrics/*.jsonl and W/events, from a step on.

    Rows that cannot be written are kept and written with the next ones. One warning says so, until
    writing has worked again.

    Args:
      start_step: the step from which the run starts or continues.
      kept: all rows up to it. The files of later rows, from before the run was stopped, are
        deleted.
      damaged: what in W/metrics cannot be read. It is named in the log and kept in files of its
        own, `NAME.set_aside_1`.

    Raises:
      OSError: the folder cannot be changed.
    """

    def __init__(
        self,
        workdir: str,
        start_step: int,
        kept: list[dict[str, Any]],
        damaged: Sequence[Damage] = (),
    ):
        self._rows, self._events = (epath.Path(workdir) / n for n in ('metrics', 'events'))
        for folder in (self._rows, self._events):
            folder.mkdir(parents=True, exist_ok=True)
        self._waiting: list[dict[str, Any]] = []
        self._tell: Callable[[dict[str, Any]], None] = lambda row: None
        self._failing = ''  # why the last write failed
        self._written: set[str] = set()  # names of the files of rows
        self._start = start_step
        name = f'until-{start_step:09d}'
        old = [p for p in self._rows.glob('*.json*') if p.suffix in ('.json', '.jsonl')]
        stay = _set_aside(self._rows, damaged)
        if _pending(start_step) not in {d.file for d in damaged}:
            stay.add(_pending(start_step))
        if kept:
            stay.add(f'{name}.jsonl')
            self._write(f'{name}.jsonl', kept)
        for path in old:
            if path.name not in stay:
                path.unlink()
        for path in self._events.glob('*until-*'):
            if path.name.rpartition('until-')[2] > f'{start_step:09d}':
                path.unlink()

    def also(self, tell: Callable[[dict[str, Any]], None]) -> None:
        """Gives each row that is added to this function, too."""
        self._tell = tell

    def add(self, row: dict[str, Any]) -> None:
        """Adds a row, to be written by the next `flush`."""
        self._waiting.append(row)
        self._tell(row)

    def flush(self) -> bool:
        """Writes the added rows to new files. Returns whether no row is waiting any more."""
        if not self._waiting:
            return True
        # Names both steps: the run may continue at the very step with which an older file ends.
        name = f'{self._start:09d}-until-{self._waiting[-1]["step"]:09d}'
        try:
            if self._failing:  # someone may have removed them; not so W, which is not made again
                self._rows.mkdir(exist_ok=True)
                self._events.mkdir(exist_ok=True)
            self._write(f'{name}.jsonl', self._waiting)
            write(self._events / f'events.out.tfevents.{name}', tensorboard.encode(self._waiting))
        except OSError as e:
            if not self._failing:
                logging.warning(
                    'rows of metrics cannot be written (%s); they are kept and tried '
                    'again with the next ones, without another warning',
                    files.reason(e),
                )
            self._failing = files.reason(e)
            return False
        if self._failing:
            logging.info('rows of metrics are written again, those that were kept too')
        self._waiting, self._failing = [], ''
        return True

    def _write(self, name: str, rows: list[dict[str, Any]]) -> None:
        write(self._rows / name, ''.join(json.dumps(finite(r)) + '\n' for r in rows).encode())
        self._written.add(name)

    def leave_pending(self, step: int, pending: list[tuple[int, Any]]) -> bool:
        """Writes the steps since the last row, for `read_pending` when the run continues.

        Returns whether they could be written.
        """
        try:
            write(self._rows / _pending(step), json.dumps(pending).encode())
        except OSError as e:
            logging.warning(
                'the metrics of %d steps cannot be written (%s)', len(pending), files.reason(e)
            )
            return False
        return True

    def lost(self) -> list[str]:
        """What should be in W/metrics but is not, in words."""
        lost = []
        if self._written - {path.name for path in self._rows.glob('*.jsonl')}:
            lost.append('rows of metrics that were written before')
        if self._waiting:
            first, last = (self._waiting[i]['step'] for i in (0, -1))
            why = f' ({self._failing})' if self._failing else ''
            lost.append(f'rows of metrics of steps {first} to {last}{why}')
        return lost

    def close(self) -> None:
        """Deletes pending steps: the run is over."""
        for path in self._rows.glob('pending-*.json'):
            with contextlib.suppress(OSError):
                path.unlink()


def _set_aside(folder: epath.Path, damaged: Sequence[Damage]) -> set[str]:
    """Keeps damaged lines in files of their own and names them in the log.

    Returns the names of files that cannot be read at all; they stay as they are.
    """
    left = {d.file for d in damaged if not d.data}
    for name, said in zip(
        dict.fromkeys(d.file for d in damaged), metric_rows.in_words(damaged), strict=True
    ):
        if name in left:
            logging.warning("%s: it is left out, and stays in '%s'", said, folder)
            continue
        number = 1
        while (to := folder / f'{name}.set_aside_{number}').exists():
            number += 1
        write(to, b''.join(d.data + b'\n' for d in damaged if d.file == name))
        logging.warning("%s: it is left out, and kept in '%s'", said, to)
    return left


def read_pending(workdir: str, step: int) -> tuple[list[tuple[int, Any]], list[Damage]]:
    """The steps that `leave_pending` wrote at this step, and the file if it is damaged."""
    path = epath.Path(workdir) / 'metrics' / _pending(step)
    data = b''
    try:
        data = files.read(path)
        pending = parse(data)
        _check_pending(pending, step)
    except FileNotFoundError:
        return [], []
    except ValueError as e:
        return [], [Damage(path.name, 0, data, str(e))]
    return [(s, m) for s, m in pending], []


def _check_pending(pending: Any, step: int) -> None:
    """Raises ValueError unless these are metrics of consecutive steps that end with `step`."""
    if not isinstance(pending, list) or not all(
        isinstance(pair, list) and len(pair) == 2 for pair in pending
    ):
        raise ValueError('not a list of steps with their metrics')
    steps = [s for s, _ in pending]
    if steps != list(range(step - len(steps) + 1, step + 1)):
        raise ValueError(f'its steps are not those before step {step}')
    for _, values in pending:
        if not isinstance(values, dict) or not isinstance(values.get('layers'), dict):
            raise ValueError('not the metrics of a step')
        for leaf in jax.tree.leaves(values, is_leaf=lambda x: not isinstance(x, dict)):
            if np.asarray(leaf).dtype.kind not in 'iuf':  # ragged lists raise ValueError
                raise ValueError('it holds what is not a number')


def _pending(step: int) -> str:
    return f'pending-{step:09d}.json'


def read(workdir: str) -> list[dict[str, Any]]:
    """All rows of a run by step. Leaves out lines that cannot be read and names them in the log."""
    rows, damaged = metric_rows.read(epath.Path(workdir) / 'metrics')
    for said in metric_rows.in_words(damaged):
        logging.warning('%s: it is left out', said)
    return rows
