"""Sends a run's rows of metrics and its result to experiment trackers, such as W&B or MLflow.

`log.trackers` names them. A tracker gets what the run's folder gets: each row of metrics/*.jsonl,
and the object of result.json. It works in a thread of its own and gets copies, so nothing that it
does can change, delay or stop a run. Its first failure is a warning; later ones are silent, and
what comes after a failure is still sent.
"""

import copy
import dataclasses
import hashlib
import importlib
import math
import queue
import re
import threading
import time
from collections.abc import Iterator
from pathlib import PurePath
from typing import Any

from absl import logging
from etils import epath

from moe_vision.common.errors import NotWritten
from moe_vision.common.files import read_json, write_json
from moe_vision.common.json_values import as_dict, finite
from moe_vision.config import check as config_lib
from moe_vision.config import registry
from moe_vision.config.schema import Config
from moe_vision.run_folder.tensorboard import flat

_FILE = 'tracked.json'  # holds the run's id
SECONDS = 60.0  # that the end of a run waits for its trackers
_MOST_WAITING = 10_000  # rows that a tracker which hangs may leave in memory
_ODD = re.compile(r'[^\w\-. /]')  # what MLflow takes in no name
_CHUNK = 100  # parameters that MLflow takes at once


@dataclasses.dataclass(frozen=True)
class Tracked:
    """The run that a tracker is told about.

    Attributes:
      workdir: its folder; `name` is the folder's own name.
      id: 16 letters and digits. It stays the same when the run is continued.
      config: the resolved config, in nested dictionaries as config.json holds them.
      start: the step after which this start of the run begins.
    """

    workdir: str
    name: str
    id: str
    config: dict[str, Any]
    start: int


class Tracker:
    """What a tracker of your own derives from; define what you need.

    One thread makes it and calls all of its methods. They may raise: that is told once in the log.
    A run that was killed and continued sends the rows since its last checkpoint again.
    """

    def __init__(self, run: Tracked):
        self.run = run

    def row(self, row: dict[str, Any]) -> None:
        """Takes a row as a line of metrics/*.jsonl has it: 'step', 'split', 'loss', ..."""

    def result(self, result: dict[str, Any]) -> None:
        """Takes the final result, as result.json has it."""

    def close(self) -> None:
        """The process trains no further: the run is over, or was stopped."""


class Wandb(Tracker):
    """Weights & Biases. WANDB_PROJECT, WANDB_ENTITY and WANDB_MODE say where the run goes."""

    def __init__(self, run: Tracked):
        super().__init__(run)
        wandb = importlib.import_module('wandb')
        self._run = wandb.init(id=run.id, name=run.name, config=run.config, resume='allow')
        self._run.define_metric('*', step_metric='step')  # a continued run may send a step again

    def row(self, row: dict[str, Any]) -> None:
        self._run.log({'step': row['step'], **dict(_numbers(row, row['split']))})

    def result(self, result: dict[str, Any]) -> None:
        self._run.summary.update({f'result/{name}': value for name, value in result.items()})

    def close(self) -> None:
        self._run.finish()


class Mlflow(Tracker):
    """MLflow. MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME say where the run goes."""

    def __init__(self, run: Tracked):
        super().__init__(run)
        self._mlflow = mlflow = importlib.import_module('mlflow')
        tags = {'moe_vision.id': run.id}
        found = mlflow.search_runs(
            filter_string=f"tags.`moe_vision.id` = '{run.id}'", output_format='list'
        )
        if found:
            mlflow.start_run(run_id=found[0].info.run_id)
            return
        mlflow.start_run(run_name=run.name, tags=tags)
        parameters = list(_leaves(run.config))
        for first in range(0, len(parameters), _CHUNK):
            mlflow.log_params(dict(parameters[first : first + _CHUNK]))

    def row(self, row: dict[str, Any]) -> None:
        self._log(_numbers(row, row['split']), row['step'])

    def result(self, result: dict[str, Any]) -> None:
        self._log(_numbers(result, 'result'), result['steps'])

    def close(self) -> None:
        self._mlflow.end_run()

    def _log(self, numbers: Iterator[tuple[str, float]], step: int) -> None:
        named = {_ODD.sub('_', name): value for name, value in numbers}
        self._mlflow.log_metrics(named, step=step)


class Trackers:
    """All trackers of a run. Without a config, or names in its `log.trackers`, it does nothing.

    Args:
      workdir, start: as `Tracked` has them.
    """

    def __init__(self, config: Config | None = None, workdir: str = '', start: int = 0):
        self._each: list[_Thread] = []
        if config and config.log.trackers:
            name, values = PurePath(workdir).name or 'run', config_lib.to_dict(config)
            run = Tracked(workdir, name, _id(workdir, start), values, start)
            self._each = [_Thread(n, copy.deepcopy(run)) for n in config.log.trackers]

    def row(self, row: dict[str, Any]) -> None:
        """Hands on a row of metrics."""
        self._tell('row', row)

    def result(self, result: dict[str, Any]) -> None:
        """Hands on the result of the run."""
        self._tell('result', result)

    def _tell(self, what: str, value: dict[str, Any]) -> None:
        for thread in self._each:
            thread.tell(what, copy.deepcopy(finite(value)))

    def close(self) -> None:
        """Waits until all is sent, but not for long."""
        until = time.monotonic() + SECONDS
        for thread in self._each:
            thread.tell('close')
        for thread in self._each:
            thread.join(max(0.0, until - time.monotonic()))
            if thread.is_alive():
                thread.warn(f'it has not taken all within {SECONDS:g} s, and is not waited for')
        self._each = []


class _Thread(threading.Thread):
    """Makes one tracker and hands on what it is told, one after the other."""

    def __init__(self, name: str, run: Tracked):
        super().__init__(name=f'tracker {name}', daemon=True)
        self._told: queue.Queue[tuple[str, tuple[Any, ...]]] = queue.Queue(_MOST_WAITING)
        self._tracker, self._run, self._warned = name, run, False
        self.start()

    def tell(self, what: str, *value: Any) -> None:
        """Hands on a call of a method of the tracker, without waiting for it."""
        try:
            if self.is_alive():
                self._told.put_nowait((what, value))
        except queue.Full:
            self.warn(f'it leaves {_MOST_WAITING:,} rows waiting')

    def run(self) -> None:
        try:
            entry = registry.entry('tracker', registry.TRACKERS, self._tracker)
            tracker = registry.load(entry.path)(self._run)
        except BaseException as e:  # also what ends a process: it ends no run
            self.warn(f'{type(e).__name__}: {e}')
            return
        what = ''
        while what != 'close':
            what, value = self._told.get()
            try:
                getattr(tracker, what)(*value)
            except BaseException as e:
                self.warn(f'{type(e).__name__}: {e}')

    def warn(self, why: str) -> None:
        """Says why something failed, once; the run goes on."""
        if not self._warned:
            self._warned = True
            logging.warning(
                "tracker '%s' fails (%s); the run goes on, and has all rows in its own folder",
                self._tracker,
                ' '.join(why.split())[:300],
            )


def _id(workdir: str, start: int) -> str:
    """The id of the run in a folder: that which it has, if it is continued, or a new one."""
    path = epath.Path(workdir) / _FILE
    if start:
        try:
            known = as_dict(read_json(path)).get('id')
            if isinstance(known, str) and re.fullmatch('[0-9a-f]{16}', known):
                return known
        except (OSError, ValueError):
            pass
    new = hashlib.sha256(f'{workdir} {time.time_ns()}'.encode()).hexdigest()[:16]
    try:
        write_json(path, {'id': new})
    except NotWritten as e:
        logging.warning('%s A run that goes on will be another one for its trackers.', e)
    return new


def _numbers(values: dict[str, Any], prefix: str) -> Iterator[tuple[str, float]]:
    """('train/layers/block_3/drop_rate', 0.1) for every finite number."""
    for name, value in flat(values):
        if isinstance(value, int | float) and math.isfinite(value):
            yield f'{prefix}/{name}', float(value)


def _leaves(values: Any, prefix: str = '') -> Iterator[tuple[str, Any]]:
    """('model.moe.k', 2) for every value of nested dictionaries."""
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f'{prefix}{name}.')
        else:
            yield f'{prefix}{_ODD.sub("_", name)}', value
