"""Compiles programs to be timed; reports compile times and memory."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A compiled program.

    Attributes:
      seconds: time it took to trace, lower and compile; on a GPU the last one tries out kernels.
      tracing, lowering: their shares of it, in seconds.
    """

    program: Any
    seconds: float
    tracing: float
    lowering: float

    def __call__(self, *args: Any) -> Any:
        return self.program(*args)

    @property
    def temporary_mb(self) -> float:
        """Temporary memory in MB, as the compiler reports it."""
        return self._bytes('temp_size_in_bytes') / 1e6

    @property
    def total_mb(self) -> float:
        """Temporaries and results in MB; temporaries may reuse the memory of results."""
        return self.temporary_mb + self._bytes('output_size_in_bytes') / 1e6

    def _bytes(self, name: str) -> float:
        return float(getattr(self.program.memory_analysis(), name, 'nan'))


def compiled(fn: Callable, *args: Any) -> Compiled:
    """Compiles a function for these arguments; jits it first unless it is jitted already."""
    begin = time.perf_counter()
    traced = (fn if hasattr(fn, 'lower') else jax.jit(fn)).trace(*args)
    after_tracing = time.perf_counter()
    lowered = traced.lower()
    after_lowering = time.perf_counter()
    program = lowered.compile()
    return Compiled(
        program,
        time.perf_counter() - begin,
        after_tracing - begin,
        after_lowering - after_tracing,
    )
