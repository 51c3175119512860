"""Keeps a run's folder while it trains: metrics rows, checkpoints, the best state, the result.

with Run(setup, config, workdir) as run:
    start, state = run.restore()
    run.begin(start)
    ... run.row, run.add, run.validate, run.save ...
    result, layers = run.finish(state, rate)
"""

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import jax
from absl import logging
from etils import epath

from moe_vision import report
from moe_vision.common import metric_rows
from moe_vision.common.errors import NotWritten, UserError
from moe_vision.common.files import reason, write_json
from moe_vision.config.schema import Config
from moe_vision.processes import peers
from moe_vision.run_folder import checkpoints, lives, metrics, record, trackers
from moe_vision.training import continuing
from moe_vision.training.setup import Setup
from moe_vision.training.step import TrainState
from moe_vision.training.warnings import Health, check_classes


class Run:
    """Writes what a training loop produces for one seed. Use `with`: leaving it waits for saves.

    In a run of several processes all of them call every method; the first one writes. What cannot
    be written while the run trains is kept and tried again; what is missing at the end is an error.

    Raises:
      UserError: the folder cannot be used.
    """

    def __init__(self, setup: Setup, config: Config, workdir: str, config_file: str = ''):
        self.setup, self.config, self.workdir = setup, config, workdir
        self._config_file = config_file
        self._folder = epath.Path(workdir)
        self._writes = peers.first()
        with contextlib.ExitStack() as opened:
            if self._writes:
                self._lock = opened.enter_context(continuing.opened(workdir, config, setup.info))
            peers.check_shared(self._folder, record.digest(config))
            if not peers.same(setup.info.digest):
                raise UserError(
                    f"the processes read different data as '{setup.info.name}'; prepare "
                    'the set once and give every process a copy of it.'
                )
            self.saved = opened.enter_context(
                checkpoints.Checkpoints(workdir, config.checkpoint.keep)
            )
            self._opened = opened.pop_all()
        self.interval = metrics.Interval(config.train.skip_nonfinite)
        self._health = Health(config, setup.times.warmup)
        self._writer: Any = None  # metrics.Writer
        self._trackers = trackers.Trackers()
        self._closed = self._skipped = False  # whether the last checkpoint due was left out
        self._lost: list[str] = []  # files that could not be written, in words
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
        """Writes config.json and prepares to write the metrics rows after step `start`.

        Raises:
          UserError: the folder cannot be written.
        """
        total = self.setup.times.total
        if start:
            logging.info('continuing at step %d of %d', start, total)
        rows, damaged = metric_rows.read(self._folder / 'metrics')
        kept = [r for r in rows if r['step'] <= start]
        pending, damaged_pending = metrics.read_pending(self.workdir, start)
        self.interval.put_back(pending)
        for row in kept:
            self._is_best(row)
            if row['split'] == 'validation':
                self._validated.add(row['step'])
            self.interval.in_a_row = row.get('skipped_in_a_row', self.interval.in_a_row)
        peers.barrier('rows are read')
        if self._writes:
            record.write_config(
                self.workdir,
                self.config,
                self._config_file,
                self.setup.info,
                self.setup.cost,
                start,
            )
            try:
                self._writer = metrics.Writer(self.workdir, start, kept, damaged + damaged_pending)
            except OSError as e:
                raise continuing.cannot_begin(self.workdir, e) from e
            self._trackers = trackers.Trackers(self.config, self.workdir, start)
            self._writer.also(self._trackers.row)

    def row(self) -> dict[str, Any]:
        """The row of training metrics for the steps in `interval`.

        Raises:
          Diverged: the loss or gradient was not finite in more steps in a row than allowed.
        """
        with self._diverging():
            return self.interval.row(self.setup.times.per_epoch)

    @contextlib.contextmanager
    def _diverging(self) -> Iterator[None]:
        """Says Diverged where the metrics of a step are not finite."""
        try:
            yield
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
            self._require_lock()
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
        if step in self.setup.times.checkpoints:
            self._save(step, state)
        elif self.saves(step) and self._writer:
            self._writer.flush()

    def _save(self, step: int, state: TrainState, left: bool = True) -> None:
        """Saves a checkpoint if the rows up to it are on disk: a continued run will not write them.

        Args:
          left: whether what else belongs to it is on disk.
        """
        self._require_lock()
        ready = left and (self._writer is None or self._writer.flush())
        self._skipped = not peers.all_agree(ready)
        if not self._skipped:
            self.saved.save(step, _own(state))

    def _require_lock(self) -> None:
        if self._writes:
            continuing.require(self._lock, self.workdir)

    def save_now(self, step: int, state: TrainState) -> None:
        """Saves everything at any step, so that the run can continue from here bit for bit.

        Raises:
          Diverged: as `row` does for the steps since the last one; then nothing is saved.
          NotWritten: that is not possible; the run can continue from an older checkpoint.
        """
        with self._diverging():
            self.interval.check()
        left = True
        if self._writer and (pending := self.interval.pending()):
            left = self._writer.leave_pending(step, pending)
        self._save(step, state, left)
        self._raise_if_lost(step, f'stopped by SIGTERM at step {step}')

    def finish(self, state: TrainState, rate: float) -> tuple[dict[str, Any], dict[str, Any]]:
        """Scores the test split, or else validation; writes evaluation.json and result.json.

        What cannot be written is an error when the run is closed.

        Args:
          rate: images per second of the training; NaN if this process took no step to measure.

        Returns:
          What result.json holds, and that split's telemetry by layer, which `probe` reads.
        """
        evaluator, total = self.setup.evaluator, self.setup.times.total
        if not peers.all_agree(int(state.step) in self.saved.steps()):
            self._save(int(state.step), state)  # once more: it could not be saved when it was due
        self.saved.wait()  # a crash from here on loses no step
        scored = self.setup.info.scored
        test = evaluator.score(state, scored, 1.0, details=True)
        selected, best = None, self._best
        if scored == 'validation':
            pass  # it has chosen the best weights, so it cannot say how good they are
        elif best and best[1] == int(state.step):
            selected = test['accuracy']
        elif best:
            restored = self.saved.restore_best(self.setup.abstract)
            if restored and restored[0] == best[1]:
                step, best_state = restored
                selected = evaluator.accuracy(best_state, scored, step / total)
            else:
                logging.warning(
                    'the best checkpoint, of step %d, cannot be read; result.json is '
                    'without test_accuracy_selected',
                    best[1],
                )
        if math.isnan(rate):
            rate = record.rate_before(self.workdir)
        result = record.result(
            self.config, self.setup.cost, test, best and best[0], selected, int(state.step), rate
        )
        result |= {'scored_split': scored, **evaluator.asked(state, scored)}
        if self._write(
            'evaluation.json', {'split': scored, 'class_names': self.setup.info.class_names, **test}
        ):
            self._write('result.json', result)  # where it is, evaluation.json is, too
        self._trackers.result(result)
        if self._writer:
            self._writer.close()
            check_classes(test, self.setup.info.class_names, self.setup.info.scored)
        return result, test['layers']

    def _write(self, name: str, value: dict[str, Any]) -> bool:
        """Writes a JSON file in the first process; returns whether it is there."""
        try:
            if self._writes:
                write_json(self._folder / name, value)
        except NotWritten as e:
            self._lost.append(f'{name} ({reason(e.__cause__)})')
        return not self._lost

    def __enter__(self) -> 'Run':
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        self.close(check=kind is None)  # else other processes may not come here

    def close(self, check: bool = True) -> None:
        """Waits for what is still being written. May be called more than once.

        Args:
          check: whether to look for what is missing. Then all processes must call this.

        Raises:
          NotWritten: not all that the run has done is in its folder.
        """
        if self._closed:
            return
        self._closed = True
        self._trackers.close()
        if self._writer:
            self._writer.flush()
        try:
            if check:
                self._raise_if_lost(0, 'the run is over')
        finally:
            self._opened.close()

    def _raise_if_lost(self, step: int, what: str) -> None:
        """Raises NotWritten in all processes if something should be in the folder but is not.

        Args:
          step: of the checkpoint that was to be saved; 0 if it is the last one due.
          what: what has happened to the run, for the message.
        """
        lost = [*self._lost, *self.saved.lost()]
        if self._skipped:
            lost.append(f'the checkpoint of step {step}' if step else 'the last checkpoint')
        if self._writer:
            lost += self._writer.lost()
            if not (self._folder / 'config.json').exists():
                lost.insert(0, 'config.json')
        lost = peers.share(lost)
        if lost:
            newest = lives.done(self.workdir)
            go_on = f'continues at step {newest}' if newest else 'begins anew'
            raise NotWritten(
                f"{what}, but these could not be written to '{self.workdir}', or are gone: "
                f'{", ".join(lost)}. Make room, or see what happened to the folder; the same '
                f'command then {go_on}.'
            )

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
        self._write('mechanism.json', mechanism)


class Diverged(UserError):
    """The loss or gradient was not finite in more steps in a row than `train.skip_nonfinite`."""


def _own(state: TrainState) -> TrainState:
    """A copy for the asynchronous save: on a CPU the next step reuses the memory it reads."""
    return jax.tree.map(jax.numpy.copy, state) if jax.default_backend() == 'cpu' else state
