"""Runs the measurements of speed, and prints them as tables.

    python -m benchmarks.run                          # every suite
    python -m benchmarks.run --suite=layer,latency    # some
    python -m benchmarks.run --out=benchmarks/results # into DEVICE.md and DEVICE.json there

The docstring of a suite's module says what it compares. The subject and its baselines take turns in
rounds. A time is the median over rounds; a ratio is the median over rounds of the ratio within a
round, so on a machine with other load read the ratios. Brackets hold the aim; bold ratios miss it.
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
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.table import Row, markdown
from moe_vision.common.paths import ROOT, expanded

SUITES = {
    'layer': 'benchmarks.layer',
    'step': 'benchmarks.step',
    'methods': 'benchmarks.methods',
    'peers': 'benchmarks.peers',
    'latency': 'benchmarks.latency',
    'seeds': 'benchmarks.seeds',
    'input': 'benchmarks.input_pipeline',
    'startup': 'benchmarks.startup',
}

VARIABLES = ('XLA_FLAGS', 'GLIBC_TUNABLES')  # variables of the environment that change speed


def device() -> str:
    """The device as the name of a file: the accelerator, or the number of processor cores."""
    import jax

    first = jax.devices()[0]
    if first.platform == 'cpu':
        cores = len(os.sched_getaffinity(0))
        return f'cpu-{cores}-core{"s" * (cores > 1)}'
    name = re.sub(r'[^a-z0-9]+', '-', first.device_kind.lower()).strip('-')
    return f'{name}-x{jax.device_count()}'


def setting() -> dict[str, Any]:
    """Device, versions, commit and environment of the measurements."""
    import jax

    packages = ('jax', 'jaxlib', 'flax', 'optax', 'numpy', 'grain', 'opencv-python-headless')
    installed = {}
    for name in packages:
        try:
            installed[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    commit = subprocess.run(
        ['git', 'rev-parse', '--short', 'HEAD'],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    ).stdout.strip()
    return {
        'device': jax.devices()[0].device_kind,
        'count': jax.device_count(),
        'python': '.'.join(map(str, sys.version_info[:3])),
        'versions': installed,
        'commit': commit,
        'environment': {n: os.environ[n] for n in VARIABLES if n in os.environ},
    }


def versions(setting: Mapping[str, Any]) -> str:
    return ', '.join(f'{name} {version}' for name, version in setting['versions'].items())


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--suite', default=','.join(SUITES), help='some of ' + ','.join(SUITES))
    parser.add_argument('--rounds', type=int, default=9, help='interleaved rounds, 9 by default')
    parser.add_argument('--out', type=expanded, default=None, help='folder for DEVICE.md and .json')
    args = parser.parse_args()
    names = args.suite.split(',')
    if unknown := [n for n in names if n not in SUITES]:
        parser.error(f"unknown suite '{unknown[0]}'; allowed: {', '.join(SUITES)}")
    suites: dict[str, dict[str, Any]] = {}
    for name in names:
        began = time.monotonic()
        module, rows = importlib.import_module(SUITES[name]), []
        for row in module.rows(args.rounds):
            print(f'{name}: {_line(row)}', file=sys.stderr, flush=True)
            rows.append(row.record())
            suites[name] = {
                'about': (module.__doc__ or '').strip().split('\n')[0],
                'rows': rows,
                'seconds': time.monotonic() - began,
            }
            if args.out:  # after each row, so that nothing is lost if a later one fails
                _write(Path(args.out), suites)
    print('\n'.join(_text(suites)))
    return 0


def _line(row: Row) -> str:
    ratios = ', '.join(f'{r:.3g} of {n}' for n, r in row.ratios.items())
    return f'{row.case}: {row.milliseconds[row.subject]:.3g} ms; {ratios}'


def _text(suites: Mapping[str, Mapping[str, Any]]) -> list[str]:
    return [
        line
        for name, suite in suites.items()
        for line in ('', f'## {name}', '', suite['about'], '', *markdown(suite['rows']))
    ]


def _write(folder: Path, measured: Mapping[str, Mapping[str, Any]]) -> None:
    """Writes the suites measured now, and keeps the others that the files hold."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f'{device()}.json'
    suites = json.loads(path.read_text())['suites'] if path.exists() else {}
    suites |= {n: {**suite, 'setting': setting()} for n, suite in measured.items()}
    path.write_text(json.dumps({'suites': suites}, indent=1) + '\n')
    lines = [
        f'# {device()}',
        '',
        'Made by `python -m benchmarks.run`; ratios are medians over '
        'interleaved rounds, with the aim in brackets; bold ratios miss it.',
    ]
    for name in SUITES:
        if name in suites:
            s = suites[name]['setting']
            lines += [
                '',
                f'## {name}',
                '',
                suites[name]['about'],
                '',
                '`'
                + ''.join(f'{n}={v} ' for n, v in s['environment'].items())
                + f'python -m benchmarks.run --suite={name}` at commit {s["commit"]}, '
                f'{s["device"]}, python {s["python"]}, {versions(s)}.',
                '',
                *markdown(suites[name]['rows']),
            ]
    path.with_suffix('.md').write_text('\n'.join(lines) + '\n')


if __name__ == '__main__':
    sys.exit(main())
