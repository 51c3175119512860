"""A convolution that stays fast on a CPU under vmap over its kernel and in loops.

There XLA runs two forms of a convolution many times slower than the plain one: grouped by a
batch of kernels, and gradients in the layouts that jax gives them when they stand inside a loop.
Here a batch of kernels is one plain convolution per item, and both gradients are written as plain
convolutions of operands laid out beforehand. Not for gradients of gradients. Other devices run
jax's own convolution.

Axes: N images, H W space in, P Q space out, h w taps, I channels in, O channels out, g groups.
"""

import functools
from collections.abc import Callable

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
        return _on_cpu(x, kernel, stride, groups)
    return _plain(x, kernel, 'SAME', strides=(stride, stride), groups=groups)


def in_flax(x: Array, kernel: Array, strides: tuple[int, ...], padding: str, *,
            feature_group_count: int = 1, **_) -> Array:
    """`convolution` as `conv_general_dilated=` of a flax `nn.Conv`: one stride, SAME."""
    if padding != 'SAME' or len(set(strides)) > 1:
        raise ValueError(f'one stride and SAME are known here, not {strides} and {padding}')
    return convolution(x, kernel, strides[0], feature_group_count)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _on_cpu(x, kernel, stride, groups):
    return _forward(stride, groups)(x, kernel)


def _with_residuals(x, kernel, stride, groups):
    return _on_cpu(x, kernel, stride, groups), (x, kernel)


def _gradients(stride, groups, residuals, dy):
    x, kernel = residuals
    dx = _input_gradient(x.shape[-3:-1], stride, groups)(dy, kernel)
    return dx, _kernel_gradient(kernel.shape[-4:-2], stride, groups)(x, dy)


_on_cpu.defvjp(_with_residuals, _gradients)


def _item_by_item(fn: Callable[[Array, Array], Array], images_out: bool) -> Callable:
    """`fn(images, other)` with a rule for vmap: plain calls of `fn`, one per item.

    Where `other` is the same for all items and the result is images, too, items are more images.
    """
    rule = custom_vmap(fn)

    @rule.def_vmap
    def batched(size, batched, images, other):
        if images_out and not batched[1]:
            out = rule(images.reshape(-1, *images.shape[2:]), other)
            return out.reshape(*images.shape[:2], *out.shape[1:]), True
        at = lambda x, i, is_batched: x[i] if is_batched else x  # noqa: E731
        return jnp.stack([rule(at(images, i, batched[0]), at(other, i, batched[1]))
                          for i in range(size)]), True

    return rule


@functools.cache
def _forward(stride: int, groups: int) -> Callable:
    def fn(x, kernel):
        pads = _pads(x.shape[1:3], kernel.shape[:2], stride)
        return _plain(x, kernel, pads, strides=(stride, stride), groups=groups)
    return _item_by_item(fn, images_out=True)


@functools.cache
def _input_gradient(space: tuple[int, int], stride: int, groups: int) -> Callable:
    """(dy [N, P, Q, O], kernel) to dx [N, H, W, I]: dy, spread out, with the kernel turned."""
    def fn(dy, kernel):
        h, w, i, o = kernel.shape
        turned = jnp.flip(kernel, (0, 1)).reshape(h, w, i, groups, o // groups)
        turned = turned.transpose(0, 1, 4, 3, 2).reshape(h, w, o // groups, groups * i)
        pads = []
        for n, taps, p, (low, _) in zip(space, (h, w), dy.shape[1:3],
                                        _pads(space, (h, w), stride), strict=True):
            before = taps - 1 - low
            pads.append((before, n + taps - 1 - ((p - 1) * stride + 1) - before))
        return _plain(dy, lax.optimization_barrier(turned), tuple(pads), spread=(stride, stride),
                      groups=groups)
    return _item_by_item(fn, images_out=True)


@functools.cache
def _kernel_gradient(taps: tuple[int, int], stride: int, groups: int) -> Callable:
    """(x, dy) to the kernel's gradient: x with channels and images swapped, dy as the kernel."""
    def fn(x, dy):
        n, *space, i = x.shape
        p, q, o = dy.shape[1:]
        images = x.reshape(n, *space, groups, i // groups).transpose(4, 1, 2, 3, 0)
        images = images.reshape(i // groups, *space, groups * n)
        turned = dy.transpose(1, 2, 0, 3)
        images, turned = lax.optimization_barrier((images, turned))
        pads = tuple((low, (out - 1) * stride + k - size - low) for size, k, out, (low, _) in zip(
            space, taps, (p, q), _pads(tuple(space), taps, stride), strict=True))
        out = _plain(images, turned, pads, dilation=(stride, stride), groups=groups)
        return out.transpose(1, 2, 0, 3)
    return _item_by_item(fn, images_out=False)


def _plain(x, kernel, pads, strides=(1, 1), spread=(1, 1), dilation=(1, 1), groups=1):
    return lax.conv_general_dilated(
        x, kernel, strides, pads, lhs_dilation=spread, rhs_dilation=dilation,
        feature_group_count=groups, dimension_numbers=('NHWC', 'HWIO', 'NHWC'))


def _pads(space: tuple[int, ...], taps: tuple[int, ...], stride: int) -> Pads:
    (a, b), (c, d) = lax.padtype_to_pads(space, taps, (stride, stride), 'SAME')
    return (a, b), (c, d)
