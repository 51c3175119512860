"""A router with features of its own: the mean of a map over space, and its contrast.

`pool` runs before tokens are split into groups, so that only its result travels with them. Here it
reads the map that experts get; `needs = ('image',)` would also give it the image. The parameters
are made for the width of the map, so `params` says how wide the pooled features are.

    PYTHONPATH=. python main.py --config=configs/digits_k2.py --workdir=W \
        --config.model.moe.router=examples.contrast_router:Contrast

Axes: B images, H W space, D channels, N ids.
"""

import jax.numpy as jnp

from moe_vision.routing.routers.top_k import TopK


class Contrast(TopK):
    needs = ('map',)

    def pool(self, params, x, extras):
        """x [B, H, W, D] to the mean and the standard deviation of each channel, [B, 2 D]."""
        del params, extras
        x = x.astype(jnp.float32)
        mean = x.mean((1, 2))
        variance = jnp.square(x - mean[:, None, None]).mean((1, 2))
        return jnp.concatenate([mean, jnp.sqrt(variance + 1e-6)], -1)

    def params(self, width):
        return super().params(2 * width)
