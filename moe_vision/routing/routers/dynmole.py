"""Routing by entropy: all experts for tokens that are undecided, few for others (DynMoLE, 2025).

Axes: G groups, T tokens, K choices, E experts, D width.
"""

import jax
import jax.numpy as jnp

from moe_vision.routing.linear import linear
from moe_vision.routing.router import Router
from moe_vision.routing.temperature import tsallis_share
from moe_vision.routing.types import Array, Context, Routing, pick, top_k_ids


class Dynmole(Router):
    """p = softmax(x W). A token whose Tsallis entropy is above a share of its most takes all.

        H_q(p) / H_q(1/E) > threshold,    H_q(p) = (1 - sum_e p_e^q) / (q - 1)

    Any other token takes the smallest set of experts with a mass of at least `top_p`, and k of them
    at least. Gates are the probabilities, as they are. Loss `tsallis` lowers the entropy.

    Source: arXiv 2504.00661 and its code. Choices of this project: the set is the smallest that
    reaches the mass, where the code takes the largest that stays within it; experts have a fixed
    number of slots, which go to all first choices before all second ones, so an undecided token
    loses its weakest experts first. Nothing is dropped with a capacity_factor of E / k.
    """

    def choices(self, capacity):
        """As many as find room: what tokens want is known only by their entropy."""
        return min(self.room(capacity), self.place.num_experts)

    def choose(self, params, state, features: Array, context: Context) -> Routing:
        a = self.args
        logits = linear(features, params['kernel'], normalize=a.normalize_inputs)
        probs = jax.nn.softmax(logits)
        ids = top_k_ids(probs, self.num_experts)
        p = pick(probs, ids)  # the largest first
        wanted = (jnp.cumsum(p, -1) - p < a.top_p) | (jnp.arange(self.num_experts) < self.k)
        if a.threshold < 1:
            wanted |= (tsallis_share(probs, a.q) > a.threshold)[..., None]
        return self.routing(
            context,
            logits,
            ids,
            jnp.where(wanted, p, 0.0),
            probs=probs,
            active=wanted & context.valid[..., None],
        )
