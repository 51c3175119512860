"""Trains the seeds of one arm as one program: vmap over a leading axis of seeds.

If there are several devices, the seeds are divided among them, each seed whole on one device. Every
seed writes the same files as a run of its own, so a run can be continued either way.

Axes: S seeds, A micro-batches, B rows of a micro-batch.
"""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from moe_vision import models
from moe_vision.config.schema import Config
from moe_vision.training import feed
from moe_vision.training.progress import Progress
from moe_vision.training.run import Diverged, Run
from moe_vision.training.setup import Setup
from moe_vision.training.step import TrainState

Done = Callable[[int, str | None], None]


class Program:
    """The training step of S seeds at once.

    Args:
      setup: the config's setup, for evaluation; its mesh does not matter here.
      seeds: S.
      devices: how many devices share the seeds; by default the largest number that divides S.
    """

    def __init__(self, setup: Setup, seeds: int, devices: int = 0):
        devices = devices or max(n for n in range(1, jax.device_count() + 1) if seeds % n == 0)
        mesh = jax.make_mesh(
            (devices,), ('seed',), devices=jax.devices()[:devices], axis_types=(AxisType.Auto,)
        )
        self._setup, self._sharding = setup, NamedSharding(mesh, P('seed'))
        network = models.build(setup.config.model, setup.info.num_classes, None)
        step = jax.vmap(setup.step_of(network))
        if devices > 1:
            step = jax.shard_map(
                step, mesh=mesh, in_specs=P('seed'), out_specs=P('seed'), check_vma=False
            )
        self.step = jax.jit(step, donate_argnums=0, out_shardings=self._sharding)
        self._gather = feed.Gather(setup.config, self._sharding)

    def stack(self, states: Sequence[TrainState]) -> TrainState:
        """Stacks the states of single runs into one with a leading axis S."""
        on_host = jax.device_get(list(states))
        return jax.device_put(jax.tree.map(lambda *x: np.stack(x), *on_host), self._sharding)

    def unstack(self, states: TrainState) -> Callable[[int], TrainState]:
        """A function from the place of a seed to its state, as a single run holds it."""
        on_host = jax.device_get(states)
        return lambda i: jax.device_put(
            jax.tree.map(lambda x: x[i].copy(), on_host), self._setup.shardings
        )

    def batch(self, arrays: Sequence[feed.Arrays]) -> dict[str, jax.Array]:
        """The batch [S, A, B, ...], from what `feed.on_host` yields for each seed."""
        micro = self._setup.config.train.micro_batches
        whole = jax.tree.map(
            lambda *x: np.stack([a.reshape(micro, -1, *a.shape[1:]) for a in x]), *arrays
        )
        return self._gather(jax.device_put(whole, self._sharding))


def train(configs: Sequence[Config], folders: Sequence[str], probe: bool, done: Done) -> None:
    """Trains each config in its folder; see `cells.train_arm`."""
    setup = Setup(configs[0], for_training=False)
    if not all(map(setup.fits, configs)):
        raise ValueError('the configs of an arm differ in more than the seed')
    with contextlib.ExitStack() as stack:
        runs = {
            i: stack.enter_context(Run(setup, config, folder))
            for i, (config, folder) in enumerate(zip(configs, folders, strict=True))
        }
        ended = {
            i: run.restore()
            for i, run in runs.items()
            if run.saved.steps()[:1] == [setup.times.total]
        }
        start, states = _common({i: run for i, run in runs.items() if i not in ended})
        for i, run in runs.items():
            run.begin(setup.times.total if i in ended else start)
        rate = float('nan')
        if states:
            states, rate = _loop(setup, {i: runs[i] for i in states}, states, start, done)
        for i, state in {**{i: s for i, (_, s) in ended.items()}, **states}.items():
            _, layers = runs[i].finish(state, float('nan') if i in ended else rate)
            if probe:
                runs[i].probe(state, layers)
            runs[i].close()
            done(i, None)


def _common(runs: dict[int, Run]) -> tuple[int, dict[int, TrainState]]:
    """(step, states) of the newest step that all runs have: a kill may come between two saves."""
    restored: dict[int, tuple[int, TrainState]] = {i: run.restore() for i, run in runs.items()}
    while len({step for step, _ in restored.values()}) > 1:
        least = min(step for step, _ in restored.values())
        restored = {
            i: restored[i] if restored[i][0] == least else run.restore(least)
            for i, run in runs.items()
        }
    return max((step for step, _ in restored.values()), default=0), {
        i: state for i, (_, state) in restored.items()
    }


def _loop(
    setup: Setup, runs: dict[int, Run], states: dict[int, TrainState], start: int, done: Done
) -> tuple[dict[int, TrainState], float]:
    """Trains steps start + 1 to the last. Returns (states of runs that did not diverge, images/s of
    one seed)."""
    config, times = setup.config, setup.times
    place = {i: n for n, i in enumerate(runs)}
    program = Program(setup, len(runs))
    stacked = program.stack(list(states.values()))
    progress = Progress(times.total, start, config.train.batch_size)
    waiting: list[tuple[int, Any]] = []
    alive = dict(runs)
    rows = range(config.train.batch_size)
    with contextlib.ExitStack() as stack:
        sources = [
            stack.enter_context(feed.on_host(config, run.config.seed, rows, start, times.total))
            for run in runs.values()
        ]
        for step, arrays in enumerate(zip(*sources, strict=True), start + 1):
            batch = program.batch(arrays)
            with setup.compiling(f'the training step for {len(runs)} seeds'):
                stacked, out = program.step(stacked, batch)
            waiting.append((step, out))
            if step == start + 1:
                jax.block_until_ready(out)
                progress.first_step_done(step)
            if not times.row_ends(step):
                continue
            fetched, waiting = jax.device_get(waiting), []
            timing = progress.timing(step)
            progress.clear()
            for i, run in list(alive.items()):
                for s, values in fetched:
                    run.interval.add(s, jax.tree.map(lambda x, i=i: x[place[i]], values))
                try:
                    row = run.row() | {'timing': timing}
                except Diverged as e:
                    alive.pop(i).close()
                    done(i, str(e))
                    continue
                run.add(row)
            if not alive:
                break
            progress.show(row)
            with progress.paused():
                _save(program.unstack, stacked, step, alive, place, progress)
        progress.done()
        state_at = program.unstack(stacked)
        return {i: state_at(place[i]) for i in alive}, progress.images_per_second(times.total)


def _save(
    unstack,
    stacked: TrainState,
    step: int,
    alive: dict[int, Run],
    place: dict[int, int],
    progress: Progress,
) -> None:
    """Validates and saves seed by seed, if this step is one for it."""
    runs = list(alive.items())
    if not runs[0][1].saves(step):
        return
    if runs[0][1].validates(step):
        progress.clear()
    state_at = unstack(stacked)
    accuracies = []
    for i, run in runs:
        state = state_at(place[i])
        if run.validates(step):
            accuracies.append(run.validate(step, state)['accuracy'])
        run.save(step, state)
    if accuracies:
        progress.line(
            f'step {step}  validation accuracy of {len(runs)} seeds '
            f'{min(accuracies):.4f} to {max(accuracies):.4f}'
        )
