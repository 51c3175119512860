"""The training loop, and scoring a finished run: puts the other modules in order."""

import contextlib
import json
import time
from typing import Any

import jax
from absl import logging
from etils import epath

import input_pipeline
from input_pipeline import DatasetInfo
from moe_vision import (
    checkpoint,
    leverage,
    mesh,
    metrics,
    models,
    optimizer,
    preflight,
    record,
    report,
    rules,
    surgery,
)
from moe_vision.durations import durations
from moe_vision.errors import UserError
from moe_vision.evaluate import Evaluator
from moe_vision.health import Health
from moe_vision.progress import Progress
from moe_vision.settings import Config
from moe_vision.step import TrainState, images_per_group, init_state, train_step_fn


class Setup:
    """What training and scoring both need: data set, mesh, network, optimizer, state's layout."""

    def __init__(self, config: Config, for_training: bool = True):
        self.config = config
        self.info: DatasetInfo = input_pipeline.info(config.dataset)
        rules.check_with_data(config, self.info)
        self.mesh = mesh.make(config.mesh.expert)
        tokens = leverage.tokens_per_image(config, self.info)
        self.images_per_group = images_per_group(config, tokens)
        if for_training:
            rows = config.train.batch_size // config.train.micro_batches
            mesh.check_groups(rows, self.images_per_group, self.mesh, 'train.batch_size'
                              + (' / micro_batches' if config.train.micro_batches > 1 else ''))
        input_pipeline.require(config.dataset)
        self.times = durations(config, self.info.split_sizes['train'])
        self.network = models.build(config.model, self.info.num_classes, self.mesh)
        self.learning_rate = optimizer.schedule(config.train, self.times.total, self.times.warmup)
        images = leverage.trace_images(config, tokens) * self.mesh.size
        fresh = lambda tx: init_state(  # noqa: E731
            self.network, self.info.image_shape, images, config.seed, tx,
            bool(config.train.ema_decay))
        self.tx = optimizer.make(config.train, self.learning_rate,
                                 jax.eval_shape(lambda: fresh(None)).params)
        self._fresh = lambda: fresh(self.tx)
        self.shapes = jax.eval_shape(self._fresh)
        self.shardings = mesh.state_shardings(self.mesh, self.shapes)
        self.abstract = checkpoint.abstract(self.shapes, self.shardings)
        self.evaluator = Evaluator(config, self.info, self.mesh, tokens)

    def fresh_state(self) -> TrainState:
        """The state before the first step; weights of `init_from` where that is set."""
        # On a CPU, optimizing the code of random numbers that are drawn once takes many seconds.
        options = {'xla_backend_optimization_level': 0} if jax.default_backend() == 'cpu' else None
        state = jax.jit(self._fresh, out_shardings=self.shardings, compiler_options=options)()
        if self.config.init_from:
            state = surgery.init_from(state, self.config.init_from, self.shardings)
        return state

    def step(self):
        """The compiled training step; the state given to it is used up."""
        fn = train_step_fn(self.network, self.config, self.tx, self.learning_rate,
                           self.times.total, self.info.num_classes, self.images_per_group,
                           *input_pipeline.mean_std(self.config.dataset))
        return jax.jit(fn, donate_argnums=0,
                       out_shardings=(self.shardings, mesh.replicated(self.mesh)))


def train(config: Config, workdir: str, config_file: str = '',
          profile_steps: tuple[int, int] | None = None) -> dict[str, Any]:
    """Trains a config in a folder, continuing what is there. Returns what `result.json` holds.

    Raises:
      UserError: something the user can mend, the loss not finite among it.
    """
    setup = Setup(config)
    cost = leverage.measure(config, setup.info)
    print(preflight.text(config, setup.info, setup.mesh, cost, setup.times), flush=True)
    folder = epath.Path(workdir)
    folder.mkdir(parents=True, exist_ok=True)
    record.warn_if_changed(workdir, config)
    with checkpoint.Checkpoints(workdir, config.checkpoint.keep) as saved:
        restored = saved.restore_newest(setup.abstract)
        start, state = restored or (0, setup.fresh_state())
        record.write_config(workdir, config, config_file, setup.info, cost)
        if start:
            logging.info('continuing at step %d of %d', start, setup.times.total)
        writer = metrics.Writer(workdir, start)
        with contextlib.closing(writer):
            state, best, rate = _loop(setup, state, start, saved, writer, workdir, profile_steps)
    return _finish(setup, cost, state, best, rate, workdir)


def _loop(setup: Setup, state: TrainState, start: int, saved: checkpoint.Checkpoints,
          writer: metrics.Writer, workdir: str, profile_steps: tuple[int, int] | None):
    """Steps start + 1 to the last. Returns (state, best validation accuracy, images/s)."""
    config, times = setup.config, setup.times
    health, interval = Health(config), metrics.Interval(config.model.moe.num_experts)
    progress = Progress(times.total, start, config.train.batch_size)
    best = max((r['accuracy'] for r in writer.kept if r['split'] == 'validation'), default=None)
    validates = 'validation' in setup.info.split_sizes
    micro = config.train.micro_batches
    rows = _rows(setup, config.train.batch_size, micro)
    step_fn = setup.step()
    profiling = False
    if profile_steps and not start < profile_steps[0] <= times.total:
        logging.warning('no profile: --profile_steps starts at step %d, this run takes steps %d '
                        'to %d', profile_steps[0], start + 1, times.total)
    with input_pipeline.train_batches(
            config.dataset, seed=config.seed, batch_size=config.train.batch_size, rows=rows,
            start_step=start, num_steps=times.total) as batches:
        for step, batch in enumerate(batches, start + 1):
            if profile_steps and step == profile_steps[0]:
                jax.profiler.start_trace(str(epath.Path(workdir) / 'profile'))
                profiling = True
            arrays = {n: batch[n] for n in ('image', 'label', 'valid')}
            state, out = step_fn(state, mesh.to_devices(arrays, setup.mesh, micro))
            interval.add(step, out)
            if step == start + 1:
                jax.block_until_ready(out)
                progress.first_step_done(step)
            if profile_steps and profiling and step in (profile_steps[1], times.total):
                jax.block_until_ready(out)
                jax.profiler.stop_trace()
                profiling = False
            if not times.row_ends(step):
                continue
            row = _row(interval, times.per_epoch, saved)
            row['timing'] = progress.timing(step)
            writer.add(row)
            progress.clear()
            health.check(row)
            progress.show(row)
            began = time.monotonic()
            if step in times.evaluations and validates:
                row = _validate(setup, state, step)
                writer.add(row)
                progress.line(
                    f'step {step}  validation accuracy {row["accuracy"]:.4f}, unbounded capacity '
                    f'{row["accuracy_unbounded"]:.4f}, loss {row["loss"]:.4f}')
                if best is None or row['accuracy'] > best:
                    best = row['accuracy']
                    saved.save_best(step, _own(state))
            if step in times.evaluations | times.checkpoints:
                writer.flush()  # rows first: those before a checkpoint are not made again
            if step in times.checkpoints:
                saved.save(step, _own(state))
            progress.pause(time.monotonic() - began)
    progress.done()
    return state, best, progress.images_per_second(times.total)


def _row(interval: metrics.Interval, per_epoch: float,
         saved: checkpoint.Checkpoints) -> dict[str, Any]:
    try:
        return interval.row(per_epoch)
    except metrics.NonFinite as e:
        steps = saved.steps()
        last = f'the last finite checkpoint is step {steps[0]}' if steps else 'no checkpoint yet'
        raise UserError(
            f'{e}; {last}. Try a lower train.learning_rate, a longer train.warmup_epochs, '
            'train.clip_norm=1 or model.dtype=float32, with a new --workdir.') from e


def _validate(setup: Setup, state: TrainState, step: int) -> dict[str, Any]:
    scores = setup.evaluator.score(state.variables(averaged=True), 'validation',
                                   step / setup.times.total)
    return {'step': step, 'epoch': step / setup.times.per_epoch, 'split': 'validation', **scores}


def _finish(setup: Setup, cost: leverage.Leverage, state: TrainState, best: float | None,
            rate: float, workdir: str) -> dict[str, Any]:
    """Scores the test split; writes result.json, evaluation.json and the report."""
    folder = epath.Path(workdir)
    test = setup.evaluator.score(state.variables(averaged=True), 'test', 1.0, details=True)
    if rate != rate:  # hardly anything was trained this time
        rate = _rate_before(workdir)
    result = record.result(setup.config, cost, test, best, int(state.step), rate)
    record.write_json(folder / 'evaluation.json', {
        'split': 'test', 'class_names': setup.info.class_names, **test})
    record.write_json(folder / 'result.json', result)
    path = report.write(workdir)
    print(f'test accuracy {result["test_accuracy"]:.4f} '
          f'(unbounded capacity {result["test_accuracy_unbounded"]:.4f}), '
          f'loss {result["test_loss"]:.4f}, rho_place {result["rho_place"]:.4f}\nreport {path}')
    return result


def _rate_before(workdir: str) -> float:
    """Images per second as an earlier life of the run left them."""
    path = epath.Path(workdir) / 'result.json'
    rates = [(r.get('timing') or {}).get('images_per_second') for r in metrics.read(workdir)]
    if path.exists():
        rates.append(json.loads(path.read_text()).get('images_per_second'))
    return next((r for r in reversed(rates) if r is not None), float('nan'))


def evaluate(config: Config, workdir: str) -> dict[str, Any]:
    """Scores the newest checkpoint of a run on `eval.split`; writes evaluation-SPLIT.json.

    Raises:
      UserError: there is no checkpoint that fits the config.
    """
    setup = Setup(config, for_training=False)
    if config.eval.split not in setup.info.split_sizes:
        raise UserError(f"eval.split is '{config.eval.split}', but {setup.info.name} has "
                        f'{", ".join(setup.info.split_sizes)}.')
    with checkpoint.Checkpoints(workdir, config.checkpoint.keep) as saved:
        step, state = saved.restore_for_evaluation(setup.abstract)
    scores = setup.evaluator.score(state.variables(averaged=True), config.eval.split,
                                   step / setup.times.total, details=True)
    record.write_json(epath.Path(workdir) / f'evaluation-{config.eval.split}.json', {
        'split': config.eval.split, 'step': step, 'class_names': setup.info.class_names, **scores})
    print(f'{config.eval.split} accuracy {scores["accuracy"]:.4f} '
          f'(unbounded capacity {scores["accuracy_unbounded"]:.4f}), loss {scores["loss"]:.4f}, '
          f'{scores["images"]:,} images, step {step}')
    for name, x in scores['layers'].items():
        print(f'{name}: drop rate {x["drop_rate"]:.4f}, orphan rate {x["orphan_rate"]:.4f}, '
              f'effective experts {x["effective_experts"]:.2f}, dead {x["dead_experts"]}')
    return scores


def _rows(setup: Setup, batch_size: int, micro: int) -> list[int]:
    """Rows of a batch that this process loads, micro-batch by micro-batch."""
    part = batch_size // micro
    own = mesh.rows_of_process(part, setup.mesh)
    return [i * part + r for i in range(micro) for r in own]


def _own(state: TrainState) -> TrainState:
    """A copy for the asynchronous save, which on CPU would read memory the next step reuses."""
    return jax.tree.map(jax.numpy.copy, state) if jax.default_backend() == 'cpu' else state
