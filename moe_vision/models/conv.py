"""Small residual convolutional networks whose routed token is a whole image.

Stages of equal width; a stride-2 convolution between them; in each stage `depth` residual blocks
that keep their shape, numbered through the network: the places that can be routed. The residual
branch is what an expert copies; the shortcut stays outside.

Axes: B images, H W space, D channels.
"""

import functools
from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jax.sharding import Mesh

from moe_vision.layers import Step, convolution
from moe_vision.models.branch import Infos, make_branch, run_branch
from moe_vision.settings import Model, routed_blocks

_Conv = functools.partial(nn.Conv, conv_general_dilated=convolution.in_flax)
_HE = nn.initializers.variance_scaling(2.0, 'fan_in', 'normal')


class Norm(nn.Module):
    """Batch norm over the global batch, padding left out, or per-image group norm."""

    kind: str
    dtype: str

    @nn.compact
    def __call__(self, x, step: Step):
        if self.kind == 'group':
            return nn.GroupNorm(num_groups=8, dtype=self.dtype, name='norm')(x)
        mask = None if step.valid is None else step.valid.reshape(-1, *(1,) * (x.ndim - 1))
        norm = nn.BatchNorm(use_running_average=not step.train, momentum=0.9, dtype=self.dtype,
                            name='norm')
        return norm(x, mask=mask if step.train else None)


class StandardBranch(nn.Module):
    """norm-relu-conv3x3-norm-relu-conv3x3 where nothing is routed."""

    width: int
    hidden: int
    norm: str
    dtype: str

    @nn.compact
    def __call__(self, x, step: Step):
        conv = lambda n, name: _Conv(n, (3, 3), use_bias=False, kernel_init=_HE,  # noqa: E731
                                       dtype=self.dtype, name=name)
        x = nn.relu(Norm(self.norm, self.dtype, name='norm1')(x, step))
        x = nn.relu(Norm(self.norm, self.dtype, name='norm2')(conv(self.hidden, 'conv1')(x), step))
        return conv(self.width, 'conv2')(x)


class DepthwiseBranch(nn.Module):
    """depthwise3x3-norm-1x1-gelu-1x1 where nothing is routed."""

    width: int
    hidden: int
    norm: str
    dtype: str

    @nn.compact
    def __call__(self, x, step: Step):
        x = _Conv(self.width, (3, 3), feature_group_count=self.width, use_bias=False,
                    kernel_init=_HE, dtype=self.dtype, name='depthwise')(x)
        x = Norm(self.norm, self.dtype, name='norm')(x, step)
        x = nn.gelu(nn.Dense(self.hidden, kernel_init=_HE, dtype=self.dtype, name='in')(x))
        return nn.Dense(self.width, dtype=self.dtype, name='out')(x)


class ConvNet(nn.Module):
    """The standard network: full 3x3 convolutions."""

    model: Model
    num_classes: int
    mesh: Mesh | None = None

    plain: ClassVar[type[nn.Module]] = StandardBranch

    def hidden(self, width: int) -> int:
        return width

    @nn.compact
    def __call__(self, images, step: Step):
        """images [B, H, W, C], normalised, to (logits [B, classes] float32, infos by layer)."""
        a, dtype = self.model.args, self.model.dtype
        norm = lambda name: Norm(a.norm, dtype, name=name)  # noqa: E731
        replaced = routed_blocks(self.model.moe.placement, a.depth * len(a.widths))
        infos = Infos()
        x = _Conv(a.widths[0], (3, 3), use_bias=False, kernel_init=_HE, dtype=dtype,
                    name='stem')(images.astype(dtype))
        number = 0
        for stage, width in enumerate(a.widths):
            if stage:
                x = nn.relu(norm(f'down_{stage}_norm')(x, step))
                x = _Conv(width, (3, 3), (2, 2), use_bias=False, kernel_init=_HE, dtype=dtype,
                            name=f'down_{stage}')(x)
            for _ in range(a.depth):
                name = f'block_{number}'
                if number in replaced:
                    branch = make_branch(
                        self.model, self.mesh, name=name, width=width, hidden=self.hidden(width),
                        payload=x.shape[1:], layer=replaced.index(number))
                    x = x + run_branch(branch, x, step, infos)
                else:
                    x = x + self.plain(width, self.hidden(width), a.norm, dtype, name=name)(x, step)
                number += 1
        x = nn.relu(norm('final_norm')(x, step)).mean((1, 2))
        if self.model.moe.placement == 'head':
            branch = make_branch(self.model, self.mesh, name='head', width=x.shape[-1],
                                 hidden=4 * x.shape[-1], payload=x.shape[1:], layer=0)
            x = x + run_branch(branch, x, step, infos)
        logits = nn.Dense(self.num_classes, dtype=dtype, name='classifier')(x)
        return jnp.asarray(logits, jnp.float32), infos.by_layer


class DepthwiseNet(ConvNet):
    """The depthwise-separable network: 3x3 per channel, then 1x1 out and back."""

    plain: ClassVar[type[nn.Module]] = DepthwiseBranch

    def hidden(self, width: int) -> int:
        return width * self.model.args.expansion


