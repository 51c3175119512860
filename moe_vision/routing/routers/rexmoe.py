"""Lets layers use each other's experts, more of them as training goes on (ReXMoE, Tan et al. 2025).

The L layers that share a bank of E experts (`model.moe.bank`) own N = E / L of them each, in order.
Each has a router of its own over all E. At the share f of training a layer may choose

    n(f) = N before `start`, N + floor((E - N) (f - start) / (end - start)), E from `end` on

of them: first its own, then those of other layers. The probability of the rest is zero, and losses
of balance do not count them. The paper starts at 10,000 and ends at 30,000 steps of a pre-training
run; that this is said as shares of training is this project's choice. So is the order, about which
the paper says nothing: nearest layers first, the earlier of two, or at random.

The number of slots follows E from the first step on. So a layer that may choose N experts alone
drops about 1 - N * capacity_factor / E of its choices, unless the factor is E / N times as large.

Axes: G groups, T tokens, E experts of the pool, D width.
"""

import jax
import jax.numpy as jnp
import numpy as np

from moe_vision.routing.linear import linear
from moe_vision.routing.router import Router
from moe_vision.routing.types import Array, Context, Routing, pick, top_k_ids

_LOCKED = -1e9  # a logit whose probability is exactly 0, and whose gradients are finite


class Rexmoe(Router):
    @property
    def local_experts(self) -> int:
        """N, the experts that this layer owns."""
        return self.num_experts // self.place.pool_layers

    def order(self) -> np.ndarray:
        """The ids of all experts in the order in which this layer may choose them, [E]."""
        own, layers = self.place.pool_layer, self.place.pool_layers
        if self.args.order == 'random':
            others = np.delete(np.arange(self.num_experts).reshape(layers, -1), own, 0).ravel()
            others = np.random.default_rng(self.place.layer).permutation(others)
            mine = own * self.local_experts + np.arange(self.local_experts)
            return np.concatenate([mine, others])
        near = sorted(range(layers), key=lambda layer: abs(layer - own))
        return np.arange(self.num_experts).reshape(layers, -1)[near].ravel()

    def unlocked(self, fraction: Array | float) -> Array:
        """n(f), how many experts may be chosen at this share of training, int32."""
        a, e, n = self.args, self.num_experts, self.local_experts
        share = (jnp.asarray(fraction, jnp.float32) - a.start) / max(a.end - a.start, 1e-6)
        more = jnp.floor((e - n) * jnp.clip(share, 0.0, 1.0))
        return n + jnp.where(fraction >= a.end, e - n, more).astype(jnp.int32)

    def choose(self, params, state, features, context: Context) -> Routing:
        a = self.args
        allowed = jnp.argsort(self.order()) < self.unlocked(context.fraction)  # [E]
        logits = linear(features, params['kernel'], normalize=a.normalize_inputs)
        logits = jnp.where(allowed, logits, _LOCKED)
        probs = jax.nn.softmax(logits)
        ids = top_k_ids(logits, self.k)
        gate = pick(probs, ids)
        return self.routing(
            context,
            logits,
            ids,
            gate,
            probs=probs,
            allowed=jnp.broadcast_to(allowed, (ids.shape[0], self.num_experts)),
        )
