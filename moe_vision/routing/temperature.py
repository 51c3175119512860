"""The temperature of a router, by which logits are divided before the softmax, and entropies."""

import math

import jax
import jax.numpy as jnp

from moe_vision.routing.types import Array


def schedule(kind: str, start: float, end: float, fraction: Array | float) -> Array:
    """The temperature after this fraction of training (0 to 1), a float32 scalar.

    linear and cosine go from start to end. sigmoid is end + (start - end) / (1 + exp(7 (p - 1/2)))
    (arXiv 2605.15484, quoted from another paper); it starts just below `start` and ends just above
    `end`. entropy_floor is linear here, and `with_entropy_floor` then raises it for each token.
    """
    p = jnp.clip(jnp.asarray(fraction, jnp.float32), 0.0, 1.0)
    if kind == 'constant':
        return jnp.full_like(p, start)
    if kind in ('linear', 'entropy_floor'):
        return start + (end - start) * p
    if kind == 'cosine':
        return end + (start - end) * 0.5 * (1 + jnp.cos(jnp.pi * p))
    if kind == 'sigmoid':
        return end + (start - end) / (1 + jnp.exp(7 * (p - 0.5)))
    raise ValueError(f'unknown temperature schedule {kind!r}')


def entropy(probs: Array) -> Array:
    """Shannon entropy in nats over the last axis. 0 ln 0 is 0 and has a finite gradient."""
    return -jnp.sum(probs * jnp.log(jnp.maximum(probs, 1e-30)), axis=-1)


def tsallis(probs: Array, q: float) -> Array:
    """Tsallis entropy (1 - sum p^q) / (q - 1) over the last axis; at q = 1 that of Shannon.

    It is written as the sum of p (1 - p^(q-1)) / (q - 1), which is exact near q = 1, too.
    """
    if q == 1:
        return entropy(probs)
    log_p = jnp.log(jnp.maximum(probs, 1e-30))
    return -jnp.sum(probs * jnp.expm1((q - 1) * log_p), axis=-1) / (q - 1)


def tsallis_share(probs: Array, q: float) -> Array:
    """Tsallis entropy as a share of its most, (1 - N^(1-q)) / (q - 1), that of N equal shares."""
    n = probs.shape[-1]
    most = math.log(n) if q == 1 else -math.expm1((1 - q) * math.log(n)) / (q - 1)
    return tsallis(probs, q) / (most or 1.0)


def with_entropy_floor(logits: Array, tau: Array, floor: float, steps: int = 24) -> Array:
    """The least temperature >= tau at which each token's entropy is at least floor * ln N.

    Each token has its own, so that no image's route depends on another image. A bisection finds it
    in log temperature over [tau, 1024 tau], without gradient.

    Args:
      logits: [..., N].
      tau: scalar.
      floor: the least entropy as a share of ln N, from 0 to below 1.
      steps: of the bisection.

    Returns:
      temperature [...].
    """
    logits = jax.lax.stop_gradient(logits)
    target = floor * jnp.log(logits.shape[-1])

    def enough(log_t):
        return entropy(jax.nn.softmax(logits * jnp.exp(-log_t)[..., None])) >= target

    low = jnp.broadcast_to(jnp.log(tau), logits.shape[:-1])
    start_is_enough = enough(low)
    high = low + jnp.log(1024.0)

    def halve(bounds, _):
        lo, hi = bounds
        mid = 0.5 * (lo + hi)
        ok = enough(mid)
        return (jnp.where(ok, lo, mid), jnp.where(ok, mid, hi)), None

    (_, least), _ = jax.lax.scan(halve, (low, high), None, length=steps)
    return jnp.exp(jnp.where(start_is_enough, low, least))
