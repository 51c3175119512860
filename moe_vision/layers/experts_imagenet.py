"""Experts that copy the blocks of ResNet and ConvNeXt.

Axes: E experts, N tokens or slots, H W space, D width, F hidden width.
"""

import jax
import jax.numpy as jnp
from jax import lax

from moe_vision.layers.experts import HE, ONES, ZEROS, Array, Expert, Shapes, conv, group_norm

_NORMAL = jax.nn.initializers.truncated_normal(0.02)


class Bottleneck(Expert):
    """1x1 to F, 3x3, 1x1 to D on maps [N, H, W, D], each with its per-image norm after it.

    The branch of a ResNet's bottleneck block (He et al. 2016), group norm in place of batch norm.
    The last norm's scale begins at 0 (Goyal et al. 2017): a block begins as its shortcut.
    """

    def __init__(self, args, width, hidden):
        super().__init__(args, width, hidden)
        self.multiple = args.norm_groups

    def shapes(self) -> Shapes:
        d, f, s = self.width, self.hidden, self.args.kernel
        return {'conv1': ((1, 1, d, f), HE),
                'norm1_scale': ((f,), ONES), 'norm1_bias': ((f,), ZEROS),
                'conv2': ((s, s, f, f), HE),
                'norm2_scale': ((f,), ONES), 'norm2_bias': ((f,), ZEROS),
                'conv3': ((1, 1, f, d), HE),
                'norm3_scale': ((d,), ZEROS), 'norm3_bias': ((d,), ZEROS)}

    def apply(self, params, x):
        norm = lambda x, name: group_norm(  # noqa: E731
            x, params[f'{name}_scale'], params[f'{name}_bias'], self.args.norm_groups)
        x = jax.nn.relu(norm(conv(x, params['conv1']), 'norm1'))
        x = jax.nn.relu(norm(conv(x, params['conv2']), 'norm2'))
        return norm(conv(x, params['conv3']), 'norm3')


class ConvNext(Expert):
    """Depthwise conv, layer norm over D, 1x1 to F, gelu, 1x1 to D, layer scale on [N, H, W, D].

    The branch of a ConvNeXt block (Liu et al. 2022); its norm sees one position of one image.
    """

    def shapes(self) -> Shapes:
        d, f, s = self.width, self.hidden, self.args.kernel
        scale = jax.nn.initializers.constant(self.args.layer_scale)
        return {'depthwise': ((s, s, 1, d), _NORMAL), 'depthwise_bias': ((d,), ZEROS),
                'norm_scale': ((d,), ONES), 'norm_bias': ((d,), ZEROS),
                'in_kernel': ((d, f), _NORMAL), 'in_bias': ((f,), ZEROS),
                'out_kernel': ((f, d), _NORMAL), 'out_bias': ((d,), ZEROS),
                'layer_scale': ((d,), scale)}

    def apply(self, params, x):
        w = {n: p.astype(x.dtype) for n, p in params.items()}
        x = conv(x, w['depthwise'], groups=self.width) + w['depthwise_bias']
        x = layer_norm(x, params['norm_scale'], params['norm_bias'])
        x = jax.nn.gelu(x @ w['in_kernel'] + w['in_bias'])
        return (x @ w['out_kernel'] + w['out_bias']) * w['layer_scale']


def layer_norm(x: Array, scale: Array, bias: Array) -> Array:
    """Norm over D at each position, in float32; x [..., D]."""
    y = x.astype(jnp.float32)
    y = y - y.mean(-1, keepdims=True)
    y = y * lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + 1e-6)
    return (y * scale + bias).astype(x.dtype)
