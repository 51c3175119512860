"""A backbone of your own: an MLP-Mixer (Tolstikhin et al. 2021) whose channel MLPs can be routed.

    python main.py --config=configs/digits_k2.py --workdir=W \
        --config.model.name=examples.mixer_backbone:Mixer --config.model.args={} \
        --config.model.moe.group_size=128

Axes: B images, N patches of an image, D width.
"""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
from jax.sharding import Mesh

from moe_vision.config import registry
from moe_vision.config.placement import routed_blocks
from moe_vision.config.schema import Model
from moe_vision.layers import DenseBlock, Step
from moe_vision.layers.moe import make_expert
from moe_vision.models.branch import Infos, make_branch, per_patch, run_branch


@dataclasses.dataclass(frozen=True)
class Args:
    """Fields of `model.args`; the check of a config reads `blocks` and `tokens`."""

    width: int = 64
    depth: int = 3
    patch_size: int = 2

    @property
    def blocks(self) -> int:
        return self.depth

    def tokens(self, height: int, width: int) -> int:
        return (height // self.patch_size) * (width // self.patch_size)


class Mixer(nn.Module):
    model: Model
    num_classes: int
    mesh: Mesh | None = None

    Args = Args
    unit = 'patch'
    expert = 'mlp'

    @nn.compact
    def __call__(self, images, step: Step):
        a = self.model.args
        d, p, infos = a.width, a.patch_size, Infos()
        replaced = routed_blocks(self.model.moe.placement, a.depth)
        x = nn.Conv(d, (p, p), (p, p), padding='VALID', name='stem')(images)
        x = x.reshape(x.shape[0], -1, d)
        patches = per_patch(step, x.shape[1])
        for i in range(a.depth):
            y = nn.LayerNorm(name=f'block_{i}_mix_norm')(x).swapaxes(1, 2)
            y = nn.Dense(y.shape[-1], name=f'block_{i}_mix')(nn.gelu(y))
            x = x + y.swapaxes(1, 2)
            y = nn.LayerNorm(name=f'block_{i}_norm')(x).reshape(-1, d)
            if i in replaced:
                branch = make_branch(
                    self.model,
                    self.mesh,
                    name=f'block_{i}',
                    width=d,
                    hidden=4 * d,
                    payload=(d,),
                    layer=replaced.index(i),
                )
            else:
                branch = DenseBlock(
                    make_expert('mlp', registry.MlpArgs(), d, 4 * d), name=f'block_{i}'
                )
            x = x + run_branch(branch, y, patches, infos).reshape(x.shape)
        logits = nn.Dense(self.num_classes, name='classifier')(x.mean(1))
        return jnp.asarray(logits, jnp.float32), infos.by_layer
