"""ResNet of bottleneck blocks (He et al. 2016) that routes whole images.

The first block of a stage has the stride of the stage in its 3x3 convolution, and projects its
shortcut. The other blocks keep their shape. They are numbered through the network, and each can be
routed: experts copy its residual branch. The shortcut, the sum and the relu after it stay outside,
so an image whose choices were all dropped keeps its features. Padding is SAME: with a stride of 2
the taps lie up to one pixel beside those of frameworks that pad both sides alike, which
`padding='torch'` does.

Axes: B images, H W space, D channels.
"""

import functools

import flax.linen as nn
from jax.sharding import Mesh

from moe_vision.config.schema import Model
from moe_vision.layers import Step
from moe_vision.models.branch import Infos, begin, branch_at
from moe_vision.models.parts import HE, Conv, Norm, classify, drop_path, padding, run_block


class Branch(nn.Module):
    """The branch of a block that is not routed: 1x1-norm-relu-3x3-norm-relu-1x1-norm.

    The scale of the last norm begins at 0.
    """

    width: int
    hidden: int
    stride: int
    norm: str
    dtype: str
    padding: str | tuple[tuple[int, int], ...] = 'SAME'  # of the 3x3 convolution

    @nn.compact
    def __call__(self, x, step: Step):
        conv = functools.partial(Conv, use_bias=False, kernel_init=HE, dtype=self.dtype)
        norm = functools.partial(Norm, self.norm, self.dtype)
        x = conv(self.hidden, (1, 1), name='conv1')(x)
        x = nn.relu(norm(name='norm1')(x, step))
        x = conv(self.hidden, (3, 3), (self.stride,) * 2, self.padding, name='conv2')(x)
        x = nn.relu(norm(name='norm2')(x, step))
        x = conv(self.width, (1, 1), name='conv3')(x)
        return norm(nn.initializers.zeros, name='norm3')(x, step)


class Shortcut(nn.Module):
    """The shortcut of a block that changes the shape: 1x1-norm."""

    width: int
    stride: int
    norm: str
    dtype: str

    @nn.compact
    def __call__(self, x, step: Step):
        x = Conv(
            self.width,
            (1, 1),
            (self.stride,) * 2,
            use_bias=False,
            kernel_init=HE,
            dtype=self.dtype,
            name='conv',
        )(x)
        return Norm(self.norm, self.dtype, name='norm')(x, step)


def _first_block(net: nn.Module, x, infos: Infos, step: Step, depth: int, stage: int):
    """The first block of a stage. It changes the shape, so it is never routed."""
    a, dtype, name = net.model.args, net.model.dtype, f'down_{stage}'
    width, stride = a.widths[stage], 2 if stage else 1
    shortcut = Shortcut(width, stride, a.norm, dtype, name=f'{name}_shortcut')(x, step)
    pads = padding(a, 3, stride)
    y = Branch(width, a.hidden(width), stride, a.norm, dtype, pads, name=name)(x, step)
    return nn.relu(shortcut + drop_path(y, step, a.drop_path, depth, sum(a.depths)))


def _block(net: nn.Module, x, infos: Infos, step: Step, depth: int, number: int):
    """Any other block. `depth` counts all blocks, `number` those that keep their shape."""
    a, width = net.model.args, x.shape[-1]
    hidden = a.hidden(width)
    unrouted = functools.partial(Branch, width, hidden, 1, a.norm, net.model.dtype)
    y = branch_at(net, number, x, step, infos, hidden=hidden, unrouted=unrouted)
    return nn.relu(x + drop_path(y, step, a.drop_path, depth, sum(a.depths)))


class ResNet(nn.Module):
    model: Model
    num_classes: int
    mesh: Mesh | None = None

    @nn.compact
    def __call__(self, images, step: Step):
        """images [B, H, W, C], normalised, to (logits [B, classes] float32, infos by layer)."""
        a, dtype = self.model.args, self.model.dtype
        infos, step = begin(self, step, images)
        x = Conv(
            a.hidden(a.widths[0]),
            (7, 7),
            (2, 2),
            padding(a, 7, 2),
            use_bias=False,
            kernel_init=HE,
            dtype=dtype,
            name='stem',
        )(images.astype(dtype))
        x = nn.relu(Norm(a.norm, dtype, name='stem_norm')(x, step))
        x = nn.max_pool(x, (3, 3), (2, 2), padding(a, 3, 2))
        depth = number = 0
        for stage, blocks in enumerate(a.depths):
            first = functools.partial(_first_block, step=step, depth=depth, stage=stage)
            x = run_block(self, first, x, infos)
            depth += 1
            for _ in range(blocks - 1):
                block = functools.partial(_block, step=step, depth=depth, number=number)
                x = run_block(self, block, x, infos)
                depth, number = depth + 1, number + 1
        x = x.mean((1, 2))
        return classify(self, x, step, infos, 4 * x.shape[-1]), infos.by_layer
