"""ConvNeXt (Liu et al. 2022) that routes whole images.

All blocks keep their shape. They are numbered through the network, and each can be routed: experts
copy its residual branch. The norm of a branch sees one position of one image, so the textbook
network is the `same_width` twin.

Axes: B images, H W space, D channels.
"""

import functools

import flax.linen as nn
from jax.sharding import Mesh

from moe_vision.config import registry
from moe_vision.config.schema import Model
from moe_vision.layers import DenseBlock, Step
from moe_vision.layers.moe import make_expert
from moe_vision.models.branch import Infos, begin, branch_at
from moe_vision.models.parts import Conv, classify, drop_path, layer_norm, padding, run_block


def _block(net: nn.Module, x, infos: Infos, step: Step, number: int):
    """One residual block, routed or not."""
    a, width = net.model.args, x.shape[-1]
    hidden = a.hidden(width)
    expert_args = registry.ConvNextArgs(activation=a.activation, norm_epsilon=a.norm_epsilon)
    textbook = make_expert('convnext', expert_args, width, hidden)
    y = branch_at(
        net, number, x, step, infos, hidden=hidden, unrouted=functools.partial(DenseBlock, textbook)
    )
    return x + drop_path(y, step, a.drop_path, number, a.blocks)


class ConvNext(nn.Module):
    model: Model
    num_classes: int
    mesh: Mesh | None = None

    @nn.compact
    def __call__(self, images, step: Step):
        """images [B, H, W, C], normalised, to (logits [B, classes] float32, infos by layer)."""
        a, dtype = self.model.args, self.model.dtype
        conv = functools.partial(
            Conv, kernel_init=nn.initializers.truncated_normal(0.02), dtype=dtype
        )
        norm = layer_norm(a, dtype)  # of each position
        infos, step = begin(self, step, images)
        x = conv(a.widths[0], (4, 4), (4, 4), padding(a, 4, 4), name='stem')(images.astype(dtype))
        x = norm(name='stem_norm')(x)
        number = 0
        for stage, (width, blocks) in enumerate(zip(a.widths, a.depths, strict=True)):
            if stage:
                x = norm(name=f'down_{stage}_norm')(x)
                x = conv(width, (2, 2), (2, 2), padding(a, 2, 2), name=f'down_{stage}')(x)
            for _ in range(blocks):
                block = functools.partial(_block, step=step, number=number)
                x = run_block(self, block, x, infos)
                number += 1
        x = norm(name='final_norm')(x.mean((1, 2)))
        return classify(self, x, step, infos, 4 * x.shape[-1]), infos.by_layer
