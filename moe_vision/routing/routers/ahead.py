"""A router that knows all routes before the network runs (pre-gating, Read-ME, arXiv 2410.19123).

A small network of its own reads the image, and its choice holds for all routed layers:

    image -> size x size -> gelu(conv 3x3) -> gelu(conv 3x3) -> mean over space -> logits

The first routed layer has its parameters and hands the logits on (`Routing.carry`), so gates of all
layers teach it. Nothing that the backbone computes is read. All patches of an image go the same
way. Read-ME routes words by a small transformer on their embeddings; this network is this
project's.

The convolutions are products with the nine neighbours of each place, so that a vmap over seeds
stays quick.

Axes: I images, S size, C channels, W width, G groups, T tokens, N ids.
"""

import jax
import jax.numpy as jnp

from moe_vision.common.errors import UserError
from moe_vision.routing.linear import linear
from moe_vision.routing.router import Router
from moe_vision.routing.types import Array, Context, Routing, pick, top_k_ids

_COLOURS = 3  # a grey image counts as one of three equal colours


class Ahead(Router):
    needs: tuple[str, ...] = ('image',)

    def params(self, width):
        if self.place.layer:
            return {}
        w, init = self.args.width, jax.nn.initializers.normal
        zeros = jax.nn.initializers.zeros
        return {
            'in_kernel': ((9 * _COLOURS, w), init((9 * _COLOURS) ** -0.5)),
            'in_bias': ((w,), zeros),
            'mid_kernel': ((9 * w, w), init((9 * w) ** -0.5)),
            'mid_bias': ((w,), zeros),
            'kernel': ((w, self.num_ids), init(w**-0.5)),
        }

    def pool(self, params, x, extras):
        """What the small network makes of extras['image'] [I, H, W, C], for the tokens of x
        [B, *, D]: [B, W]; of later layers nothing, [B, 1].

        Raises:
          UserError: an image has neither one colour nor three.
        """
        if self.place.layer:
            return jnp.zeros((x.shape[0], 1), jnp.float32)
        images, size = extras['image'].astype(jnp.float32), self.args.size
        if images.shape[-1] not in (1, _COLOURS):
            raise UserError(
                f"router 'ahead' reads images of 1 or {_COLOURS} colours, but these have "
                f'{images.shape[-1]}.'
            )
        images = jnp.broadcast_to(images, (*images.shape[:-1], _COLOURS))
        small = jax.vmap(lambda x: jax.image.resize(x, (size, size, _COLOURS), 'linear'))(images)
        h = jax.nn.gelu(_conv(small, params['in_kernel']) + params['in_bias'])
        h = jax.nn.gelu(_conv(h, params['mid_kernel']) + params['mid_bias'])
        return jnp.repeat(h.mean((1, 2)), self.place.tokens_per_image, 0)

    def choose(self, params, state, features, context: Context) -> Routing:
        logits = context.carry
        if not self.place.layer:
            logits = linear(features, params['kernel'], normalize=False)
        elif logits is None or logits.shape[-1] != self.num_ids:
            raise UserError(
                "router 'ahead' chooses once for all routed layers, so each must have the same "
                'number of experts and tokens; set model.moe.splits to 1, and schedule and layers '
                'to their defaults.'
            )
        probs = jax.nn.softmax(logits)
        ids = top_k_ids(logits, self.k)
        gate = pick(probs, ids)
        return self.routing(context, logits, ids, gate, probs=probs, carry=logits)


def _conv(x: Array, kernel: Array) -> Array:
    """A 3x3 convolution of x [I, S, S, C] with a kernel [9 C, W], rows of neighbours first."""
    size = x.shape[1]
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    around = [padded[:, i : i + size, j : j + size] for i in range(3) for j in range(3)]
    return jnp.einsum('ixyc,cw->ixyw', jnp.concatenate(around, -1), kernel, precision='highest')
