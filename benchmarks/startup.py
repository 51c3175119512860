"""Seconds until a command answers, each beside its limit: a mistake, a summary, a first step.

Each command runs in its own process. The first step of the embedded default is timed with empty
folders for data and compiled programs (cold), and again with what that left in them (warm).
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

from benchmarks.table import Row
from moe_vision.common.paths import ROOT

DEFAULT = '--config=configs/digits_k2.py'


def environment(home: str) -> dict[str, str]:
    """The environment of a command that keeps its compiled programs in the folder `home`."""
    return {n: v for n, v in os.environ.items() if n != 'JAX_COMPILATION_CACHE_DIR'} | {
        'XDG_CACHE_HOME': home
    }


def seconds(arguments: list[str], home: str, until: str = '') -> float:
    """Seconds of `main.py` to its end, or to the first line on stderr that starts with `until`."""
    began = time.monotonic()
    run = subprocess.Popen(
        [sys.executable, 'main.py', *arguments],
        cwd=ROOT,
        text=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=environment(home),
    )
    assert run.stderr is not None
    for line in run.stderr:
        if until and line.startswith(until):
            break
    else:
        until = ''
    took = time.monotonic() - began
    if until:
        run.kill()
    run.communicate()
    return took


def beside_limit(case: str, times: list[float], limit: float) -> Row:
    return Row(case, {'took': times, 'limit': [limit] * len(times)}, {'limit': 1.0})


def rows(rounds: int) -> Iterator[Row]:
    number = max(1, rounds // 3)
    with tempfile.TemporaryDirectory() as home:
        yield beside_limit(
            'a mistake in --config',
            [
                seconds(['--config=configs/digits_k3.py', '--workdir=unused'], home)
                for _ in range(number)
            ],
            3.0,
        )
        yield beside_limit(
            '--mode=summary',
            [seconds(['--mode=summary', DEFAULT], home) for _ in range(number)],
            8.0,
        )
    cold: list[float] = []
    warm: list[float] = []
    for _ in range(number):
        with tempfile.TemporaryDirectory() as home:
            for times in cold, warm:
                with tempfile.TemporaryDirectory() as workdir:
                    times.append(
                        seconds(
                            [
                                DEFAULT,
                                f'--workdir={workdir}/run',
                                f'--config.dataset.data_dir={home}',
                                '--config.log.every_steps=1',
                            ],
                            home,
                            until='step 1/',
                        )
                    )
    yield beside_limit('first step of digits_k2, cold', cold, 25.0)
    yield beside_limit('first step of digits_k2, warm', warm, 25.0)
