"""Gives tokens a variable number of experts by offering null ones (AdaMoE, Zeng et al. 2024).

    p = softmax(x W) over E true and m null experts;  choices: the k largest of p
    gate = p of the choice / sum of p over the token's true choices, 0 for a null one

A null choice takes no slot and gives nothing. This project's own choice: features are normalised
unless the args say not.
"""

import jax
import jax.numpy as jnp

from moe_vision.routing.linear import linear
from moe_vision.routing.router import Router
from moe_vision.routing.types import Context, Routing, pick, top_k_ids


class NullExperts(Router):
    @property
    def num_ids(self):
        return self.num_experts + self.args.null_experts

    def choose(self, params, state, features, context: Context) -> Routing:
        a = self.args
        logits = linear(features, params['kernel'], normalize=a.normalize_inputs)
        probs = jax.nn.softmax(logits)
        ids = top_k_ids(logits, self.k)
        gate = jnp.where(ids < self.num_experts, pick(probs, ids), 0.0)
        return self.routing(context, logits, ids, gate, probs=probs)
