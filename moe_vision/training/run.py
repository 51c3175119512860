"""Keeps a run's folder while it trains: metrics rows, checkpoints, the best state, the result.

with Run(setup, config, workdir) as run:
    start, state = run.restore()
    run.begin(start)
    ... run.row, run.add, run.validate, run.save ...
    result, layers = run.finish(state, rate)
"""

import json
import math
from typing import Any

import jax
from absl import logging
from etils import epath

from moe_vision import report
from moe_vision.common.errors import UserError
from moe_vision.common.files import write_json
from moe_vision.config.schema import Config
from moe_vision.processes import peers
from moe_vision.run_folder import checkpoints, metrics, record
from moe_vision.training.setup import Setup
from moe_vision.training.step import TrainState
from moe_vision.training.warnings import Health


class Run:
    """Writes what a training loop produces for one seed. Use `with`: leaving it waits for saves.

    In a run of several processes all of them call every method; the first one writes.
    """

    def __init__(self, setup: Setup, config: Config, workdir: str, config_file: str = ''):
        self.setup, self.config, self.workdir = setup, config, workdir
        self._config_file = config_file
        self._folder = epath.Path(workdir)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._writes = peers.first()
        if self._writes:
            record.warn_if_changed(workdir, config)
            record.warn_if_other_data(workdir, setup.info)
        peers.check_shared(self._folder, record.digest(config))
        if not peers.same(setup.info.digest):
            raise UserError(
                f"the processes read different data as '{setup.info.name}'; prepare "
                'the set once and give every process a copy of it.'
            )
        self.saved = checkpoints.Checkpoints(workdir, config.checkpoint.keep)
        self.interval = metrics.Interval(config.model.moe.num_experts, config.train.skip_nonfinite)
        self._health = Health(config)
        self._writer: Any = None  # metrics.Writer
        self._closed = False
        self._best: tuple[float, int] | None = None  # accuracy, step
        self._validated: set[int] = set()

    def restore(self, at_most: int | None = None) -> tuple[int, TrainState]:
        """(steps done, state) to continue from: the newest checkpoint, or the fresh state.

        Args:
          at_most: delete the checkpoints after this step first.
        """
        if at_most is not None:
            self.saved.forget_after(at_most)
        restored = self.saved.restore_newest(self.setup.abstract)
        return restored or (0, self.setup.fresh_state(self.config.seed))

    def begin(self, start: int) -> None:
        """Writes config.json and prepares to write the metrics rows after step `start`."""
        total = self.setup.times.total
        if start:
            logging.info('continuing at step %d of %d', start, total)
        kept = [r for r in metrics.read(self.workdir) if r['step'] <= start]
        self.interval.put_back(metrics.read_pending(self.workdir, start))
        for row in kept:
            self._is_best(row)
            if row['split'] == 'validation':
                self._validated.add(row['step'])
            self.interval.in_a_row = row.get('skipped_in_a_row', self.interval.in_a_row)
        peers.barrier('rows are read')
        if self._writes:
            record.write_config(
                self.workdir, self.config, self._config_file, self.setup.info, self.setup.cost
            )
            self._writer = metrics.Writer(self.workdir, start, kept)

    def row(self) -> dict[str, Any]:
        """The row of training metrics for the steps in `interval`.

        Raises:
          Diverged: the loss or gradient was not finite in more steps in a row than allowed.
        """
        try:
            return self.interval.row(self.setup.times.per_epoch)
        except metrics.NonFiniteStep as e:
            steps = self.saved.steps()
            last = (
                f'the last finite checkpoint is step {steps[0]}' if steps else 'no checkpoint yet'
            )
            raise Diverged(
                f'{e}; {last}. Try a lower train.learning_rate, a longer train.warmup_epochs, '
                'train.clip_norm=1 or model.dtype=float32, with a new --workdir.'
            ) from e

    def add(self, row: dict[str, Any]) -> None:
        """Writes a row of training metrics and logs warnings about its routing."""
        if self._writer:
            self._writer.add(row)
            self._health.check(row)

    def validates(self, step: int) -> bool:
        """Whether a validation is due after this step that no earlier start of the run has done."""
        return (
            step in self.setup.times.evaluations - self._validated
            and 'validation' in self.setup.info.split_sizes
        )

    def validate(self, step: int, state: TrainState) -> dict[str, Any]:
        """Scores the validation split, writes its row, and saves the state if it is the best."""
        times = self.setup.times
        scores = self.setup.evaluator.score(state, 'validation', step / times.total)
        row = {'step': step, 'epoch': step / times.per_epoch, 'split': 'validation', **scores}
        if self._writer:
            self._writer.add(row)
        if self._is_best(row):
            self.saved.save_best(step, _own(state))
        return row

    def _is_best(self, row: dict[str, Any]) -> bool:
        """Whether this is the best validation so far, which it then records."""
        if row['split'] != 'validation' or self._best and row['accuracy'] <= self._best[0]:
            return False
        self._best = row['accuracy'], row['step']
        return True

    def saves(self, step: int) -> bool:
        """Whether `save` writes anything after this step."""
        return step in self.setup.times.evaluations | self.setup.times.checkpoints

    def save(self, step: int, state: TrainState) -> None:
        """Saves rows and state if they are due after this step."""
        if self.saves(step) and self._writer:
            self._writer.flush()  # first: a run continued from the checkpoint will not rewrite them
        if step in self.setup.times.checkpoints:
            self.saved.save(step, _own(state))

    def save_now(self, step: int, state: TrainState) -> int:
        """Saves everything at any step, so that the run can continue from here bit for bit.

        Returns the step of the newest checkpoint, an older one if this save failed.
        """
        if self._writer:
            self._writer.flush()
            if pending := self.interval.pending():
                self._writer.leave_pending(step, pending)
        self.saved.save(step, _own(state))
        return max(self.saved.steps(), default=0)

    def finish(self, state: TrainState, rate: float) -> tuple[dict[str, Any], dict[str, Any]]:
        """Scores the test split; writes evaluation.json and result.json.

        Args:
          rate: images per second of the training; NaN if this process took no step to measure.

        Returns:
          What result.json holds, and the test split's telemetry by layer, which `probe` reads.
        """
        evaluator, total = self.setup.evaluator, self.setup.times.total
        self.saved.wait()  # a crash from here on loses no step
        test = evaluator.score(state, 'test', 1.0, details=True)
        selected, best = None, self._best
        if best and best[1] == int(state.step):
            selected = test['accuracy']
        elif best:
            restored = self.saved.restore_best(self.setup.abstract)
            if restored:
                step, best_state = restored
                selected = evaluator.accuracy(best_state, 'test', step / total)
        if math.isnan(rate):
            rate = _rate_before(self.workdir)
        result = record.result(
            self.config, self.setup.cost, test, best and best[0], selected, int(state.step), rate
        )
        if self._writes:
            write_json(
                self._folder / 'evaluation.json',
                {'split': 'test', 'class_names': self.setup.info.class_names, **test},
            )
            write_json(self._folder / 'result.json', result)
            if self._writer:
                self._writer.close()
        return result, test['layers']

    def __enter__(self) -> 'Run':
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def close(self) -> None:
        """Waits for what is still being written. May be called more than once."""
        if self._closed:
            return
        self._closed = True
        if self._writer:
            self._writer.flush()
        self.saved.close()

    def report(self) -> str:
        """Writes report.html; returns its path."""
        return str(report.write(self.workdir))

    def probe(self, state: TrainState, test_layers: dict[str, Any]) -> None:
        """Writes mechanism.json: what the routes and experts of the trained network are worth.

        Args:
          test_layers: the test split's telemetry, as `finish` returns it.
        """
        from moe_vision.training import probes

        rows = metrics.read(self.workdir) if self._writes else []
        mechanism = probes.probe(self.setup, state, rows, test_layers)
        if self._writes:
            write_json(self._folder / 'mechanism.json', mechanism)


class Diverged(UserError):
    """The loss or gradient was not finite in more steps in a row than `train.skip_nonfinite`."""


def _rate_before(workdir: str) -> float:
    """Images per second as an earlier start of the run recorded them; NaN if none did."""
    path = epath.Path(workdir) / 'result.json'
    rates = [(r.get('timing') or {}).get('images_per_second') for r in metrics.read(workdir)]
    if path.exists():
        rates.append(json.loads(path.read_text()).get('images_per_second'))
    return next((r for r in reversed(rates) if r is not None), float('nan'))


def _own(state: TrainState) -> TrainState:
    """A copy for the asynchronous save: on a CPU the next step reuses the memory it reads."""
    return jax.tree.map(jax.numpy.copy, state) if jax.default_backend() == 'cpu' else state
