"""Comparing functions on a noisy machine: interleaved rounds, medians, ratios within one run."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax


def compiled(fn: Callable, *args: Any) -> Any:
    """The jitted function compiled for these arguments, with its own `memory_analysis`."""
    return jax.jit(fn).lower(*args).compile()


def medians(fns: dict[str, Callable], args: dict[str, tuple], rounds: int = 9) -> dict[str, float]:
    """Median seconds of each function, one call of each per round after two warm-up rounds."""
    times: dict[str, list[float]] = {name: [] for name in fns}
    for turn in range(rounds + 2):
        for name, fn in fns.items():
            begin = time.perf_counter()
            jax.block_until_ready(fn(*args[name]))
            if turn >= 2:
                times[name].append(time.perf_counter() - begin)
    return {name: statistics.median(t) for name, t in times.items()}


def temporary_mb(program: Any) -> float:
    """Temporary memory of a compiled program, in MB, from the compiler's own analysis."""
    analysis = program.memory_analysis()
    return analysis.temp_size_in_bytes / 1e6 if analysis else float('nan')
