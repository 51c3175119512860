"""What training the seeds of an arm as one program gains over one after another.

    python -m benchmarks.seeds                # the table
    python -m benchmarks.seeds --seeds=1,2    # other numbers of seeds
    python -m benchmarks.seeds --json=F       # and as JSON

For each arm and number of seeds S: the time of one step of S seeds, over S times the time of one
seed's step; medians over interleaved rounds, batches made on the device. Below 1, `together` is
the faster mode.

Axes: S seeds.
"""

import argparse
import dataclasses
import json
import platform
import statistics
import time
from typing import Any

import jax

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
    return {'one': statistics.median(times[0]), 'ratio': ratio, 'compiling': compiling}


def advice(ratio: dict[int, float]) -> str:
    """The seed_mode to write for this arm on this machine."""
    several = {n: r for n, r in ratio.items() if n > 1}
    if not several:
        return 'one_by_one'
    return 'together' if statistics.median(several.values()) <= WORTH else 'one_by_one'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--arms', default=','.join(ARMS))
    parser.add_argument('--seeds', default='1,2,5,10')
    parser.add_argument('--rounds', type=int, default=9)
    parser.add_argument('--data_dir', default='')
    parser.add_argument('--json', default='')
    given = parser.parse_args()
    seeds = [int(n) for n in given.seeds.split(',')]
    device = jax.devices()[0]
    print(f'{jax.device_count()} × {device.device_kind} ({device.platform}), '
          f'{platform.machine()}, jax {jax.__version__}\n')
    print(f'| arm | one seed ms | {" | ".join(f"S={n}" for n in seeds)} | compile s, one and all '
          f'| seed_mode |\n|{"---|" * (len(seeds) + 4)}')
    done = []
    for name in given.arms.split(','):
        config = arm(name, given.data_dir)
        r = measure(config, seeds, given.rounds)
        done.append({'arm': name, 'batch_size': config.train.batch_size,
                     'model': dataclasses.asdict(config.model.args)} | r)
        ratios = ' | '.join(f'{r["ratio"][n]:.2f}' for n in seeds)
        print(f'| {name} | {1000 * r["one"]:.1f} | {ratios} | {r["compiling"][0]:.1f}, '
              f'{r["compiling"][seeds[-1]]:.1f} | {advice(r["ratio"])} |', flush=True)
    if given.json:
        with open(given.json, 'w') as f:
            json.dump({'device': str(device), 'jax': jax.__version__, 'rows': done}, f, indent=1)


if __name__ == '__main__':
    main()
