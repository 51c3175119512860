"""Experts choose tokens (Expert Choice, Zhou et al. 2022).

S = softmax(x W) over experts, [T, E]. Expert e takes the C tokens of the group with the largest
S[:, e], and the gate of token t for it is S[t, e]. So each expert has the same load, nothing needs
to balance them, and a token is taken by 0 to E experts: C E / T on average, which is k times the
capacity factor.

Capacity decides the routes here, so evaluation has the capacity of training. The routes of a token
depend on the other tokens of its group.

This project's own choices: features are normalised unless the args say not, padding is never taken,
the first of equal tokens wins, and a token keeps the `max_choices` experts with the largest gates.
The paper has no bound in its main form. What the bound costs shows as slots that stay empty:
telemetry's `utilisation` is 1 where it costs nothing and no group has padding.

Axes: G groups, T tokens, E experts, K choices, C capacity, D width.
"""

from fractions import Fraction

import jax
import jax.numpy as jnp

from moe_vision.routing.linear import linear
from moe_vision.routing.router import Router
from moe_vision.routing.types import Array, Context, Routing, pick


class ExpertChoice(Router):
    def choices(self, capacity: int) -> Fraction:
        """C E / T, and no more than K."""
        taken = Fraction(capacity * self.num_experts, self.place.group_size)
        return min(taken, Fraction(self._most))

    @property
    def _most(self) -> int:
        """K, the most experts that may take one token."""
        return min(self.num_experts, self.args.max_choices or self.num_experts)

    def choose(self, params, state, features, context: Context) -> Routing:
        a = self.args
        logits = linear(features, params['kernel'], normalize=a.normalize_inputs)
        scores = self.scores(logits)
        taken = largest(scores, context.capacity, context.valid)
        gates = self.gates(scores, taken)
        # Experts that took the token come first, by gate. A gate lies in [0, 1].
        order = jax.lax.stop_gradient(jnp.where(taken, gates, gates - 2))
        values, ids = jax.lax.top_k(order, self._most)
        active, ids = values >= 0, ids.astype(jnp.int32)
        gate = pick(gates, ids)
        return self.routing(context, logits, ids, gate, active=active)

    def scores(self, logits: Array) -> Array:
        """By what each expert ranks the tokens, [G, T, E]."""
        return jax.nn.softmax(logits)

    def gates(self, scores: Array, taken: Array) -> Array:
        """The gate of each token for each expert, [G, T, E], from 0 to 1."""
        del taken
        return scores


def largest(scores: Array, count: int, valid: Array) -> Array:
    """The `count` valid tokens with the largest score of each expert; the first of equal ones.

    Args:
      scores: [G, T, E].
      count: all valid tokens are taken if there are fewer.
      valid: [G, T].

    Returns:
      taken [G, T, E] bool, without gradient.
    """
    scores = jnp.where(valid[..., None], jax.lax.stop_gradient(scores), -jnp.inf)
    best = jax.lax.top_k(scores.swapaxes(1, 2), min(count, scores.shape[1]))[0]  # [G, E, C]
    least = best[..., -1][:, None]
    above, equal = scores > least, scores == least
    room = best.shape[-1] - above.sum(1, keepdims=True)
    return (above | (equal & (jnp.cumsum(equal, 1) <= room))) & valid[..., None]
