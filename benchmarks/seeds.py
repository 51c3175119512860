"""Seeds of an arm as one program beside the same seeds one after another.

A step of S seeds beside S steps of one seed; batches are made on the device. Where together takes
at most nine tenths of the time it is what a study file should name (`seed_mode`).

Axes: S seeds.
"""

import statistics
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import jax

from benchmarks.table import Row
from benchmarks.timing import compiled
from configs import base, digits_dense, digits_k2
from moe_vision import config as config_lib
from moe_vision import feed, mesh
from moe_vision.settings import Config
from moe_vision.setup import Setup
from moe_vision.study.together import Program

WORTH = 0.9  # together is advised where it takes at most this share of the time


def _vit() -> Any:
    c = base.get_config()
    c.model.name = 'vit'
    c.model.args = {'width': 64, 'depth': 4, 'heads': 4, 'patch_size': 2}
    c.model.moe.placement = 'last_2'
    return c


ARMS = {'digits_k2': digits_k2.get_config, 'digits_dense': digits_dense.get_config,
        'digits_vit': _vit}


def arm(name: str, data_dir: str) -> Config:
    """The checked config of an arm, its batches made on the device."""
    c = ARMS[name]()
    c.dataset.data_dir, c.dataset.resident = data_dir, True
    return config_lib.check(c)


def measure(config: Config, seeds: list[int], rounds: int) -> dict[str, Any]:
    """Seconds of one seed's step, and of one step of S seeds by S; of compiling, too."""
    setup = Setup(config)
    rows = range(config.train.batch_size)

    def arrays(seed):
        with feed.on_host(config, seed, rows, 0, 1) as batches:
            return next(batches)

    one = setup.gather(mesh.to_devices(arrays(0), setup.mesh, config.train.micro_batches))
    programs, args, compiling = {}, {}, {}
    for n in [0, *seeds]:  # 0: one seed by itself
        if n:
            program = Program(setup, n)
            args[n] = (program.stack([setup.fresh_state(s) for s in range(n)]),
                       program.batch([arrays(s) for s in range(n)]))
            step = program.step.__wrapped__
        else:
            args[n], step = (setup.fresh_state(0), one), setup.step.__wrapped__
        begin = time.perf_counter()
        programs[n] = compiled(step, *args[n])  # gives nothing away: it runs again and again
        compiling[n] = time.perf_counter() - begin
    times: dict[int, list[float]] = {n: [] for n in programs}
    for turn in range(rounds + 2):
        for n, program in programs.items():
            begin = time.perf_counter()
            jax.block_until_ready(program(*args[n]))
            if turn >= 2:
                times[n].append(time.perf_counter() - begin)
    # each round against the step of one seed beside it: the machine's load changes slowly
    ratio = {n: statistics.median(t / (n * alone) for t, alone in
                                  zip(times[n], times[0], strict=True)) for n in seeds}
    return {'seconds': times, 'ratio': ratio, 'compiling': compiling}


def advice(ratio: dict[int, float]) -> str:
    """The seed_mode to write for this arm on this machine."""
    several = {n: r for n, r in ratio.items() if n > 1}
    if not several:
        return 'one_by_one'
    return 'together' if statistics.median(several.values()) <= WORTH else 'one_by_one'


def rows(rounds: int) -> Iterator[Row]:
    aim = 1.15 if jax.default_backend() == 'cpu' else 0.4  # five seeds in twice the time of one
    with tempfile.TemporaryDirectory() as folder:
        for name in ARMS:
            config = arm(name, folder)
            found = measure(config, [1, 2, 5, 10], rounds)
            for n in 2, 5, 10:
                yield Row(f'{name}, S={n}', {
                    'together': found['seconds'][n],
                    'one by one': [n * s for s in found['seconds'][0]]},
                    {'one by one': aim} if n == 5 else {},
                    {'compiling s': found['compiling'][n],
                     'compiling one s': found['compiling'][0]})
