"""All measurements of speed, as a table.

    python -m benchmarks.run                          # every suite
    python -m benchmarks.run --suite=layer,latency    # some
    python -m benchmarks.run --out=benchmarks/results # into DEVICE.md and DEVICE.json there

What a suite compares says the docstring of its module. Times are medians over rounds in which the
subject and its baselines take turns, ratios medians over rounds of the ratio within a round: on a
machine with other load read the ratios. In brackets stands what is aimed at; bold misses it.
"""

import argparse
import importlib
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.table import Row, markdown
from moe_vision.common.paths import ROOT

SUITES = {'layer': 'benchmarks.layer', 'step': 'benchmarks.step', 'latency': 'benchmarks.latency',
          'seeds': 'benchmarks.seeds', 'input': 'benchmarks.input_pipeline',
          'startup': 'benchmarks.startup'}

VARIABLES = ('XLA_FLAGS', 'GLIBC_TUNABLES')  # that change speed


def device() -> str:
    """A name for files: the accelerator, or the number of processor cores."""
    import jax

    found = jax.devices()[0]
    if found.platform == 'cpu':
        return f'cpu-{len(os.sched_getaffinity(0))}-cores'
    name = re.sub(r'[^a-z0-9]+', '-', found.device_kind.lower()).strip('-')
    return f'{name}-x{jax.device_count()}'


def setting() -> dict[str, Any]:
    """What the numbers belong to."""
    import jax

    packages = ('jax', 'jaxlib', 'flax', 'optax', 'numpy', 'grain', 'opencv-python-headless')
    versions = {}
    for name in packages:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    commit = subprocess.run(['git', 'rev-parse', '--short', 'HEAD'], capture_output=True, text=True,
                            check=False, cwd=ROOT).stdout.strip()
    return {'device': jax.devices()[0].device_kind, 'count': jax.device_count(),
            'python': '.'.join(map(str, sys.version_info[:3])), 'versions': versions,
            'commit': commit, 'environment': {n: os.environ[n] for n in VARIABLES
                                              if n in os.environ}}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--suite', default=','.join(SUITES), help='of ' + ', '.join(SUITES))
    parser.add_argument('--rounds', type=int, default=9)
    parser.add_argument('--out', type=Path, default=None, help='folder for DEVICE.md and .json')
    given = parser.parse_args()
    names = given.suite.split(',')
    if unknown := [n for n in names if n not in SUITES]:
        parser.error(f"unknown suite '{unknown[0]}'; allowed: {', '.join(SUITES)}")
    found: dict[str, dict[str, Any]] = {}
    for name in names:
        began = time.monotonic()
        module, rows = importlib.import_module(SUITES[name]), []
        for row in module.rows(given.rounds):
            print(f'{name}: {_line(row)}', file=sys.stderr, flush=True)
            rows.append(row)
        found[name] = {'about': (module.__doc__ or '').strip().split('\n')[0],
                       'rows': [r.plain() for r in rows],
                       'seconds': time.monotonic() - began}
    print('\n'.join(_text(found)))
    if given.out:
        _write(given.out, found)
    return 0


def _line(row: Row) -> str:
    told = ', '.join(f'{r:.3g} of {n}' for n, r in row.ratios.items())
    return f'{row.case}: {row.milliseconds[row.subject]:.3g} ms; {told}'


def _text(found: dict[str, dict[str, Any]]) -> list[str]:
    return [line for name, suite in found.items()
            for line in ('', f'## {name}', '', suite['about'], '', *markdown(suite['rows']))]


def _write(folder: Path, found: dict[str, dict[str, Any]]) -> None:
    """Suites that were not run now keep the numbers that stand there."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f'{device()}.json'
    suites = json.loads(path.read_text())['suites'] if path.exists() else {}
    suites |= {n: suite | {'setting': setting()} for n, suite in found.items()}
    path.write_text(json.dumps({'suites': suites}, indent=1) + '\n')
    lines = [f'# {device()}', '', 'Made by `python -m benchmarks.run`; ratios are medians within '
             'interleaved rounds, in brackets what is aimed at, bold what misses it.']
    for name in SUITES:
        if name in suites:
            s = suites[name]['setting']
            lines += ['', f'## {name}', '', suites[name]['about'], '',
                      '`' + ''.join(f'{n}={v} ' for n, v in s['environment'].items())
                      + f'python -m benchmarks.run --suite={name}` at commit {s["commit"]}, '
                      f'{s["device"]}, python {s["python"]}, '
                      + ', '.join(f'{n} {v}' for n, v in s['versions'].items()) + '.', '',
                      *markdown(suites[name]['rows'])]
    path.with_suffix('.md').write_text('\n'.join(lines) + '\n')


if __name__ == '__main__':
    sys.exit(main())
