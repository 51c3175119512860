"""Timing on a noisy machine: functions take turns, so that a slow minute slows all alike."""

import functools
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax


class Compiling:
    """Seconds spent making programs (tracing, lowering, compiling), of the whole process.

    Attributes:
      spans: (begin, end) on the monotonic clock, none inside another.
    """

    def __init__(self) -> None:
        self.spans: list[tuple[float, float]] = []

    def __call__(self, event: str, duration_secs: float, **_: str | int) -> None:
        """An event of `jax.monitoring`, as it ends; those it contains have ended before."""
        if not event.startswith('/jax/core/compile/'):
            return
        end = time.monotonic()
        begin = end - duration_secs
        while self.spans and self.spans[-1][0] >= begin:
            self.spans.pop()
        if self.spans:
            begin = max(begin, self.spans[-1][1])
        self.spans.append((begin, end))

    @property
    def seconds(self) -> float:
        return sum(end - begin for begin, end in self.spans)


@functools.cache
def compiling() -> Compiling:
    """The one of this process; it counts from the first call on."""
    found = Compiling()
    jax.monitoring.register_event_duration_secs_listener(found)
    return found


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
