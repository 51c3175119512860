"""Programs to be timed, and what the compiler says of their memory."""

from collections.abc import Callable
from typing import Any

import jax


def compiled(fn: Callable, *args: Any) -> Any:
    """The jitted function compiled for these arguments, with its own `memory_analysis`."""
    return jax.jit(fn).lower(*args).compile()


def temporary_mb(program: Any) -> float:
    """Temporary memory of a compiled program, in MB, from the compiler's own analysis."""
    analysis = program.memory_analysis()
    return analysis.temp_size_in_bytes / 1e6 if analysis else float('nan')
