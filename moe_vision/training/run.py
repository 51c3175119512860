"""One run's folder while it trains: rows, checkpoints, what was best, and the end.

    with Run(setup, config, workdir) as run:
        start, state = run.restore()
        run.begin(start)
        ... run.row, run.add, run.validate, run.save ...
        result, layers = run.finish(state, rate)
"""

import json
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
    """What a training loop writes, for one seed of a setup. Use `with`: leaving waits for saves.

    Over several processes all of them call everything, and the first one writes.
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
            raise UserError(f"the processes read different data as '{setup.info.name}'; prepare "
                            'the set once and give every process a copy of it.')
        self.saved = checkpoints.Checkpoints(workdir, config.checkpoint.keep)
        self.interval = metrics.Interval(config.model.moe.num_experts,
                                         config.train.skip_nonfinite)
        self._health = Health(config)
        self._writer: Any = None  # metrics.Writer
        self._closed = False
        self._best: tuple[float, int] | None = None  # accuracy, step
        self._validated: set[int] = set()

    def restore(self, at_most: int | None = None) -> tuple[int, TrainState]:
        """(steps done, state) to go on from: the newest checkpoint, or the fresh state.

        Args:
          at_most: forget the checkpoints after this step first.
        """
        if at_most is not None:
            self.saved.forget_after(at_most)
        restored = self.saved.restore_newest(self.setup.abstract)
        return restored or (0, self.setup.fresh_state(self.config.seed))

    def begin(self, start: int) -> None:
        """Writes config.json and opens the rows that follow step `start`."""
        total = self.setup.times.total
        if start:
            logging.info('continuing at step %d of %d', start, total)
        kept = [r for r in metrics.read(self.workdir) if r['step'] <= start]
        self.interval.put_back(metrics.read_pending(self.workdir, start))
        for row in kept:
            self._better(row)
            if row['split'] == 'validation':
                self._validated.add(row['step'])
            self.interval.in_a_row = row.get('skipped_in_a_row', self.interval.in_a_row)
        peers.barrier('rows are read')
        if self._writes:
            record.write_config(self.workdir, self.config, self._config_file, self.setup.info,
                                self.setup.cost)
            self._writer = metrics.Writer(self.workdir, start, kept)

    def row(self) -> dict[str, Any]:
        """The training row of the steps in `interval`.

        Raises:
          UserError: the loss was not finite.
        """
        try:
            return self.interval.row(self.setup.times.per_epoch)
        except metrics.NonFiniteStep as e:
            steps = self.saved.steps()
            last = (f'the last finite checkpoint is step {steps[0]}' if steps
                    else 'no checkpoint yet')
            raise Diverged(
                f'{e}; {last}. Try a lower train.learning_rate, a longer train.warmup_epochs, '
                'train.clip_norm=1 or model.dtype=float32, with a new --workdir.') from e

    def add(self, row: dict[str, Any]) -> None:
        """Writes a training row, and warns of routing that goes wrong."""
        if self._writer:
            self._writer.add(row)
            self._health.check(row)

    def validates(self, step: int) -> bool:
        """Whether a validation follows this step, and has not been made by an earlier life."""
        return (step in self.setup.times.evaluations - self._validated
                and 'validation' in self.setup.info.split_sizes)

    def validate(self, step: int, state: TrainState) -> dict[str, Any]:
        """Scores the validation split, writes its row, and saves the state if it is the best."""
        times = self.setup.times
        scores = self.setup.evaluator.score(state, 'validation', step / times.total)
        row = {'step': step, 'epoch': step / times.per_epoch, 'split': 'validation', **scores}
        if self._writer:
            self._writer.add(row)
        if self._better(row):
            self.saved.save_best(step, _own(state))
        return row

    def _better(self, row: dict[str, Any]) -> bool:
        if row['split'] != 'validation' or self._best and row['accuracy'] <= self._best[0]:
            return False
        self._best = row['accuracy'], row['step']
        return True

    def saves(self, step: int) -> bool:
        """Whether `save` has something to do after this step."""
        return step in self.setup.times.evaluations | self.setup.times.checkpoints

    def save(self, step: int, state: TrainState) -> None:
        """Saves rows and state where this step is one to save at."""
        if self.saves(step) and self._writer:
            self._writer.flush()  # rows first: those before a checkpoint are not made again
        if step in self.setup.times.checkpoints:
            self.saved.save(step, _own(state))

    def save_now(self, step: int, state: TrainState) -> int:
        """Saves everything at any step, so that the run goes on from here to the bit.

        Returns the step of the newest checkpoint, which is older where this one failed.
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
          rate: images per second; NaN where hardly anything was trained this time.

        Returns:
          What result.json holds, and the test split's telemetry by layer, which `probe` reads.
        """
        evaluator, total = self.setup.evaluator, self.setup.times.total
        self.saved.wait()  # whatever ends the process from here on loses no step
        test = evaluator.score(state, 'test', 1.0, details=True)
        selected, best = None, self._best
        if best and best[1] == int(state.step):
            selected = test['accuracy']
        elif best:
            found = self.saved.restore_best(self.setup.abstract)
            if found:
                selected = evaluator.accuracy(found[1], 'test', found[0] / total)
        if rate != rate:
            rate = _rate_before(self.workdir)
        result = record.result(self.config, self.setup.cost, test, best and best[0], selected,
                               int(state.step), rate)
        if self._writes:
            write_json(self._folder / 'evaluation.json', {
                'split': 'test', 'class_names': self.setup.info.class_names, **test})
            write_json(self._folder / 'result.json', result)
            if self._writer:
                self._writer.close()
        return result, test['layers']

    def __enter__(self) -> 'Run':
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def close(self) -> None:
        """Waits for what is being written. May be called twice."""
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
        """Writes mechanism.json: what the routes of the trained network mean.

        Args:
          test_layers: the test split's telemetry, as `finish` returns it.
        """
        from moe_vision.training import probes

        rows = metrics.read(self.workdir) if self._writes else []
        mechanism = probes.probe(self.setup, state, rows, test_layers)
        if self._writes:
            write_json(self._folder / 'mechanism.json', mechanism)


class Diverged(UserError):
    """The loss or the gradient of a run is not finite once too often."""


def _rate_before(workdir: str) -> float:
    """Images per second as an earlier life of the run left them."""
    path = epath.Path(workdir) / 'result.json'
    rates = [(r.get('timing') or {}).get('images_per_second') for r in metrics.read(workdir)]
    if path.exists():
        rates.append(json.loads(path.read_text()).get('images_per_second'))
    return next((r for r in reversed(rates) if r is not None), float('nan'))


def _own(state: TrainState) -> TrainState:
    """A copy for the asynchronous save, which on CPU would read memory the next step reuses."""
    return jax.tree.map(jax.numpy.copy, state) if jax.default_backend() == 'cpu' else state
