"""Experts: residual branches as pure functions of parameters and tokens.

The same object serves as the experts of a bank, whose parameters have a leading axis E, and as the
dense block of a twin, whose parameters have none. So both do the same arithmetic.

Axes: E experts, N tokens or slots, D width, F hidden width, HW space.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from moe_vision.common.errors import UserError
from moe_vision.layers.parts import biased, conv, group_norm, layer_norm
from moe_vision.routing.types import expect

Array = jax.Array
Shapes = dict[str, tuple[tuple[int, ...], Any]]  # name -> (shape, initializer)
BankShapes = dict[str, tuple[int, tuple[int, ...], Any]]  # name -> (how many, shape, initializer)

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

    Attributes:
      needs: what tokens it takes: 'vector', 'map' or both; () for any.
      multiple: hidden widths must be divisible by this.
      hidden_axes: parameter -> its axis of hidden units, the first matrix first, for kinds of
        surgery that cut an expert between hidden units. None where the parts would not add up to
        it, because a norm lies over the hidden units.
      added: parameters that are added to the output.
      before, after: what all experts of a place share: a network runs `before` on every token that
        it routes, and `after` on the sum of what the experts give. They are no part of what is
        routed, so a twin has them too.
    """

    needs: tuple[str, ...] = ()
    multiple = 1
    hidden_axes: Mapping[str, int] | None = None
    added: tuple[str, ...] = ()
    before: 'Expert | None' = None
    after: 'Expert | None' = None

    def __init__(self, args: Any, width: int, hidden: int):
        self.args, self.width, self.hidden = args, width, hidden

    def shapes(self) -> Shapes:
        raise NotImplementedError

    @property
    def reference(self) -> 'Expert':
        """The dense block that stands for these experts in twins: one of them."""
        return self

    def parts(self, count: int) -> list[tuple['Expert', int]]:
        """The kinds of experts in a bank of `count`, and how many of each there are."""
        return [(self, count)]

    def bank_shapes(self, count: int) -> BankShapes:
        """What a bank of `count` experts holds; the arrays get a leading axis."""
        return {name: (count, shape, init) for name, (shape, init) in self.shapes().items()}

    def run_one(self, params: dict[str, Array], number: Array, x: Array) -> Array:
        """Runs expert `number`, a scalar that may be traced, of a bank on x [N, *, D]."""
        one = {n: lax.dynamic_index_in_dim(w, number, keepdims=False) for n, w in params.items()}
        return self.run(one, x)

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

    def units(self, params: dict[str, Array], x: Array) -> Array:
        """Activations of the hidden units of one expert on x [N, *, D]: [N, *, F].

        Raises:
          UserError: this expert shows none. Those that name `hidden_axes` do.
        """
        raise self._lacks('units')

    def first_matrix(self, params: dict[str, Array]) -> Array:
        """The first linear map of each expert of a bank, [E, D, F'], for losses of a layer.

        Of a convolution it is the sum over the kernel's positions: what a map that is the same
        everywhere meets, away from its border. Norms and biases before it are left out.

        Raises:
          UserError: this expert names none.
        """
        raise self._lacks('first_matrix')

    def _lacks(self, name: str) -> UserError:
        of = type(self).__name__
        return UserError(f'expert {of} has no {name}; define it, or do without what reads it.')

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
        cast = "; cast to the tokens' type" if getattr(y, 'shape', None) == x.shape else ''
        field = f'{type(self).__name__}.{method}'
        expect(field, y, x.shape, x.dtype, f'those of its tokens, [..., D]{cast}')
        return y


class Mlp(Expert):
    """D -> F -> D on vectors [N, D]."""

    hidden_axes = {'in_kernel': -1, 'in_bias': -1, 'out_kernel': -2}
    added = ('out_bias',)

    def shapes(self) -> Shapes:
        d, f = self.width, self.hidden
        return {
            'in_kernel': ((d, f), LECUN),
            'in_bias': ((f,), ZEROS),
            'out_kernel': ((f, d), LECUN),
            'out_bias': ((d,), ZEROS),
        }

    def units(self, params, x):
        w = {n: p.astype(x.dtype) for n, p in params.items()}
        return biased(ACTIVATIONS[self.args.activation], x @ w['in_kernel'], w['in_bias'])

    def apply(self, params, x):
        return _output(params, self.units(params, x))

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

    hidden_axes = {'in_kernel': -1, 'in_bias': -1, 'out_kernel': -2}
    added = ('out_bias',)

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

    def units(self, params, x):
        w = {n: p.astype(x.dtype) for n, p in params.items()}
        x = conv(x, w['depthwise'], groups=self.width)
        x = group_norm(x, params['norm_scale'], params['norm_bias'], self.args.norm_groups)
        return jax.nn.gelu(x @ w['in_kernel'] + w['in_bias'])

    def apply(self, params, x):
        return _output(params, self.units(params, x))

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

    hidden_axes = {'in_kernel': -1, 'in_bias': -1, 'out_kernel': -2}
    added = ('out_bias',)

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

    def units(self, params, x):
        w = {n: p.astype(x.dtype) for n, p in params.items()}
        x = conv(x, w['depthwise'], groups=self.width) + w['depthwise_bias']
        epsilon = self.args.norm_epsilon
        x = layer_norm(x, params['norm_scale'], params['norm_bias'], epsilon)
        return ACTIVATIONS[self.args.activation](x @ w['in_kernel'] + w['in_bias'])

    def apply(self, params, x):
        return _output(params, self.units(params, x)) * params['layer_scale'].astype(x.dtype)

    def first_matrix(self, params):
        return _through_depthwise(params)


def _output(params: dict[str, Array], units: Array) -> Array:
    """What hidden units [..., F] add up to, [..., D], with the bias."""
    kernel, bias = (params[n].astype(units.dtype) for n in ('out_kernel', 'out_bias'))
    return units @ kernel + bias


def _through_depthwise(params: dict[str, Array]) -> Array:
    """`Expert.first_matrix` of a depthwise convolution and the 1x1 one behind it, [E, D, F]."""
    per_channel = params['depthwise'].sum((1, 2, 3))  # of [E, s, s, 1, D]
    return per_channel[..., None] * params['in_kernel']
