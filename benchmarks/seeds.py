"""Seeds of an arm as one program, beside the same seeds one after another.

Times one step of S seeds beside S steps of one seed, with batches made on the device. Then times a
whole study of two arms and eight seeds, from its command to its last row, with nothing compiled
before. The latter decides the `seed_mode` of a study file: seeds together also take longer to
compile, and all run in one process.

Axes: S seeds.
"""

import functools
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from benchmarks.startup import environment
from benchmarks.table import Row
from benchmarks.timing import compiled
from configs import base, digits_dense, digits_k2
from moe_vision.common import timing
from moe_vision.common.paths import ROOT
from moe_vision.config import check as config_lib
from moe_vision.config.schema import Config
from moe_vision.study.run.together import Program
from moe_vision.training import feed, mesh
from moe_vision.training.setup import Setup


def _vit() -> Any:
    c = base.get_config()
    c.model.name = 'vit'
    c.model.args = {'width': 64, 'depth': 4, 'heads': 4, 'patch_size': 2}
    c.model.moe.placement = 'last_2'
    return c


ARMS = {
    'digits_k2': digits_k2.get_config,
    'digits_dense': digits_dense.get_config,
    'digits_vit': _vit,
}


def arm(name: str, data_dir: str) -> Config:
    """The checked config of an arm, with batches made on the device."""
    c = ARMS[name]()
    c.dataset.data_dir, c.dataset.resident = data_dir, True
    return config_lib.check(c)


def measure(
    config: Config, seeds: list[int], rounds: int
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Seconds of a step of S seeds in each round, and of compiling it, both by S.

    'alone' stands for one seed without a seed axis.
    """
    setup = Setup(config)
    rows = range(config.train.batch_size)

    def arrays(seed):
        with feed.on_host(config, seed, rows, 0, 1) as batches:
            return next(batches)

    one = setup.gather(mesh.to_devices(arrays(0), setup.mesh, config.train.micro_batches))
    calls: dict[str, Any] = {}
    compiling: dict[str, float] = {}
    for n in [0, *seeds]:
        name = str(n or 'alone')
        if n:
            together = Program(setup, n)
            args = (
                together.stack([setup.fresh_state(s) for s in range(n)]),
                together.batch([arrays(s) for s in range(n)]),
            )
            step = together.step.__wrapped__
        else:
            args, step = (setup.fresh_state(0), one), setup.step.__wrapped__
        program = compiled(step, *args)  # donates no buffers, so that it can run repeatedly
        compiling[name] = program.seconds
        calls[name] = functools.partial(program, *args)
    return timing.rounds(calls, rounds), compiling


def study_seconds(seed_mode: str, processes: int) -> float:
    """Seconds of `benchmarks/whole_study.py`, shared by this number of processes."""
    with tempfile.TemporaryDirectory() as home:
        command = [
            sys.executable,
            '-m',
            'moe_vision.study',
            'run',
            f'--workdir={home}/study',
            f'--study=benchmarks/whole_study.py:{seed_mode}',
            f'--config.dataset.data_dir={home}/data',
        ]
        errors = Path(home, 'errors')
        with errors.open('w') as err:
            began = time.monotonic()
            runs = [
                subprocess.Popen(
                    command,
                    cwd=ROOT,
                    stdout=subprocess.DEVNULL,
                    stderr=err,
                    env=environment(f'{home}/cache'),
                )
                for _ in range(processes)
            ]
            failed = any([run.wait() for run in runs])
            took = time.monotonic() - began
        if failed:
            raise RuntimeError(f'{" ".join(command)} failed: {errors.read_text()[-500:]}')
        return took


def whole_study(rounds: int) -> Row:
    ways = {'together': ('together', 1), 'one by one': ('one_by_one', 1)}
    if jax.default_backend() == 'cpu':
        ways['one by one, two processes'] = 'one_by_one', 2
    times: dict[str, list[float]] = {n: [] for n in ways}
    for _ in range(rounds):
        for name, (seed_mode, processes) in ways.items():
            times[name].append(study_seconds(seed_mode, processes))
    return Row('a whole study, digits_k2 and digits_dense, S=8', times)


def rows(rounds: int) -> Iterator[Row]:
    yield from steps(rounds)
    yield whole_study(max(1, rounds // 4))


def steps(rounds: int) -> Iterator[Row]:
    aim = 1.15 if jax.default_backend() == 'cpu' else 0.4  # five seeds in twice the time of one
    with tempfile.TemporaryDirectory() as folder:
        for name in ARMS:
            seconds, compiling = measure(arm(name, folder), [2, 5, 10], rounds)
            for n in 2, 5, 10:
                yield Row(
                    f'{name}, S={n}',
                    {'together': seconds[str(n)], 'one by one': [n * s for s in seconds['alone']]},
                    {'one by one': aim} if n == 5 else {},
                    {'compiling s': compiling[str(n)], 'compiling one s': compiling['alone']},
                )
