"""A transform of your own: each expert's column of a router turns, but keeps its first length.

A logit is the product of features and a column, so an expert with a longer column is chosen more
often. Cosine routing (X-MoE, Chi et al. 2022) takes the length away; this keeps a linear router and
holds the length: from what the optimizer makes of a column, w + u, it takes the direction alone.

    python main.py --config=configs/digits_k2.py --workdir=W \
        --config.train.transforms="{'examples.steady_router:Steady': {'until': 0.5}}"

Axes: D width, E experts.
"""

import dataclasses

import jax.numpy as jnp

from moe_vision.transforms.types import Transform, by_path, of_router


@dataclasses.dataclass(frozen=True)
class Args:
    """Fields of the entry in `train.transforms`."""

    until: float = 1.0  # share of training; then lengths are free


class Steady(Transform):
    Args = Args
    routed = True

    def init(self, params):
        # lengths [E] of a router's [D, E]; the other parameters need nothing
        return by_path(lambda p, w: jnp.zeros(w.shape[1:] if of_router(p) else ()), params)

    def update(self, updates, params, *, step, state):
        def first(path, w, length):
            return jnp.where(step == 0, _length(w), length) if of_router(path) else length

        def turned(path, u, w, length):
            if not of_router(path):
                return u
            held = (w + u) * length / jnp.maximum(_length(w + u), 1e-12) - w
            return jnp.where(step < self.args.until * self.steps, held, u)

        state = by_path(first, params, state)
        return by_path(turned, updates, params, state), state


def _length(w):
    return jnp.sqrt(jnp.sum(w * w, 0))
