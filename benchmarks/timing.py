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
      seconds: time it took to trace and compile.
    """

    program: Any
    seconds: float

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
    program = (fn if hasattr(fn, 'lower') else jax.jit(fn)).lower(*args).compile()
    return Compiled(program, time.perf_counter() - begin)
