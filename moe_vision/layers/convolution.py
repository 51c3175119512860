"""A convolution that stays fast on a CPU under vmap over its kernel and in loops.

There XLA runs two forms of a convolution many times slower than the plain one: grouped by a
batch of kernels, and gradients in the layouts that jax gives them when they stand inside a loop.
Here a batch of kernels is one plain convolution per item, and both gradients are written as plain
convolutions of operands laid out beforehand. Not for gradients of gradients. Other devices run
jax's own convolution.

Axes: N images, H W space in, P Q space out, h w taps, I channels in, O channels out, g groups.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap

from moe_vision.layers import platform

Array = jax.Array
Pads = tuple[tuple[int, int], tuple[int, int]]


def convolution(x: Array, kernel: Array, stride: int = 1, groups: int = 1) -> Array:
    """SAME convolution.

    Args:
      x: [N, H, W, I].
      kernel: [h, w, I / g, O], of x's type.
      stride: in both directions.
      groups: g; I for a depthwise convolution.

    Returns:
      [N, P, Q, O], P = ceil(H / stride).
    """
    if platform.target() == 'cpu':
        # The zero lies where x does: inside a shard_map the kernel's gradient is then summed.
        return _on_cpu(x, kernel + jnp.zeros_like(x, shape=()), stride, groups)
    return _plain(x, kernel, 'SAME', strides=(stride, stride), groups=groups)


def in_flax(x: Array, kernel: Array, strides: tuple[int, ...], padding: str, *,
            feature_group_count: int = 1, **_) -> Array:
    """`convolution` as `conv_general_dilated=` of a flax `nn.Conv`: one stride, SAME."""
    if padding != 'SAME' or len(set(strides)) > 1:
        raise ValueError(f'one stride and SAME are known here, not {strides} and {padding}')
    return convolution(x, kernel, strides[0], feature_group_count)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _on_cpu(x, kernel, stride, groups):
    pads = _pads(x.shape[1:3], kernel.shape[:2], stride)
    return _one_by_one(x, kernel, pads, strides=(stride, stride), groups=groups)


def _with_residuals(x, kernel, stride, groups):
    return _on_cpu(x, kernel, stride, groups), (x, kernel)


def _gradients(stride, groups, residuals, dy):
    x, kernel = residuals
    dx = _input_gradient(dy, kernel, x.shape[1:3], stride, groups)
    return dx, _kernel_gradient(x, dy, kernel.shape[:2], stride, groups)


_on_cpu.defvjp(_with_residuals, _gradients)


def _input_gradient(dy: Array, kernel: Array, space: tuple[int, ...], stride: int,
                    groups: int) -> Array:
    """(dy [N, P, Q, O], kernel) to dx [N, H, W, I]: dy, spread out, with the kernel turned."""
    h, w, i, o = kernel.shape
    turned = jnp.flip(kernel, (0, 1)).reshape(h, w, i, groups, o // groups)
    turned = turned.transpose(0, 1, 4, 3, 2).reshape(h, w, o // groups, groups * i)
    pads = []
    for n, taps, p, (low, _) in zip(space, (h, w), dy.shape[1:3], _pads(space, (h, w), stride),
                                    strict=True):
        before = taps - 1 - low
        pads.append((before, n + taps - 1 - ((p - 1) * stride + 1) - before))
    return _one_by_one(dy, lax.optimization_barrier(turned), tuple(pads), spread=(stride, stride),
                       groups=groups)


def _kernel_gradient(x: Array, dy: Array, taps: tuple[int, int], stride: int,
                     groups: int) -> Array:
    """(x, dy) to the kernel's gradient: x with channels and images swapped, dy as the kernel."""
    n, *space, i = x.shape
    p, q, o = dy.shape[1:]
    images = x.reshape(n, *space, groups, i // groups).transpose(4, 1, 2, 3, 0)
    images = images.reshape(i // groups, *space, groups * n)
    turned = dy.transpose(1, 2, 0, 3)
    images, turned = lax.optimization_barrier((images, turned))
    pads = tuple((low, (out - 1) * stride + k - size - low) for size, k, out, (low, _) in zip(
        space, taps, (p, q), _pads(tuple(space), taps, stride), strict=True))
    out = _one_by_one(images, turned, pads, dilation=(stride, stride), groups=groups)
    return out.transpose(1, 2, 0, 3)


def _one_by_one(x: Array, kernel: Array, *args: Any, **options: Any) -> Array:
    """`_plain` with a rule for vmap: a plain convolution per item.

    Where the kernel is the same for all items, they are more images.
    """
    fn = custom_vmap(lambda x, kernel: _plain(x, kernel, *args, **options))

    @fn.def_vmap
    def rule(size, batched, x, kernel):
        if not batched[1]:
            out = fn(x.reshape(-1, *x.shape[2:]), kernel)
            return out.reshape(*x.shape[:2], *out.shape[1:]), True
        at = lambda a, i, is_batched: a[i] if is_batched else a  # noqa: E731
        return jnp.stack([fn(at(x, i, batched[0]), at(kernel, i, batched[1]))
                          for i in range(size)]), True

    return fn(x, kernel)


def _plain(x, kernel, pads, strides=(1, 1), spread=(1, 1), dilation=(1, 1), groups=1):
    return lax.conv_general_dilated(
        x, kernel, strides, pads, lhs_dilation=spread, rhs_dilation=dilation,
        feature_group_count=groups, dimension_numbers=('NHWC', 'HWIO', 'NHWC'))


def _pads(space: tuple[int, ...], taps: tuple[int, ...], stride: int) -> Pads:
    (a, b), (c, d) = lax.padtype_to_pads(space, taps, (stride, stride), 'SAME')
    return (a, b), (c, d)
