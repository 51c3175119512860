"""`jax.jit` for programs that run once: on a CPU they are compiled quickly instead of well."""

from collections.abc import Callable

import jax


def jit(fn: Callable) -> Callable:
    """The function, compiled when it is called."""
    unoptimized = {'xla_backend_optimization_level': 0} if jax.default_backend() == 'cpu' else None
    return jax.jit(fn, compiler_options=unoptimized)
