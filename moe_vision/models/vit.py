"""Vision transformer whose routed token is a patch.

Pre-norm encoder blocks; the MLP of a block is what an expert copies, its norm and shortcut stay
outside. Blocks are numbered from 0.

Axes: B images, N patches of an image (with pool='token' one more), D width.
"""

import flax.linen as nn
import jax.numpy as jnp
from jax.sharding import Mesh

from moe_vision import registry
from moe_vision.layers import DenseBlock, Step
from moe_vision.layers.moe import make_expert
from moe_vision.models.branch import Infos, make_branch, per_patch, run_branch
from moe_vision.settings import Model, routed_blocks


class Vit(nn.Module):
    model: Model
    num_classes: int
    mesh: Mesh | None = None

    @nn.compact
    def __call__(self, images, step: Step):
        """images [B, H, W, C], normalised, to (logits [B, classes] float32, infos by layer)."""
        a, dtype = self.model.args, self.model.dtype
        hidden = a.hidden or 4 * a.width
        replaced = routed_blocks(self.model.moe.placement, a.depth)
        infos = Infos()
        norm = lambda name: nn.LayerNorm(dtype=dtype, name=name)  # noqa: E731
        x = nn.Conv(a.width, (a.patch_size,) * 2, (a.patch_size,) * 2, padding='VALID',
                    dtype=dtype, name='stem')(images.astype(dtype))
        b, n = x.shape[0], x.shape[1] * x.shape[2]
        x = x.reshape(b, n, a.width)
        if a.pool == 'token':
            token = self.param('class_token', nn.initializers.zeros, (1, 1, a.width))
            x = jnp.concatenate([jnp.broadcast_to(token, (b, 1, a.width)).astype(x.dtype), x], 1)
        position = self.param('position', nn.initializers.normal(0.02), (1, x.shape[1], a.width))
        x = x + position.astype(x.dtype)
        patches = per_patch(step, x.shape[1])
        for number in range(a.depth):
            name = f'block_{number}'
            y = norm(f'{name}_attention_norm')(x)
            x = x + nn.MultiHeadDotProductAttention(a.heads, dtype=dtype,
                                                    name=f'{name}_attention')(y)
            y = norm(f'{name}_norm')(x).reshape(-1, a.width)
            if number in replaced:
                branch = make_branch(self.model, self.mesh, name=name, width=a.width, hidden=hidden,
                                     payload=(a.width,), layer=replaced.index(number))
            else:
                branch = DenseBlock(make_expert('mlp', registry.MlpArgs(), a.width, hidden),
                                    name=name)
            x = x + run_branch(branch, y, patches, infos).reshape(x.shape)
        x = norm('final_norm')(x)
        x = x.mean(1) if a.pool == 'mean' else x[:, 0]
        if self.model.moe.placement == 'head':
            branch = make_branch(self.model, self.mesh, name='head', width=a.width, hidden=hidden,
                                 payload=(a.width,), layer=0)
            x = x + run_branch(branch, x, step, infos)
        logits = nn.Dense(self.num_classes, dtype=dtype, name='classifier')(x)
        return jnp.asarray(logits, jnp.float32), infos.by_layer
