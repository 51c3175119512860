"""Comparing functions on a noisy machine: interleaved rounds, medians, ratios within one run."""

import functools
import statistics
from collections.abc import Callable
from typing import Any

import jax

from moe_vision import timing


def compiled(fn: Callable, *args: Any) -> Any:
    """The jitted function compiled for these arguments, with its own `memory_analysis`."""
    return jax.jit(fn).lower(*args).compile()


def medians(fns: dict[str, Callable], args: dict[str, tuple], rounds: int = 9) -> dict[str, float]:
    """Median seconds of each function, one call of each per round after two warm-up rounds."""
    calls = {name: functools.partial(fn, *args[name]) for name, fn in fns.items()}
    return {name: statistics.median(t) for name, t in timing.rounds(calls, rounds).items()}


def temporary_mb(program: Any) -> float:
    """Temporary memory of a compiled program, in MB, from the compiler's own analysis."""
    analysis = program.memory_analysis()
    return analysis.temp_size_in_bytes / 1e6 if analysis else float('nan')
