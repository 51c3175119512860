"""Losses of one's own: one of routing groups, and one of a whole layer.

    PYTHONPATH=. python main.py --config=configs/digits_k2.py --workdir=W \
        --config.model.moe.losses="{'examples.own_losses:short_rows': 0.01,
                                    'examples.own_losses:alike': 0.1}"

Axes: G groups, E experts.
"""

import dataclasses

import jax
import jax.numpy as jnp

from moe_vision.routing.types import Context, Routing, View


def short_rows(routing: Routing, context: Context, view: View) -> jax.Array:
    """Mean square of the router's weights, the same for each group, [G]."""
    del routing
    size = jnp.mean(jnp.square(view.params['kernel']))
    return jnp.where(context.valid.any(1), size, 0.0)


@dataclasses.dataclass(frozen=True)
class AlikeArgs:
    """Fields of `model.moe.loss_args` for `alike`."""

    margin: float = 0.0  # a cosine up to this costs nothing


def alike(view: View, key: jax.Array | None) -> jax.Array:
    """Mean over pairs of experts of how far their cosine exceeds the margin.

    An expert is the vector of all its matrices and filters. The weights of all experts are here,
    spread over the devices that hold them; what is computed from them leaves the devices only as a
    matrix [E, E].
    """
    del key
    rows = [w.reshape(w.shape[0], -1) for w in view.bank.values() if w.ndim > 2]
    dots = sum(jnp.einsum('ed,fd->ef', w, w) for w in rows)
    length = jnp.sqrt(jnp.maximum(jnp.diagonal(dots), 1e-12))
    cosine = dots / (length[:, None] * length)
    pairs = ~jnp.eye(view.num_experts, dtype=bool)
    above = jnp.where(pairs, jnp.maximum(cosine - view.args.margin, 0.0), 0.0)
    return above.sum() / max(view.num_experts * (view.num_experts - 1), 1)


alike.of_layer = True
alike.Args = AlikeArgs
