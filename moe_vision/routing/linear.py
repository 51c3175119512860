"""The product that linear routers have in common.

Axes: G groups, T tokens, D width, N ids a router may choose.
"""

import functools

import jax
import jax.numpy as jnp

from moe_vision.routing.types import Array

_product = functools.partial(jnp.einsum, precision='highest')


def linear(features: Array, kernel: Array, factors: Array | None = None) -> Array:
    """Normalised features [G, T, D] times kernel [D, N], in float32: [G, T, N].

    Features get zero mean and unit variance over D, without parameters.

    Args:
      factors: [G, T, D], on the normalised features.
    """
    x, kernel = features.astype(jnp.float32), kernel.astype(jnp.float32)
    if factors is None:
        # The zero lies where x does: inside a shard_map the kernel's gradient is then summed.
        return _linear(x, kernel + jnp.zeros_like(x, shape=()))
    mean, scale = _moments(x)
    return _product('gtd,de->gte', factors * (scale * (x - mean)), kernel)


@jax.custom_vjp
def _linear(x: Array, kernel: Array) -> Array:
    """`linear`, where normalised features are never written out.

    A kernel of centred columns takes the mean of the features away, and what comes out is divided
    by their deviation. Rounding grows with mean over deviation: 1e-6 of the largest logit
    where that is 10, 2e-4 where it is 1,000. Inference of no more tokens than ids normalises them:
    they are less than the kernel.
    """
    if x.size > kernel.size:
        return _linear_fwd(x, kernel)[0]
    mean, scale = _moments(x)
    return _product('...d,de->...e', scale * (x - mean), kernel)


def _moments(x: Array) -> tuple[Array, Array]:
    """Mean, and one over the standard deviation, of x [..., D]: [..., 1]."""
    mean = x.mean(-1, keepdims=True)
    return mean, jax.lax.rsqrt(jnp.square(x - mean).mean(-1, keepdims=True) + 1e-6)


def _linear_fwd(x, kernel):
    centred = kernel - kernel.mean(0)
    out = _product('...d,de->...e', x, centred)
    mean, scale = _moments(x)
    return scale * out, (x, centred, out, mean, scale)


def _linear_bwd(saved, d_logits):
    x, centred, out, mean, scale = saved
    d_out = scale * d_logits
    # scale = (mean of (x - mean)^2 + 1e-6)^-1/2
    along = -scale**3 * (d_logits * out).sum(-1, keepdims=True) / x.shape[-1]
    # Not along * (x - mean): for that XLA makes sums over D again, in a pass of its own.
    d_x = along * x + (_product('...e,de->...d', d_out, centred) - along * mean)
    d_kernel = _product('nd,ne->de', x.reshape(-1, x.shape[-1]),
                        d_out.reshape(-1, d_out.shape[-1]))
    return d_x, d_kernel - d_kernel.mean(0)


_linear.defvjp(_linear_fwd, _linear_bwd)
