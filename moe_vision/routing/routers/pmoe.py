"""Experts choose patches of one image (patch-level routing, Chowdhury et al. 2023).

Expert e has a routing vector w_e and takes the l patches of an image with the largest <w_e, x>. Its
gates are a softmax over these l scores, so they sum to 1 over the patches and not over the experts:

    y_t = sum_{e that took t} G[t, e] f_e(x_t),    G[., e] = softmax of <w_e, x> over the l patches

A group is one image, so no prediction depends on another image, and l is its capacity: an expert
does l / T of the work of a dense block. A token keeps `max_choices` experts, as in `expert_choice`;
the paper has no such bound. Its separate router, which is trained first and then fixed, is
`train.trainable`.

Axes: G groups, T tokens, E experts.
"""

import jax
import jax.numpy as jnp

from moe_vision.routing.routers.expert_choice import ExpertChoice
from moe_vision.routing.types import Array


class PatchMoe(ExpertChoice):
    def scores(self, logits: Array) -> Array:
        return logits

    def gates(self, scores: Array, taken: Array) -> Array:
        top = jax.lax.stop_gradient(jnp.where(taken, scores, -jnp.inf).max(1, keepdims=True))
        e = jnp.where(taken, jnp.exp(jnp.where(taken, scores - top, 0.0)), 0.0)
        return e / jnp.maximum(e.sum(1, keepdims=True), 1e-9)
