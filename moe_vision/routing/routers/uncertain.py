"""A router that trusts certain experts more: the uncertainty-aware router of MoFME (Zhang et al.
2023).

In training, M passes with dropout on the features give each expert a mean probability w and a
standard deviation s. Its weight is w / (s + epsilon), divided by the sum over all experts; the k
largest weights choose, and gates are the weights, renormalised over the choices of a token. In
evaluation there is a single pass without dropout, so the weights are its probabilities.

With M = 1, or without dropout, s is 0 and the weights are those of the plain router.

Differences to the authors' code, which averages normalised differences from the mean, whose sum is
nearly zero, and keeps a list from layer to layer: this follows the equation of the paper, with the
diagonal of the covariance. `calibrate=False` takes the mean of the passes alone. `epsilon` is this
project's own, as is dropout on normalised features.

Axes: G groups, T tokens, M passes, N ids, D width.
"""

import jax
import jax.numpy as jnp

from moe_vision.common.streams import UncertainStream
from moe_vision.routing.linear import linear
from moe_vision.routing.router import Router
from moe_vision.routing.types import Array, Context, Routing, pick, top_k_ids


class Uncertain(Router):
    def choose(self, params, state, features, context: Context) -> Routing:
        a = self.args
        logits = linear(features, params['kernel'], normalize=a.normalize_inputs)
        probs = jax.nn.softmax(logits)
        weights = probs
        if context.train:
            weights = context.unless_settled(self._calibrated(params, features, context), probs)
        ids = top_k_ids(weights, self.k)
        return self.routing(context, logits, ids, pick(weights, ids), probs=probs)

    def _calibrated(self, params, features: Array, context: Context) -> Array:
        """Weights that sum to 1, [G, T, N]."""
        a, (g, t, d) = self.args, features.shape

        def kept(key):
            return jax.random.bernoulli(key, 1 - a.dropout, (a.passes, t, d))

        masks = jax.vmap(kept)(context.keys(UncertainStream.DROPOUT)) / (1 - a.dropout)
        masks = jnp.moveaxis(masks, 1, 0).reshape(a.passes * g, t, d)
        repeated = jnp.broadcast_to(features, (a.passes, g, t, d)).reshape(masks.shape)
        logits = linear(repeated, params['kernel'], masks, normalize=a.normalize_inputs)
        each = jax.nn.softmax(logits).reshape(a.passes, g, t, -1)
        mean = each.mean(0)
        if not a.calibrate:
            return mean
        variance = jnp.square(each - mean).mean(0)
        # without a spread the gradient of a root would not be finite
        spread = jnp.sqrt(jnp.where(variance > 0, variance, 1.0)) * (variance > 0)
        weights = mean / (spread + a.epsilon)
        return weights / weights.sum(-1, keepdims=True)
