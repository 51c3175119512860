"""Kills a run again and again at random moments, and compares it with a run left alone.

    python -m benchmarks.soak --workdir=W --kills=20 --config=configs/digits_k2.py --config.KEY=...

W/whole is the run left alone, W/killed the other. Every third signal is SIGTERM, the others are
SIGKILL. When the killed run reaches its end, its state, rows and result are compared, and the next
start begins a new run. Prints the checkpoints that each kill left, and the comparisons. The exit
code is 1 if any differ.
"""

import argparse
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from moe_vision.common.paths import ROOT, expanded


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--workdir', type=expanded, required=True, help='a folder for both runs')
    parser.add_argument('--kills', type=int, default=20)
    parser.add_argument('--seed', type=int, default=0, help='seed of the moments')
    args, config = parser.parse_known_args(argv)
    rng = random.Random(args.seed)
    whole, killed = Path(args.workdir, 'whole'), Path(args.workdir, 'killed')
    began = time.monotonic()
    if not (whole / 'result.json').exists():
        if code := _start(whole, config).wait():
            print(f'exit code {code}: see {whole / "log.txt"}')
            return 1
    took = time.monotonic() - began
    number = 0
    while number < args.kills:
        run = _start(killed, config)
        time.sleep(rng.uniform(0, took))
        if run.poll() is not None:
            if not _ended(run, whole, killed):
                return 1
            continue
        number += 1
        with_notice = number % 3 == 0
        run.send_signal(signal.SIGTERM if with_notice else signal.SIGKILL)
        code = run.wait()
        print(
            f'{number:3d} {"SIGTERM" if with_notice else "SIGKILL"} exit code {code}, '
            f'checkpoints {_steps(killed)}',
            flush=True,
        )
    return 0 if _ended(_start(killed, config), whole, killed) else 1


def _ended(run: subprocess.Popen, whole: Path, killed: Path) -> bool:
    """Waits for a run to end and compares it; removes it if it is the same as the whole one."""
    if code := run.wait():
        print(f'exit code {code}: see {killed / "log.txt"}')
        return False
    same = _same(whole, killed)
    if same:
        shutil.rmtree(killed)
    return same


def _start(folder: Path, config: list[str]) -> subprocess.Popen:
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / 'log.txt', 'a', encoding='utf-8') as log:
        return subprocess.Popen(
            [sys.executable, str(ROOT / 'main.py'), f'--workdir={folder}', *config],
            cwd=ROOT,
            stdout=log,
            stderr=log,
        )


def _steps(folder: Path) -> list[int]:
    latest = folder / 'checkpoints' / 'latest'
    return sorted(int(p.name) for p in latest.glob('*') if p.name.isdigit())


def _same(whole: Path, killed: Path) -> bool:
    import jax  # only now: jax takes memory from the runs

    from moe_vision.run_folder import checkpoints, metrics

    def bits(folder: Path) -> list[bytes]:
        return [np.asarray(x).tobytes() for x in jax.tree.leaves(checkpoints.load_raw(str(folder)))]

    def rows(folder: Path) -> list[dict]:
        return [{k: v for k, v in r.items() if k != 'timing'} for r in metrics.read(str(folder))]

    def result(folder: Path) -> dict:
        numbers = json.loads((folder / 'result.json').read_text())
        return {k: v for k, v in numbers.items() if k != 'images_per_second'}

    all_same = True
    for read in (bits, rows, result):
        same = read(whole) == read(killed)
        all_same &= same
        print(f'{read.__name__}: {"the same" if same else "NOT the same"}')
    return all_same


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
