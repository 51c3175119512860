"""A control that routes by a hash of the image, which no training changes (Roller et al. 2021).

The pixels of an image, or of a patch where patches are routed, are averaged to 4x4 grey cells c. A
token takes the k experts with the largest (c - mean) H, where the random projection H [16, E] is
frozen. So similar images share experts (LSH). Gates are 1 / k. Beside router 'random' it shows
whether it matters that a token always goes to the same experts, and beside a learned router whether
learning matters.

`mean` is that of all cells that training has seen. Without it most images would go to the same few
experts. Routes settle within the first epoch, as the mean does. A class token has the cells of the
whole image. H is drawn from the seed and learns nothing.

A hash of the number of a training image is not offered: it is not defined for other images, and
batches carry no numbers.

Axes: B tokens given, I images, G groups, T tokens, E experts, K choices, H W height and width, C
channels.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from moe_vision.common.errors import UserError
from moe_vision.routing.linear import linear
from moe_vision.routing.router import Router
from moe_vision.routing.types import Array, Context, Routing, top_k_ids

_SIDE = 4  # cells


class Hash(Router):
    needs = ('image',)

    def params(self, width):
        del width
        return {'projection': ((_SIDE**2, self.num_experts), jax.nn.initializers.normal(1.0))}

    def init_state(self):
        return {'mean': jnp.zeros((_SIDE**2,), jnp.float32), 'seen': jnp.zeros((), jnp.float32)}

    def pool(self, params, x: Array, extras) -> Array:
        """The cells of each token, [B, 16]."""
        del params
        images = extras['image'].astype(jnp.float32).mean(-1)  # [I, H, W]
        patches = x.shape[0] // images.shape[0]
        return _cells(images) if patches == 1 else _cells_of_patches(images, patches)

    def choose(self, params, state, features, context: Context) -> Routing:
        projection = jax.lax.stop_gradient(params['projection'])
        features = features.astype(jnp.float32)
        logits = linear(features - state['mean'], projection, normalize=False)
        ids = top_k_ids(logits, self.k)
        return self.routing(
            context,
            logits,
            ids,
            jnp.full(ids.shape, 1 / self.k, jnp.float32),
            aux={'cells': features},
        )

    def observe(self, routing, context):
        return {'cells': routing.aux['cells'].sum(1)}  # those of padding are zero

    def update_state(self, state, sums):
        seen = state['seen'] + sums['tokens']
        more = sums['cells'] - sums['tokens'] * state['mean']
        return {'mean': state['mean'] + more / jnp.maximum(seen, 1.0), 'seen': seen}


def _cells(images: Array) -> Array:
    """Averages images [I, H, W] over the cells of a grid: [I, 16]."""
    i, *sides = images.shape
    rows, columns = (jnp.asarray(_shares(n), jnp.float32) for n in sides)
    cells = jnp.einsum('ah,ihw,bw->iab', rows, images, columns, precision='highest')
    return cells.reshape(i, -1)


def _shares(n: int) -> np.ndarray:
    """The share of each of n pixels in each of the cells along a side, [4, n]."""
    ends = np.arange(_SIDE + 1)[:, None] * n / _SIDE
    pixel = np.arange(n)
    overlap = np.minimum(ends[1:], pixel + 1) - np.maximum(ends[:-1], pixel)
    return np.maximum(overlap, 0) * _SIDE / n


def _cells_of_patches(images: Array, patches: int) -> Array:
    """The cells of each patch of images [I, H, W], and first of a class token, if there is one."""
    i, h, w = images.shape
    for extra in (0, 1):
        side = math.isqrt(h * w // (patches - extra))
        if h % side == w % side == 0 and (h // side) * (w // side) == patches - extra:
            cut = images.reshape(i, h // side, side, w // side, side).swapaxes(2, 3)
            cells = _cells(cut.reshape(-1, side, side)).reshape(i, patches - extra, -1)
            whole = [_cells(images)[:, None]] if extra else []
            return jnp.concatenate([*whole, cells], 1).reshape(i * patches, -1)
    raise UserError(
        f"router 'hash' cannot tell which pixels {patches} tokens of an image of {h}x{w} have; it "
        'takes whole images or square patches.'
    )
