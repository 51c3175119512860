"""Trains a run, and scores a finished one."""

import contextlib
from typing import Any

import jax
from absl import logging
from etils import epath

from moe_vision.common import chips, compile_cache
from moe_vision.common.errors import NotWritten
from moe_vision.common.files import write_json
from moe_vision.config import rules
from moe_vision.config.schema import Config
from moe_vision.processes import peers
from moe_vision.processes.stop import Stop, Stopped
from moe_vision.run_folder import checkpoints, lives
from moe_vision.training import continuing, feed, mesh, preflight
from moe_vision.training.profiling import Profile
from moe_vision.training.progress import Progress
from moe_vision.training.run import Run
from moe_vision.training.setup import Setup
from moe_vision.training.step import TrainState


def train(
    config: Config,
    workdir: str,
    config_file: str = '',
    profile_steps: tuple[int, int] | None = None,
    setup: Setup | None = None,
    full_report: bool = True,
    probe: bool = False,
    stop: Stop | None = None,
) -> dict[str, Any]:
    """Trains a config in a folder, or continues the run there. Returns what `result.json` holds.

    Args:
      config: checked, also against its data set (`rules.check_data`).
      config_file: where the config came from, for the record.
      profile_steps: first and last step to profile.
      setup: built for the same config with any seed. Reusing its compiled programs changes no
        bit of the result.
      full_report: also write report.html.
      probe: also write mechanism.json.
      stop: decides after each step whether to end early.

    Raises:
      Stopped: the run ended early and is saved.
      Diverged: the loss or gradient was not finite in more steps in a row than allowed.
      NotWritten: the run is over, but not all of it could be written.
      UserError: any other problem that the user can fix.
    """
    compile_cache.use()
    if setup is None:
        setup = Setup(config)
        _say(preflight.text(config, setup.info, setup.mesh.shape, setup.cost, setup.times))
    elif not setup.fits(config):
        raise ValueError('the setup was built for a config that differs in more than the seed')
    times, micro, stop = setup.times, config.train.micro_batches, stop or Stop()
    with Run(setup, config, workdir, config_file) as run:
        start, state = run.restore()
        run.begin(start)
        progress = Progress(
            times.total,
            start,
            config.train.batch_size,
            shown=peers.first(),
            seconds_at_peak=_seconds_at_peak(setup),
        )
        profile = Profile(profile_steps, workdir, start, times.total)
        _validate(run, progress, start, state)  # a stop may have come just before a validation
        source = feed.on_host(config, config.seed, _rows(setup), start, times.total)
        with stop.later(), profile, source as batches:
            for step, arrays in enumerate(batches, start + 1):
                profile.before(step)
                batch = setup.gather(mesh.to_devices(arrays, setup.mesh, micro))
                with setup.compiling('the training step'):
                    state, metrics = setup.step(state, batch)
                run.interval.add(step, metrics)
                if step == start + 1:
                    jax.block_until_ready(metrics)
                    progress.first_step_done(step)
                profile.after(step, metrics)
                stopping = stop.at(step) and step < times.total
                if times.row_ends(step):
                    _write_row(run, progress, step)
                if stopping:
                    run.save_now(step, state)
                    raise Stopped(
                        f'stopped by SIGTERM at step {step} of {times.total}, saved at '
                        f'step {step}; start again with the same command to continue.'
                    )
                if times.row_ends(step):
                    with progress.paused():
                        _validate(run, progress, step, state)
                        run.save(step, state)
        progress.done()
        result, layers = run.finish(state, progress.images_per_second(times.total))
        _say(
            f'{result["scored_split"]} accuracy {_accuracy(setup, result, "test_accuracy")}, '
            f'loss {result["test_loss"]:.4f}, rho_place {result["rho_place"]:.4f}'
        )
        if probe:
            run.probe(state, layers)
    if full_report and peers.first():
        _say(f'report {run.report()}')
    return result


def _say(text: str) -> None:
    """Prints to stdout, in the first process only."""
    if peers.first():
        print(text, flush=True)


def _rows(setup: Setup) -> list[int]:
    """The rows of a batch that this process loads, micro-batch by micro-batch."""
    train = setup.config.train
    part = train.batch_size // train.micro_batches
    own = mesh.rows_of_process(part, setup.mesh)
    return [i * part + r for i in range(train.micro_batches) for r in own]


def _seconds_at_peak(setup: Setup) -> float | None:
    """Seconds to train on one image if all devices ran at their bfloat16 peak.

    Counts a training step as three forward passes, padding included. None for an unknown chip.
    """
    peak = chips.peak(setup.mesh.devices.flat[0].device_kind)
    return 3 * setup.cost.flops_executed / (peak * setup.mesh.size) if peak else None


def _write_row(run: Run, progress: Progress, step: int) -> None:
    """Writes and shows the row of training metrics that ends at this step."""
    row = run.row() | {'timing': progress.timing(step)}
    progress.clear()
    run.add(row)
    progress.show(row)


def _validate(run: Run, progress: Progress, step: int, state: TrainState) -> None:
    """Validates and prints the scores if a validation is due after this step."""
    if run.validates(step):
        progress.clear()
        row = run.validate(step, state)
        progress.line(
            f'step {row["step"]}  validation accuracy {_accuracy(run.setup, row)}, '
            f'loss {row["loss"]:.4f}'
        )


def _accuracy(setup: Setup, scores: dict[str, Any], key: str = 'accuracy') -> str:
    """An accuracy and, where capacity can cost any, that at unbounded capacity."""
    unbounded = f' (unbounded capacity {scores[f"{key}_unbounded"]:.4f})'
    return f'{scores[key]:.4f}{unbounded if setup.evaluator.can_drop else ""}'


def evaluate(config: Config, workdir: str) -> dict[str, Any]:
    """Scores the newest checkpoint of a run on `eval.split`; writes evaluation-SPLIT.json.

    Also scores it with another batch size, which must not change a prediction, and at each of
    `eval.capacity_factors`. What is known when one of these passes fails is printed and written.

    Raises:
      UserError: the data set lacks the split, or no checkpoint fits the config.
      NotWritten: the file cannot be written; the scores are printed all the same.
    """
    compile_cache.use()
    setup = Setup(config, for_training=False)
    split = rules.to_score(config.eval.split, setup.info)
    changed = continuing.differences(workdir, config)
    if peers.first():
        if other := lives.other_data(workdir, setup.info):
            logging.warning('%s; results of the two are not comparable', other)
        if changed:
            logging.warning(
                'scored with another config than the run was trained with: %s', '; '.join(changed)
            )
    with checkpoints.Checkpoints(workdir, config.checkpoint.keep) as saved:
        step, state = saved.restore_for_evaluation(setup.abstract)
    evaluator, fraction = setup.evaluator, step / setup.times.total
    scores = evaluator.score(state, split, fraction, details=True)
    scores['batch_size'] = evaluator.batch

    def write() -> None:
        if peers.first():
            write_json(
                epath.Path(workdir) / f'evaluation-{split}.json',
                {
                    'split': split,
                    'step': step,
                    'config_differs': changed,
                    'class_names': setup.info.class_names,
                    **scores,
                },
            )

    if split != config.eval.split:
        _say(f'{setup.info.name} has no {config.eval.split} split: scored on {split}')
    _say('\n'.join(_scores_as_lines(setup, split, step, scores)))
    with contextlib.suppress(NotWritten):  # then the second time fails, too
        write()  # a pass that follows may end this process
    try:
        again = evaluator.at_another_batch_size(state, split, fraction, scores)
        scores['at_another_batch_size'] = again
        differ = f'NOT equal for {again["images_that_differ"]} images'
        _say(
            f'batch size {scores["batch_size"]} and {again["batch_size"]}: predictions are '
            f'{"equal" if again["equal"] else differ}, '
            f'loss differs by {again["loss_difference"]:.1e}'
        )
        scores['capacity_sweep'] = []
        for row in evaluator.sweep(state, split, fraction):
            scores['capacity_sweep'].append(row)
            _say(_as_line(row))
    finally:
        write()
    return scores


def _scores_as_lines(setup: Setup, split: str, step: int, scores: dict[str, Any]) -> list[str]:
    """The lines that `evaluate` prints of a split."""
    lines = [
        f'{split} accuracy {_accuracy(setup, scores)}, '
        f'loss {scores["loss"]:.4f}, {scores["images"]:,} images, step {step}'
    ]
    for name, x in scores['layers'].items():
        lines.append(
            f'{name}: drop rate {x["drop_rate"]:.4f}, orphan rate {x["orphan_rate"]:.4f}, '
            f'effective experts {x["effective_experts"]:.2f}, dead {x["dead_experts"]}'
        )
    return lines


def _as_line(row: dict[str, Any]) -> str:
    """The line that `evaluate` prints of a capacity factor."""
    drops = ', '.join(f'{rate:.4f} in {name}' for name, rate in row['drop_rate'].items())
    return (
        f'capacity factor {row["capacity_factor"]:g} (effective '
        f'{row["effective_factor"]:.2f}): accuracy {row["accuracy"]:.4f}, '
        f'loss {row["loss"]:.4f}, drop rate {drops}'
    )
