"""Small residual convolutional networks that route whole images.

A network has stages of equal width with a stride-2 convolution between them. Each stage has `depth`
residual blocks that keep their shape. They are numbered through the network, and each can be
routed: experts copy its residual branch, and its shortcut stays outside.

Axes: B images, H W space, D channels.
"""

import functools
from typing import ClassVar

import flax.linen as nn
from jax.sharding import Mesh

from moe_vision.config.schema import Model
from moe_vision.layers import Step
from moe_vision.models.branch import Infos, begin, branch_at
from moe_vision.models.parts import HE, Conv, Norm, classify, drop_path, run_block


class StandardBranch(nn.Module):
    """The branch of a block that is not routed: norm-relu-conv3x3-norm-relu-conv3x3."""

    width: int
    hidden: int
    norm: str
    dtype: str

    @nn.compact
    def __call__(self, x, step: Step):
        conv = functools.partial(
            Conv, kernel_size=(3, 3), use_bias=False, kernel_init=HE, dtype=self.dtype
        )
        norm = functools.partial(Norm, self.norm, self.dtype)
        x = nn.relu(norm(name='norm1')(x, step))
        x = conv(self.hidden, name='conv1')(x)
        x = nn.relu(norm(name='norm2')(x, step))
        return conv(self.width, name='conv2')(x)


class DepthwiseBranch(nn.Module):
    """The branch of a block that is not routed: depthwise3x3-norm-1x1-gelu-1x1."""

    width: int
    hidden: int
    norm: str
    dtype: str

    @nn.compact
    def __call__(self, x, step: Step):
        x = Conv(
            self.width,
            (3, 3),
            feature_group_count=self.width,
            use_bias=False,
            kernel_init=HE,
            dtype=self.dtype,
            name='depthwise',
        )(x)
        x = Norm(self.norm, self.dtype, name='norm')(x, step)
        x = nn.gelu(nn.Dense(self.hidden, kernel_init=HE, dtype=self.dtype, name='in')(x))
        return nn.Dense(self.width, dtype=self.dtype, name='out')(x)


def _block(net: nn.Module, x, infos: Infos, step: Step, number: int):
    """One residual block, routed or not."""
    a, width = net.model.args, x.shape[-1]
    hidden = a.hidden(width)
    unrouted = functools.partial(net.unrouted_branch, width, hidden, a.norm, net.model.dtype)
    y = branch_at(net, number, x, step, infos, hidden=hidden, unrouted=unrouted)
    return x + drop_path(y, step, a.drop_path, number, a.blocks)


class ConvNet(nn.Module):
    """The standard network, with full 3x3 convolutions."""

    model: Model
    num_classes: int
    mesh: Mesh | None = None

    unrouted_branch: ClassVar[type[nn.Module]] = StandardBranch

    @nn.compact
    def __call__(self, images, step: Step):
        """images [B, H, W, C], normalised, to (logits [B, classes] float32, infos by layer)."""
        a, dtype = self.model.args, self.model.dtype
        norm = functools.partial(Norm, a.norm, dtype)
        infos, step = begin(self, step, images)
        x = Conv(a.widths[0], (3, 3), use_bias=False, kernel_init=HE, dtype=dtype, name='stem')(
            images.astype(dtype)
        )
        number = 0
        for stage, width in enumerate(a.widths):
            if stage:
                x = nn.relu(norm(name=f'down_{stage}_norm')(x, step))
                x = Conv(
                    width,
                    (3, 3),
                    (2, 2),
                    use_bias=False,
                    kernel_init=HE,
                    dtype=dtype,
                    name=f'down_{stage}',
                )(x)
            for _ in range(a.depth):
                block = functools.partial(_block, step=step, number=number)
                x = run_block(self, block, x, infos)
                number += 1
        x = nn.relu(norm(name='final_norm')(x, step)).mean((1, 2))
        return classify(self, x, step, infos, 4 * x.shape[-1]), infos.by_layer


class DepthwiseNet(ConvNet):
    """The depthwise-separable network: 3x3 per channel, then 1x1 to the hidden width and back."""

    unrouted_branch: ClassVar[type[nn.Module]] = DepthwiseBranch
