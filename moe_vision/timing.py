"""Timing on a noisy machine: functions take turns, so that a slow minute slows all alike."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import jax


def rounds(fns: Mapping[str, Callable[[], Any]], number: int, budget_s: float = float('inf'),
           least: int = 1, warm_up: int = 2,
           clock: Callable[[], float] = time.perf_counter) -> dict[str, list[float]]:
    """Seconds of each call: one call of each function per round, in the order given.

    Args:
      fns: functions without arguments; their results are waited for.
      number: of rounds, after the warm-up.
      budget_s: no round begins after so many seconds of rounds, the first `least` apart.
      warm_up: rounds that are not counted.
    """
    times: dict[str, list[float]] = {name: [] for name in fns}
    start = clock()
    for turn in range(-warm_up, number):
        if turn == 0:
            start = clock()
        if turn >= least and clock() - start >= budget_s:
            break
        for name, fn in fns.items():
            begin = clock()
            jax.block_until_ready(fn())
            if turn >= 0:
                times[name].append(clock() - begin)
    return times
