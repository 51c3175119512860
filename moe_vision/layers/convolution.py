"""A convolution that stays fast under a vmap over its kernel, and on a CPU also inside loops.

XLA runs a convolution that is grouped by a batch of kernels many times slower than ordinary ones.
So this module runs a batch of kernels as one ordinary convolution per item, forward and backward.
On a CPU, gradients inside a loop are slow as well, in the layouts that jax gives them. There both
gradients are ordinary convolutions of operands that are laid out beforehand. Other devices run
jax's own gradients. Neither form supports gradients of gradients.

Axes: N images, H W space in, P Q space out, h w taps, I channels in, O channels out, g groups.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap

from moe_vision.common import platform

Array = jax.Array
Pads = tuple[tuple[int, int], tuple[int, int]]


def convolution(
    x: Array, kernel: Array, stride: int = 1, groups: int = 1, pads: Pads | None = None
) -> Array:
    """SAME convolution, or one with given padding.

    Args:
      x: [N, H, W, I].
      kernel: [h, w, I / g, O], of x's type.
      stride: in both directions.
      groups: g; I for a depthwise convolution.
      pads: zeros before and after, of each axis of space; None is SAME.

    Returns:
      [N, P, Q, O]; P = ceil(H / stride) if it is SAME.
    """
    # Inside a shard_map, this zero varies over the same mesh axes as x. So jax sums the gradient of
    # the kernel over them.
    kernel = kernel + jnp.zeros_like(x, shape=())
    if platform.target() == 'cpu':
        return _on_cpu(x, kernel, stride, groups, pads)
    return _elsewhere(x, kernel, stride, groups, pads)


def in_flax(
    x: Array,
    kernel: Array,
    strides: tuple[int, ...],
    padding: Any,
    *,
    feature_group_count: int = 1,
    **_,
) -> Array:
    """`convolution` for flax: `nn.Conv(..., conv_general_dilated=in_flax)`.

    `padding` is 'SAME' or the zeros before and after of each axis of space.
    Off a CPU it is jax's own, since no vmap over experts meets it.

    Raises:
      ValueError: the strides differ, or the padding is neither SAME nor in numbers.
    """
    named = isinstance(padding, str)
    if (named and padding != 'SAME') or len(set(strides)) > 1:
        raise ValueError(
            'this convolution takes equal strides and padding SAME or in numbers, '
            f'not strides {strides} and padding {padding}'
        )
    if platform.target() != 'cpu':
        return _ordinary(x, kernel, padding, strides, groups=feature_group_count)
    pads = None if named else (tuple(padding[0]), tuple(padding[1]))
    return convolution(x, kernel, strides[0], feature_group_count, pads)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _on_cpu(x, kernel, stride, groups, pads):
    pads = pads or _pads(x.shape[1:3], kernel.shape[:2], stride)
    return _one_by_one(x, kernel, pads, strides=(stride, stride), groups=groups)


def _with_residuals(x, kernel, stride, groups, pads):
    return _on_cpu(x, kernel, stride, groups, pads), (x, kernel)


def _gradients(stride, groups, pads, residuals, dy):
    x, kernel = residuals
    pads = pads or _pads(x.shape[1:3], kernel.shape[:2], stride)
    dx = _input_gradient(dy, kernel, x.shape[1:3], stride, groups, pads)
    return dx, _kernel_gradient(x, dy, kernel.shape[:2], stride, groups, pads)


_on_cpu.defvjp(_with_residuals, _gradients)


def _input_gradient(
    dy: Array, kernel: Array, space: tuple[int, ...], stride: int, groups: int, given: Pads
) -> Array:
    """dx [N, H, W, I] from dy [N, P, Q, O] and the kernel.

    Puts stride - 1 zeros between the entries of dy and convolves that with the flipped kernel.
    """
    h, w, i, o = kernel.shape
    turned = jnp.flip(kernel, (0, 1)).reshape(h, w, i, groups, o // groups)
    turned = turned.transpose(0, 1, 4, 3, 2).reshape(h, w, o // groups, groups * i)
    pads = []
    for n, taps, p, (low, _) in zip(space, (h, w), dy.shape[1:3], given, strict=True):
        before = taps - 1 - low
        pads.append((before, n + taps - 1 - ((p - 1) * stride + 1) - before))
    return _one_by_one(
        dy, lax.optimization_barrier(turned), tuple(pads), spread=(stride, stride), groups=groups
    )


def _kernel_gradient(
    x: Array, dy: Array, taps: tuple[int, int], stride: int, groups: int, given: Pads
) -> Array:
    """The kernel's gradient from x and dy.

    Swaps channels and images of x, and convolves that with dy in the place of the kernel.
    """
    n, *space, i = x.shape
    p, q, o = dy.shape[1:]
    images = x.reshape(n, *space, groups, i // groups).transpose(4, 1, 2, 3, 0)
    images = images.reshape(i // groups, *space, groups * n)
    turned = dy.transpose(1, 2, 0, 3)
    images, turned = lax.optimization_barrier((images, turned))
    pads = tuple(
        (low, (out - 1) * stride + k - size - low)
        for size, k, out, (low, _) in zip(space, taps, (p, q), given, strict=True)
    )
    out = _one_by_one(images, turned, pads, dilation=(stride, stride), groups=groups)
    return out.transpose(1, 2, 0, 3)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _elsewhere(x, kernel, stride, groups, pads):
    return _unrolled(_padded(stride, groups, pads))(x, kernel)


def _elsewhere_fwd(x, kernel, stride, groups, pads):
    return _elsewhere(x, kernel, stride, groups, pads), (x, kernel)


def _elsewhere_bwd(stride, groups, pads, residuals, dy):
    x, kernel = residuals
    padded = _padded(stride, groups, pads)

    def to_input(dy, kernel):
        return jax.linear_transpose(lambda x: padded(x, kernel), x)(dy)[0]

    def to_kernel(x, dy):
        return jax.linear_transpose(lambda kernel: padded(x, kernel), kernel)(dy)[0]

    return _unrolled(to_input)(dy, kernel), _unrolled(to_kernel)(x, dy)


_elsewhere.defvjp(_elsewhere_fwd, _elsewhere_bwd)


def _padded(stride: int, groups: int, pads: Pads | None) -> Callable[[Array, Array], Array]:
    return functools.partial(
        _ordinary, pads=pads or 'SAME', strides=(stride, stride), groups=groups
    )


def _unrolled(fn: Callable[[Array, Array], Array]) -> Callable[[Array, Array], Array]:
    """`fn` with its own rule for vmap: where both operands have a batch, once per item.

    Only the innermost vmap is unrolled, which is that over experts; one over seeds around it is
    jax's own.
    """
    once = custom_vmap(fn)

    @once.def_vmap
    def rule(size, batched, a, b):
        if not all(batched):  # more images, or more channels, of one convolution
            return jax.vmap(fn, [0 if yes else None for yes in batched])(a, b), True
        return jnp.stack([fn(a[i], b[i]) for i in range(size)]), True

    return once


def _one_by_one(x: Array, kernel: Array, *args: Any, **options: Any) -> Array:
    """`_ordinary` with its own rule for vmap: one ordinary convolution per item.

    Where all items have the same kernel, they count as more images of one convolution.
    """
    fn = custom_vmap(lambda x, kernel: _ordinary(x, kernel, *args, **options))

    @fn.def_vmap
    def rule(size, batched, x, kernel):
        if not batched[1]:
            out = fn(x.reshape(-1, *x.shape[2:]), kernel)
            return out.reshape(*x.shape[:2], *out.shape[1:]), True
        return jnp.stack([fn(x[i] if batched[0] else x, kernel[i]) for i in range(size)]), True

    return fn(x, kernel)


def _ordinary(x, kernel, pads, strides=(1, 1), spread=(1, 1), dilation=(1, 1), groups=1):
    return lax.conv_general_dilated(
        x,
        kernel,
        strides,
        pads,
        lhs_dilation=spread,
        rhs_dilation=dilation,
        feature_group_count=groups,
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    )


def _pads(space: tuple[int, ...], taps: tuple[int, ...], stride: int) -> Pads:
    (a, b), (c, d) = lax.padtype_to_pads(space, taps, (stride, stride), 'SAME')
    return (a, b), (c, d)
