"""Entropic optimal transport between the tokens of a group and the experts, in the log domain.

    P = argmax <P, S> - xi <P, log P>,    P 1 = 1,    P^T 1 = (T / E) 1

It is P[t, e] = exp(S[t, e] / xi + u[t] + v[e]). Sinkhorn's iterations find u and v (Cuturi 2013).

Axes: G groups, T tokens, E experts.
"""

import jax
import jax.numpy as jnp

from moe_vision.routing.types import Array


def log_plan(scores: Array, valid: Array, xi: float, iterations: int) -> Array:
    """log P, [G, T, E] float32, after a fixed number of iterations.

    The row of each valid token sums to 1 up to rounding, and each column to T / E the more closely
    the more iterations there are, with the valid tokens counted as T. u and v are without gradient,
    so the gradient is that of S / xi. Rows of padding mean nothing.

    Args:
      scores: S, [G, T, E].
      valid: [G, T].
      xi: weight of the entropy, in units of the scores: towards 0 the plan becomes an assignment,
        and it becomes uniform where xi is large.
    """
    scores = scores / xi
    fixed = jax.lax.stop_gradient(scores)
    # A group of nothing but padding is treated like one without padding, so that all stays finite.
    counts = (valid | ~valid.any(1, keepdims=True))[..., None]
    share = jnp.log(counts.sum(1, keepdims=True) / scores.shape[-1])

    def rows(v: Array) -> Array:
        return -jax.nn.logsumexp(fixed + v, axis=2, keepdims=True)

    def iterate(potentials: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], None]:
        u, _v = potentials
        v = share - jax.nn.logsumexp(fixed + u, axis=1, keepdims=True, where=counts)
        return (rows(v), v), None

    start = jnp.zeros_like(fixed[:, :1])
    (u, v), _ = jax.lax.scan(iterate, (rows(start), start), None, length=iterations)
    return scores + u + v
