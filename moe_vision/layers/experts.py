"""Experts: residual branches as pure functions of parameters and tokens.

The same object serves as the experts of a bank, whose parameters have a leading axis E, and as the
dense block of a twin, whose parameters have none. So both do the same arithmetic.

Axes: E experts, N tokens or slots, D width, F hidden width, HW space.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from moe_vision.common import platform
from moe_vision.common.errors import UserError
from moe_vision.layers.convolution import convolution
from moe_vision.routing.types import expect

Array = jax.Array
Shapes = dict[str, tuple[tuple[int, ...], Any]]  # name -> (shape, initializer)

HE = jax.nn.initializers.variance_scaling(2.0, 'fan_in', 'normal')
LECUN = jax.nn.initializers.lecun_normal()
SMALL = jax.nn.initializers.truncated_normal(0.02)
ZEROS = jax.nn.initializers.zeros
ONES = jax.nn.initializers.ones
ACTIVATIONS = {  # 'gelu' is the approximation by tanh, 'gelu_erf' the exact one, as in torch
    'gelu': jax.nn.gelu,
    'gelu_erf': functools.partial(jax.nn.gelu, approximate=False),
    'relu': jax.nn.relu,
}


class Expert:
    """Base class: `shapes` names the parameters of one expert, `apply` runs it.

    Layers call `run` and `run_stacked`. So a class may define `apply`, `apply_stacked` or both, and
    an expert does the same by itself, in a bank and in a twin.

    Args:
      args: the expert's own arguments.
      width: D, channels in and out.
      hidden: F, hidden width.
    """

    multiple = 1  # hidden widths must be divisible by this

    def __init__(self, args: Any, width: int, hidden: int):
        self.args, self.width, self.hidden = args, width, hidden

    def shapes(self) -> Shapes:
        raise NotImplementedError

    def apply(self, params: dict[str, Array], x: Array) -> Array:
        """Runs one expert: x [N, *, D] to the same shape and type.

        Cast parameters, which are float32, to x's type. Use `conv` for convolutions: a vmap over
        experts does not slow it down.
        """
        raise NotImplementedError

    def apply_stacked(self, params: dict[str, Array], x: Array) -> Array:
        """Runs all experts: x [E, N, *, D] to the same shape; each parameter has a leading E.

        This is a vmap, so products, norms and activations run for all experts at once. `conv`
        unrolls itself, because a vmap over the weights of a convolution becomes a grouped
        convolution, which is many times slower.
        """
        if x.shape[0] > 1:
            return jax.vmap(self.apply)(params, x)
        return jnp.stack([self.apply({n: w[0] for n, w in params.items()}, x[0])])

    def first_matrix(self, params: dict[str, Array]) -> Array:
        """The first linear map of each expert of a bank, [E, D, F'], for losses of a layer.

        Of a convolution it is the sum over the kernel's positions: what a map that is the same
        everywhere meets, away from its border. Norms and biases before it are left out.

        Raises:
          UserError: this expert names none.
        """
        raise UserError(
            f'expert {type(self).__name__} has no first_matrix; define it, or set to 0 the loss '
            'that reads it.'
        )

    def run(self, params: dict[str, Array], x: Array) -> Array:
        """One expert on x [N, *, D]: `apply`, or `apply_stacked` if a subclass overrides it alone.

        Raises:
          UserError: the result has another shape or type than x.
        """
        if self._depth('apply_stacked') < self._depth('apply'):
            one = {n: w[None] for n, w in params.items()}
            return self._checked('apply_stacked', x[None], self.apply_stacked(one, x[None]))[0]
        return self._checked('apply', x, self.apply(params, x))

    def run_stacked(self, params: dict[str, Array], x: Array) -> Array:
        """All experts on x [E, N, *, D]: `apply_stacked`, or that of this class if a subclass
        overrides `apply` alone, because an inherited one may not do what the new `apply` does.

        Raises:
          UserError: the result has another shape or type than x.
        """
        if self._depth('apply') < self._depth('apply_stacked'):
            return self._checked('apply', x, Expert.apply_stacked(self, params, x))
        return self._checked('apply_stacked', x, self.apply_stacked(params, x))

    def _depth(self, method: str) -> int:
        """How far up among this object's classes a method is defined; 0 is its own class."""
        return next(i for i, c in enumerate(type(self).__mro__) if method in vars(c))

    def _checked(self, method: str, x: Array, y: Any) -> Array:
        field = f'{type(self).__name__}.{method}'
        expect(
            field, y, x.shape, x.dtype, "those of its tokens, [..., D]; cast to the tokens' type"
        )
        return y


class Mlp(Expert):
    """D -> F -> D on vectors [N, D]."""

    def shapes(self) -> Shapes:
        d, f = self.width, self.hidden
        return {
            'in_kernel': ((d, f), LECUN),
            'in_bias': ((f,), ZEROS),
            'out_kernel': ((f, d), LECUN),
            'out_bias': ((d,), ZEROS),
        }

    def apply(self, params, x):
        w = {n: p.astype(x.dtype) for n, p in params.items()}
        act = ACTIVATIONS[self.args.activation]
        hidden = biased(act, x @ w['in_kernel'], w['in_bias'])
        return hidden @ w['out_kernel'] + w['out_bias']

    def apply_stacked(self, params, x):
        if x.shape[0] == 1:
            return super().apply_stacked(params, x)
        biases = {n: p[:, None, :] for n, p in params.items() if n.endswith('bias')}
        return self.apply(params | biases, x)  # one batched product over E

    def first_matrix(self, params):
        return params['in_kernel']


class Conv(Expert):
    """norm-relu-conv-norm-relu-conv on maps [N, H, W, D], with a norm per image."""

    def __init__(self, args, width, hidden):
        super().__init__(args, width, hidden)
        self.multiple = args.norm_groups

    def shapes(self) -> Shapes:
        d, f, s = self.width, self.hidden, self.args.kernel
        return {
            'norm1_scale': ((d,), ONES),
            'norm1_bias': ((d,), ZEROS),
            'conv1': ((s, s, d, f), HE),
            'norm2_scale': ((f,), ONES),
            'norm2_bias': ((f,), ZEROS),
            'conv2': ((s, s, f, d), HE),
        }

    def apply(self, params, x):
        groups = self.args.norm_groups
        x = group_norm(x, params['norm1_scale'], params['norm1_bias'], groups)
        x = conv(jax.nn.relu(x), params['conv1'])
        x = group_norm(x, params['norm2_scale'], params['norm2_bias'], groups)
        return conv(jax.nn.relu(x), params['conv2'])

    def first_matrix(self, params):
        return params['conv1'].sum((1, 2))


class DepthwiseConv(Expert):
    """depthwise conv-norm-1x1-gelu-1x1 on maps [N, H, W, D], with a norm per image."""

    def shapes(self) -> Shapes:
        d, f, s = self.width, self.hidden, self.args.kernel
        return {
            'depthwise': ((s, s, 1, d), HE),
            'norm_scale': ((d,), ONES),
            'norm_bias': ((d,), ZEROS),
            'in_kernel': ((d, f), HE),
            'in_bias': ((f,), ZEROS),
            'out_kernel': ((f, d), LECUN),
            'out_bias': ((d,), ZEROS),
        }

    def apply(self, params, x):
        w = {n: p.astype(x.dtype) for n, p in params.items()}
        x = conv(x, w['depthwise'], groups=self.width)
        x = group_norm(x, params['norm_scale'], params['norm_bias'], self.args.norm_groups)
        x = jax.nn.gelu(x @ w['in_kernel'] + w['in_bias'])
        return x @ w['out_kernel'] + w['out_bias']

    def first_matrix(self, params):
        return _through_depthwise(params)


class Bottleneck(Expert):
    """1x1 to F, 3x3, 1x1 to D on maps [N, H, W, D], each followed by a norm per image.

    This is the branch of a ResNet's bottleneck block (He et al. 2016) with group norm in place of
    batch norm. The scale of the last norm begins at 0, so that a block begins as its shortcut
    (Goyal et al. 2017).
    """

    def __init__(self, args, width, hidden):
        super().__init__(args, width, hidden)
        self.multiple = args.norm_groups

    def shapes(self) -> Shapes:
        d, f, s = self.width, self.hidden, self.args.kernel
        return {
            'conv1': ((1, 1, d, f), HE),
            'norm1_scale': ((f,), ONES),
            'norm1_bias': ((f,), ZEROS),
            'conv2': ((s, s, f, f), HE),
            'norm2_scale': ((f,), ONES),
            'norm2_bias': ((f,), ZEROS),
            'conv3': ((1, 1, f, d), HE),
            'norm3_scale': ((d,), ZEROS),
            'norm3_bias': ((d,), ZEROS),
        }

    def apply(self, params, x):
        def norm(x, name):
            return group_norm(
                x, params[f'{name}_scale'], params[f'{name}_bias'], self.args.norm_groups
            )

        x = jax.nn.relu(norm(conv(x, params['conv1']), 'norm1'))
        x = jax.nn.relu(norm(conv(x, params['conv2']), 'norm2'))
        return norm(conv(x, params['conv3']), 'norm3')

    def first_matrix(self, params):
        return params['conv1'].sum((1, 2))


class ConvNext(Expert):
    """Depthwise conv, layer norm over D, 1x1 to F, gelu, 1x1 to D, layer scale on [N, H, W, D].

    This is the branch of a ConvNeXt block (Liu et al. 2022). Its norm sees one position of one
    image, so it is the same in an expert as in the original network.
    """

    def shapes(self) -> Shapes:
        d, f, s = self.width, self.hidden, self.args.kernel
        scale = jax.nn.initializers.constant(self.args.layer_scale)
        return {
            'depthwise': ((s, s, 1, d), SMALL),
            'depthwise_bias': ((d,), ZEROS),
            'norm_scale': ((d,), ONES),
            'norm_bias': ((d,), ZEROS),
            'in_kernel': ((d, f), SMALL),
            'in_bias': ((f,), ZEROS),
            'out_kernel': ((f, d), SMALL),
            'out_bias': ((d,), ZEROS),
            'layer_scale': ((d,), scale),
        }

    def apply(self, params, x):
        w = {n: p.astype(x.dtype) for n, p in params.items()}
        x = conv(x, w['depthwise'], groups=self.width) + w['depthwise_bias']
        epsilon = self.args.norm_epsilon
        x = layer_norm(x, params['norm_scale'], params['norm_bias'], epsilon)
        x = ACTIVATIONS[self.args.activation](x @ w['in_kernel'] + w['in_bias'])
        return (x @ w['out_kernel'] + w['out_bias']) * w['layer_scale']

    def first_matrix(self, params):
        return _through_depthwise(params)


def _through_depthwise(params: dict[str, Array]) -> Array:
    """`Expert.first_matrix` of a depthwise convolution and the 1x1 one behind it, [E, D, F]."""
    per_channel = params['depthwise'].sum((1, 2, 3))  # of [E, s, s, 1, D]
    return per_channel[..., None] * params['in_kernel']


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
