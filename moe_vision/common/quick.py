"""`jax.jit` for programs that run only a few times: on a CPU they are compiled quickly instead of
well. Optimizing code that draws random numbers takes many seconds there."""

from collections.abc import Callable
from typing import Any

import jax

UNOPTIMIZED = {'xla_backend_optimization_level': 0}


def jit(fn: Callable, **options: Any) -> Callable:
    """The function, compiled when it is called.

    Args:
      options: as `jax.jit` takes them.
    """
    on_cpu = jax.default_backend() == 'cpu'
    return jax.jit(fn, compiler_options=UNOPTIMIZED if on_cpu else None, **options)
