"""Measures time: of compiling, and of functions that take turns on a noisy machine."""

import functools
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax

PARTS = {'tracing': 'jaxpr_trace', 'lowering': 'jaxpr_to_mlir', 'compiling': 'backend_compile'}


class Compiling:
    """Adds up the seconds that this process spends on tracing, lowering and compiling programs.

    Args:
      part: a value of `PARTS`, to count that alone.

    Attributes:
      spans: (begin, end) on the monotonic clock, without overlap.
    """

    def __init__(self, part: str = '') -> None:
        self._events = f'/jax/core/compile/{part}'
        self.spans: list[tuple[float, float]] = []

    def __call__(self, event: str, duration_secs: float, **_: str | int) -> None:
        """Receives an event of `jax.monitoring` when it ends, after the events inside it."""
        if not event.startswith(self._events):
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
def compiling(part: str = '') -> Compiling:
    """This process's `Compiling` of a part; it counts from the first call on."""
    listener = Compiling(part)
    jax.monitoring.register_event_duration_secs_listener(listener)
    return listener


def rounds(
    fns: Mapping[str, Callable[[], Any]],
    number: int,
    budget_s: float = float('inf'),
    least: int = 1,
    warm_up: int = 2,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Times calls in rounds; returns the seconds of each function's calls.

    A round calls each function once, in the given order, so that a slow minute of the machine slows
    all of them alike.

    Args:
      fns: functions without arguments; a call ends when its result is ready.
      number: rounds after the warm-up.
      budget_s: no further round begins after this many seconds.
      least: rounds to do regardless of the budget.
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
