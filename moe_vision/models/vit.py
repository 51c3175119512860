"""Vision transformer that routes patches.

It has pre-norm encoder blocks, numbered from 0. Experts copy the MLP of a block; its norm and its
shortcut stay outside. With pool='token' and a hidden width of four times the width, the parameters
are those of ViT-S/16 and ViT-B/16 as published (DeiT, timm).

Axes: B images, N patches of an image (with pool='token' one more), D width.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from moe_vision.common import platform
from moe_vision.config import registry
from moe_vision.config.schema import Model
from moe_vision.layers import DenseBlock, Step
from moe_vision.layers.moe import make_expert
from moe_vision.models.branch import Infos, begin, branch_at, needs, per_patch
from moe_vision.models.parts import classify, drop_path, layer_norm, run_block


def _attention_kept(kept: dict[str, jax.Array], query, key, value, **options):
    """Attention that leaves its weights in `kept`, for routers: the mean over heads, [B * N, N].

    query, key, value [B, N, heads, D / heads]. Row t holds what token t attends to, in float32.
    """
    dtype = options.get('dtype')
    query, key, value = nn.dtypes.promote_dtype(query, key, value, dtype=dtype)
    weights = nn.dot_product_attention_weights(query, key, dtype=dtype)
    mean = weights.astype(jnp.float32).mean(1)
    kept['attention'] = mean.reshape(-1, mean.shape[-1])
    return jnp.einsum('bhqk,bkhd->bqhd', weights, value)


def _attention(query, key, value, **options):
    """flax's attention of query, key, value [B, N, heads, D / heads], without a mask or dropout.

    For a GPU and in bfloat16 it is cuDNN's kernel, which does not write the weights to memory, and
    computes them in float32.
    """
    query, key, value = nn.dtypes.promote_dtype(query, key, value, dtype=options.get('dtype'))
    n, width = query.shape[1], query.shape[-1]
    if not (platform.tensor_cores() and query.dtype == jnp.bfloat16 and _fused(width)):
        return nn.dot_product_attention(query, key, value, **options)
    lengths = None
    if n % 2:  # jax 0.10 refuses gradients of odd lengths
        rest = ((0, 0), (0, 1), (0, 0), (0, 0))
        query, key, value = (jnp.pad(x, rest) for x in (query, key, value))
        # n, of the batch that query has: under a vmap over seeds, jax needs it of each image.
        lengths = jnp.where(query[:, 0, 0, 0] == 0, n, n)
    out = jax.nn.dot_product_attention(
        query,
        key,
        value,
        query_seq_lengths=lengths,
        key_value_seq_lengths=lengths,
        implementation='cudnn',
    )
    return out[:, :n]


def _fused(width: int) -> bool:
    """Whether cuDNN has attention for heads of this width, on all GPUs since Ampere."""
    return width % 8 == 0 and width <= 128


def _block(net: nn.Module, x, infos: Infos, step: Step, number: int):
    """An encoder block on x [B, N, D]. `drop_path` may leave out each of its two branches."""
    a, dtype, name = net.model.args, net.model.dtype, f'block_{number}'
    hidden = a.hidden or 4 * a.width
    norm = layer_norm(a, dtype)
    drop = functools.partial(drop_path, step=step, rate=a.drop_path, block=number, blocks=a.depth)
    y = norm(name=f'{name}_attention_norm')(x)
    kept: dict[str, jax.Array] = {}
    attend = _attention
    if 'attention' in needs(net.model):
        attend = functools.partial(_attention_kept, kept)
    y = nn.MultiHeadDotProductAttention(
        a.heads, dtype=dtype, attention_fn=attend, name=f'{name}_attention'
    )(y)
    x = x + drop(y, branch=0)
    y = norm(name=f'{name}_norm')(x).reshape(-1, a.width)
    mlp = make_expert('mlp', registry.MlpArgs(activation=a.activation), a.width, hidden)
    y = branch_at(
        net,
        number,
        y,
        per_patch(step, x.shape[1]),
        infos,
        hidden=hidden,
        unrouted=functools.partial(DenseBlock, mlp),
        tokens_per_image=x.shape[1],
        extras=kept,
    )
    return x + drop(y.reshape(x.shape), branch=1)


class Vit(nn.Module):
    model: Model
    num_classes: int
    mesh: Mesh | None = None

    @nn.compact
    def __call__(self, images, step: Step):
        """images [B, H, W, C], normalised, to (logits [B, classes] float32, infos by layer)."""
        a, dtype = self.model.args, self.model.dtype
        infos, step = begin(self, step, images)
        x = nn.Conv(
            a.width,
            (a.patch_size,) * 2,
            (a.patch_size,) * 2,
            padding='VALID',
            dtype=dtype,
            name='stem',
        )(images.astype(dtype))
        b, n = x.shape[0], x.shape[1] * x.shape[2]
        x = x.reshape(b, n, a.width)
        if a.pool == 'token':
            token = self.param('class_token', nn.initializers.zeros, (1, 1, a.width))
            x = jnp.concatenate([jnp.broadcast_to(token, (b, 1, a.width)).astype(x.dtype), x], 1)
        position = self.param('position', nn.initializers.normal(0.02), (1, x.shape[1], a.width))
        x = x + position.astype(x.dtype)
        for number in range(a.depth):
            block = functools.partial(_block, step=step, number=number)
            x = run_block(self, block, x, infos)
        x = layer_norm(a, dtype)(name='final_norm')(x)
        x = x.mean(1) if a.pool == 'mean' else x[:, 0]
        if a.representation:
            x = nn.tanh(nn.Dense(a.representation, dtype=dtype, name='representation')(x))
        return classify(self, x, step, infos, a.hidden or 4 * a.width), infos.by_layer
