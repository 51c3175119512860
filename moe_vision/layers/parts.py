"""What experts are made of: convolution, bias with activation, and norms, on maps and on vectors.

Axes: N tokens or slots, HW space, D channels, F hidden width.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from moe_vision.common import platform
from moe_vision.layers.convolution import convolution

Array = jax.Array


def conv(x: Array, kernel: Array, groups: int = 1) -> Array:
    """SAME convolution with stride 1 of x [N, H, W, D] and kernel [h, w, D / groups, D_out].

    Off a CPU, one of 1x1 is a product, which a vmap over experts makes one batched product.
    """
    kernel = kernel.astype(x.dtype)
    if kernel.shape[:2] == (1, 1) and groups == 1 and platform.target() != 'cpu':
        return x @ kernel[0, 0]
    return convolution(x, kernel, groups=groups)


def biased(act: Callable[[Array], Array], h: Array, bias: Array) -> Array:
    """act(h + bias) of h [..., F] and a bias that broadcasts to it.

    For a GPU, the backward pass computes it again from h, which the product has written anyway. So
    h + bias is never written, and the hidden layer moves through memory less often.
    """
    if platform.target() != 'gpu':
        return act(h + bias)
    # Inside a shard_map, this zero varies over the same mesh axes as h. So jax sums the gradient of
    # the bias over them.
    return _biased(act, h, bias + jnp.zeros_like(h, shape=()))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _biased(act, h, bias):
    return act(h + bias)


def _biased_fwd(act, h, bias):
    return act(h + bias), (h, bias)


def _biased_bwd(act, residuals, dy):
    h, bias = lax.optimization_barrier(residuals)  # or XLA would merge it with the forward pass
    return jax.vjp(lambda h, bias: act(h + bias), h, bias)[1](dy)


_biased.defvjp(_biased_fwd, _biased_bwd)


def group_norm(x: Array, scale: Array, bias: Array, groups: int) -> Array:
    """Norm of x [N, H, W, D] over space and the channels of a group, per image, in float32."""
    n, h, w, d = x.shape
    if d % groups:
        raise ValueError(f'norm_groups is {groups}, which does not divide {d} channels')
    y = x.astype(jnp.float32).reshape(n, h * w, groups, d // groups)
    mean = y.mean((1, 3), keepdims=True)
    var = jnp.square(y - mean).mean((1, 3), keepdims=True)
    y = ((y - mean) * lax.rsqrt(var + 1e-5)).reshape(n, h, w, d)
    return (y * scale + bias).astype(x.dtype)


def layer_norm(x: Array, scale: Array, bias: Array, epsilon: float = 1e-6) -> Array:
    """Norm of x [..., D] over D, per position, in float32."""
    y = x.astype(jnp.float32)
    y = y - y.mean(-1, keepdims=True)
    y = y * lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + epsilon)
    return (y * scale + bias).astype(x.dtype)
