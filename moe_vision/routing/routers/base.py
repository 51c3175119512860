"""Balanced assignment of tokens to experts (BASE layers, Lewis et al. 2021).

In training, tokens are assigned so that sum_t h_t w_{a(t)} is large and all experts get the same
number of tokens, T / E rounded up. In evaluation each token takes the expert of its largest score.
The gate is sigmoid(h_t w_a), and no loss balances anything.

The paper solves the assignment by an auction. Here Sinkhorn's plan with a small xi, which has the
dual prices of the assignment in it, is rounded: in each of E rounds the tokens that lack an expert
ask for the best one that has room, and each expert takes the best of those that ask, as long as it
has room. An expert that refuses a token is full, so after E rounds nobody asks. The tests compare
the sum with that of an exact solver.

The paper has k = 1. With k above 1 each token is assigned to k different experts, k T / E tokens to
each; a token makes fewer choices if only experts that it has already have room in the end.

Axes: G groups, T tokens, E experts, K choices, D width.
"""

import jax
import jax.numpy as jnp

from moe_vision.routing.linear import linear
from moe_vision.routing.router import Router
from moe_vision.routing.sinkhorn import log_plan
from moe_vision.routing.types import Array, Context, Routing, pick, top_k_ids


class Base(Router):
    def choose(self, params, state, features, context: Context) -> Routing:
        a = self.args
        logits = linear(features, params['kernel'], normalize=a.normalize_inputs)
        if context.train:
            order = log_plan(logits, context.valid, a.xi, a.iterations)
            taken = assign(order, context.valid, self.k)
            # those that were assigned come first, by score
            ids = top_k_ids(jnp.where(taken, jax.nn.softmax(logits), -1.0), self.k)
            active = pick(taken.astype(jnp.float32), ids) > 0
        else:
            ids = top_k_ids(logits, self.k)
            active = jnp.broadcast_to(context.valid[..., None], ids.shape)
        return self.routing(context, logits, ids, pick(jax.nn.sigmoid(logits), ids), active=active)


def assign(scores: Array, valid: Array, k: int) -> Array:
    """Which experts each token gets, [G, T, E] bool, without gradient.

    Each valid token gets k of them, and each expert at most ceil(k T / E) of the T valid tokens. At
    k = 1 every valid token gets one.

    Args:
      scores: [G, T, E]; the largest are assigned first.
      valid: [G, T].
      k: 1 to E.
    """
    scores, e = jax.lax.stop_gradient(scores), scores.shape[-1]
    room = -(-k * valid.sum(1) // e)[:, None, None]  # [G, 1, 1]

    def left(taken: Array) -> tuple[Array, Array]:
        """The free places of each expert [G, 1, E], and what each token may ask for [G, T, E]."""
        free = room - taken.sum(1, keepdims=True)
        lacks = valid[..., None] & (taken.sum(2, keepdims=True) < k)
        return free, lacks & (free > 0) & ~taken

    def ask(taken: Array) -> Array:
        free, may = left(taken)
        wanted = jnp.where(may, scores, -jnp.inf)
        ids = top_k_ids(wanted, k)
        lacking = k - taken.sum(2, keepdims=True)
        asked = jax.nn.one_hot(ids, e, dtype=bool) & (jnp.arange(k) < lacking)[..., None]
        asked = asked.any(2) & may
        wanted = jnp.where(asked, scores, -jnp.inf)
        best = jnp.sort(wanted, axis=1, descending=True)
        last = jnp.clip(free - 1, 0, scores.shape[1] - 1)
        least = jnp.take_along_axis(best, last, 1)  # [G, 1, E]
        above, equal = wanted > least, wanted == least
        first = jnp.cumsum(equal, 1) <= free - above.sum(1, keepdims=True)
        return taken | (asked & (above | (equal & first)))

    def one_round(taken: Array, _: None) -> tuple[Array, None]:
        return jax.lax.cond(left(taken)[1].any(), ask, lambda t: t, taken), None

    return jax.lax.scan(one_round, jnp.zeros(scores.shape, bool), None, length=e)[0]
