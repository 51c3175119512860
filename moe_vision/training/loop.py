"""The training loop, and scoring a finished run: puts the other modules in order."""

import time
from typing import Any

import jax
from etils import epath

from moe_vision.common import chips, compile_cache
from moe_vision.common.errors import UserError
from moe_vision.common.files import write_json
from moe_vision.config.schema import Config
from moe_vision.processes import peers
from moe_vision.processes.stop import Stop, Stopped
from moe_vision.run_folder import checkpoints, record
from moe_vision.training import feed, mesh, preflight
from moe_vision.training.profiling import Profile
from moe_vision.training.progress import Progress
from moe_vision.training.run import Run
from moe_vision.training.setup import Setup as Setup
from moe_vision.training.step import TrainState


def train(config: Config, workdir: str, config_file: str = '',
          profile_steps: tuple[int, int] | None = None, setup: Setup | None = None,
          full_report: bool = True, probe: bool = False,
          stop: Stop | None = None) -> dict[str, Any]:
    """Trains a config in a folder, continuing what is there. Returns what `result.json` holds.

    Args:
      config_file: where the config came from, for the record.
      profile_steps: first and last step to profile.
      setup: of a config that differs in the seed alone; its compiled programs are used again, and
        change no bit.
      full_report: write report.html, too.
      probe: write mechanism.json, too.
      stop: says when to end before the last step.

    Raises:
      Stopped: `stop` said so; the run is saved at a step.
      UserError: something the user can mend, the loss not finite among it.
    """
    compile_cache.use()
    if setup is None:
        setup = Setup(config)
        _say(preflight.text(config, setup.info, setup.mesh.shape, setup.cost, setup.times))
    elif not setup.fits(config):
        raise ValueError('the setup is of a config that differs in more than the seed')
    with Run(setup, config, workdir, config_file) as run:
        start, state = run.restore()
        run.begin(start)
        state, rate = _loop(run, state, start, profile_steps, stop)
        result = run.finish(state, rate)
        _say(f'test accuracy {result["test_accuracy"]:.4f} '
             f'(unbounded capacity {result["test_accuracy_unbounded"]:.4f}), '
             f'loss {result["test_loss"]:.4f}, rho_place {result["rho_place"]:.4f}')
        if probe:
            run.probe(state)
    if full_report and peers.first():
        _say(f'report {run.report()}')
    return result


def _say(text: str) -> None:
    """To stdout, from one process."""
    if peers.first():
        print(text, flush=True)


def _loop(run: Run, state: TrainState, start: int,
          profile_steps: tuple[int, int] | None, stop: Stop | None) -> tuple[TrainState, float]:
    """Steps start + 1 to the last. Returns (state, images/s)."""
    stop = stop or Stop()
    config, setup, times = run.config, run.setup, run.setup.times
    progress = Progress(times.total, start, config.train.batch_size, shown=peers.first(),
                        at_peak=_seconds_at_peak(setup))
    micro = config.train.micro_batches
    rows = _rows(setup, config.train.batch_size, micro)
    step_fn = setup.step
    profile = Profile(profile_steps, run.workdir, start, times.total)

    def validate(step: int, state: TrainState) -> None:
        if run.validates(step):
            progress.line(told(run.validate(step, state)))

    if start:  # it may have been stopped just before
        validate(start, state)
    with (stop.later(), feed.on_host(config, config.seed, rows, start, times.total) as batches):
        for step, arrays in enumerate(batches, start + 1):
            profile.before(step)
            batch = setup.gather(mesh.to_devices(arrays, setup.mesh, micro))
            state, out = step_fn(state, batch)
            run.interval.add(step, out)
            if step == start + 1:
                jax.block_until_ready(out)
                progress.first_step_done(step)
            profile.after(step, out)
            stopping = stop.at(step) and step < times.total
            if times.row_ends(step):
                row = run.row() | {'timing': progress.timing(step)}
                progress.clear()
                run.add(row)
                progress.show(row)
            if stopping:
                saved = run.save_now(step, state)
                raise Stopped(f'stopped by SIGTERM at step {step} of {times.total}, saved at step '
                              f'{saved}; start again with the same command to go on.')
            if times.row_ends(step):
                began = time.monotonic()
                validate(step, state)
                run.save(step, state)
                progress.pause(time.monotonic() - began)
    progress.done()
    return state, progress.images_per_second(times.total)


def _seconds_at_peak(setup: Setup) -> float | None:
    """Of an image's training FLOPs, three forward passes as executed, at the bfloat16 peak of all
    devices; None where it is not known."""
    peak = chips.peak(setup.mesh.devices.flat[0].device_kind)
    return 3 * setup.cost.flops_executed / (peak * setup.mesh.size) if peak else None


def told(row: dict[str, Any]) -> str:
    """A validation's row as a line."""
    return (f'step {row["step"]}  validation accuracy {row["accuracy"]:.4f}, unbounded capacity '
            f'{row["accuracy_unbounded"]:.4f}, loss {row["loss"]:.4f}')


def evaluate(config: Config, workdir: str) -> dict[str, Any]:
    """Scores the newest checkpoint of a run on `eval.split`; writes evaluation-SPLIT.json.

    Also at each of `eval.capacity_factors`, and at another batch size, which must change nothing.

    Raises:
      UserError: there is no checkpoint that fits the config.
    """
    compile_cache.use()
    setup = Setup(config, for_training=False)
    if config.eval.split not in setup.info.split_sizes:
        raise UserError(f"eval.split is '{config.eval.split}', but {setup.info.name} has "
                        f'{", ".join(setup.info.split_sizes)}.')
    if peers.first():
        record.warn_if_other_data(workdir, setup.info)
    with checkpoints.Checkpoints(workdir, config.checkpoint.keep) as saved:
        step, state = saved.restore_for_evaluation(setup.abstract)
    evaluator, of = setup.evaluator, (state, config.eval.split, step / setup.times.total)
    scores = evaluator.score(*of, details=True)
    scores |= {'batch_size': evaluator.batch,
               'at_another_batch_size': evaluator.at_another_batch_size(*of, scores),
               'capacity_sweep': evaluator.sweep(*of)}
    if peers.first():
        write_json(epath.Path(workdir) / f'evaluation-{config.eval.split}.json', {
            'split': config.eval.split, 'step': step, 'class_names': setup.info.class_names,
            **scores})
    _say(f'{config.eval.split} accuracy {scores["accuracy"]:.4f} '
         f'(unbounded capacity {scores["accuracy_unbounded"]:.4f}), loss {scores["loss"]:.4f}, '
         f'{scores["images"]:,} images, step {step}')
    for name, x in scores['layers'].items():
        _say(f'{name}: drop rate {x["drop_rate"]:.4f}, orphan rate {x["orphan_rate"]:.4f}, '
             f'effective experts {x["effective_experts"]:.2f}, dead {x["dead_experts"]}')
    again = scores['at_another_batch_size']
    told = 'equal' if again['equal'] else f'NOT equal for {again["images_that_differ"]} images'
    _say(f'batch size {evaluator.batch} and {again["batch_size"]}: predictions are {told}, loss '
         f'differs by {again["loss_difference"]:.1e}')
    for at in scores['capacity_sweep']:
        drops = ', '.join(f'{rate:.4f} in {name}' for name, rate in at['drop_rate'].items())
        _say(f'capacity factor {at["capacity_factor"]:g} (effective {at["effective_factor"]:.2f})'
             f': accuracy {at["accuracy"]:.4f}, loss {at["loss"]:.4f}, drop rate {drops}')
    return scores


def _rows(setup: Setup, batch_size: int, micro: int) -> list[int]:
    """Rows of a batch that this process loads, micro-batch by micro-batch."""
    part = batch_size // micro
    own = mesh.rows_of_process(part, setup.mesh)
    return [i * part + r for i in range(micro) for r in own]
