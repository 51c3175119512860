"""Programs to be timed, and what the compiler says of them."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A program and its price before it first runs.

    Attributes:
      seconds: of tracing and compiling.
    """

    program: Any
    seconds: float

    def __call__(self, *args: Any) -> Any:
        return self.program(*args)

    @property
    def temporary_mb(self) -> float:
        """Temporary memory in MB, from the compiler's own analysis."""
        return self._bytes('temp_size_in_bytes') / 1e6

    @property
    def total_mb(self) -> float:
        """Temporaries and results in MB: where results have room, temporaries lie in them."""
        return self.temporary_mb + self._bytes('output_size_in_bytes') / 1e6

    def _bytes(self, name: str) -> float:
        return float(getattr(self.program.memory_analysis(), name, 'nan'))


def compiled(fn: Callable, *args: Any) -> Compiled:
    """The function compiled for these arguments; what is jitted already stays as it is."""
    begin = time.perf_counter()
    program = (fn if hasattr(fn, 'lower') else jax.jit(fn)).lower(*args).compile()
    return Compiled(program, time.perf_counter() - begin)
