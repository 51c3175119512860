"""Kills a run again and again at random moments, and compares it with one that nobody touched.

    python -m benchmarks.soak --workdir=W --kills=20 --config=configs/digits_k2.py --config.KEY=...

W/whole is the run that is left alone, W/killed the other; every third signal is SIGTERM, the rest
are SIGKILL. Prints where each life began, and whether state, rows and result are the same in the
end. Exit code 1 where they are not.
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

ROOT = Path(__file__).resolve().parent.parent


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--workdir', type=Path, required=True, help='a folder for both runs')
    parser.add_argument('--kills', type=int, default=20)
    parser.add_argument('--seed', type=int, default=0, help='of the moments')
    args, config = parser.parse_known_args(argv)
    rng = random.Random(args.seed)
    whole, killed = args.workdir / 'whole', args.workdir / 'killed'
    began = time.monotonic()
    if not (whole / 'result.json').exists():
        _start(whole, config).wait()
    took = time.monotonic() - began
    for number in range(args.kills):
        run = _start(killed, config)
        with_notice = number % 3 == 2
        time.sleep(rng.uniform(0, took))
        run.send_signal(signal.SIGTERM if with_notice else signal.SIGKILL)
        code = run.wait()
        print(f'{number + 1:3d} {"SIGTERM" if with_notice else "SIGKILL"} exit code {code}, '
              f'checkpoints {_steps(killed)}', flush=True)
        if code == 0:
            print('    it was done before that: once more, sooner')
            shutil.rmtree(killed)
            took *= 0.7
    _start(killed, config).wait()
    return 0 if _same(whole, killed) else 1


def _start(folder: Path, config: list[str]) -> subprocess.Popen:
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / 'log.txt', 'a', encoding='utf-8') as log:
        return subprocess.Popen([sys.executable, str(ROOT / 'main.py'), f'--workdir={folder}',
                                 *config], cwd=ROOT, stdout=log, stderr=log)


def _steps(folder: Path) -> list[int]:
    latest = folder / 'checkpoints' / 'latest'
    return sorted(int(p.name) for p in latest.glob('*') if p.name.isdigit())


def _same(whole: Path, killed: Path) -> bool:
    import jax

    from moe_vision import checkpoint, metrics  # after the runs: jax takes memory

    def bits(folder: Path) -> list[bytes]:
        return [np.asarray(x).tobytes()
                for x in jax.tree.leaves(checkpoint.load_raw(str(folder)))]

    def rows(folder: Path) -> list[dict]:
        return [{k: v for k, v in r.items() if k != 'timing'} for r in metrics.read(str(folder))]

    def result(folder: Path) -> dict:
        found = json.loads((folder / 'result.json').read_text())
        return {k: v for k, v in found.items() if k != 'images_per_second'}

    all_same = True
    for what in (bits, rows, result):
        same = what(whole) == what(killed)
        all_same &= same
        print(f'{what.__name__}: {"the same" if same else "NOT the same"}')
    return all_same


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
