"""Rules by which a token's scores decide how many experts it takes (DynaMoE, Gülmez 2026).

Axes: G groups, T tokens, K choices, E experts, D width.
"""

import math
from fractions import Fraction

import jax
import jax.numpy as jnp

from moe_vision.common.streams import DynamoeStream
from moe_vision.routing.linear import linear
from moe_vision.routing.router import Router
from moe_vision.routing.types import Array, Context, Routing, pick, top_k_ids


class Dynamoe(Router):
    """p = softmax(x W / temperature), with noise on the logits in training.

    A token takes its most probable expert, and others by the rule. With `level` l:

        percentile: p_e above the l-th percentile of the token's own E scores. Of E different
            scores E - 1 - floor((E - 1) l) are, so this is the paper's rule and a fixed number
        threshold: p_e > l
        top_p: the smallest set with a mass of at least l
        quantile: p_e above the l-quantile of all scores of the group's tokens, so the mean number
            is fixed and each token's own is not; routes depend on the group, in evaluation, too

    Gates are the softmax over the experts taken. The rule alone says how many these are; k only
    sizes the slots, capacity_factor k T / E of each expert.

    Source: arXiv 2603.01697, for `percentile`. Choices of this project: the other rules; the noise
    is added before the division by the temperature; the gates' softmax is of the same logits; the
    default level. The paper has no capacity: set capacity_factor and eval_capacity_factor to inf.
    """

    @property
    def max_choices(self) -> int:
        """K, the most experts that the rule can give a token."""
        e, level = self.num_experts, Fraction(str(self.args.level))
        most = {
            'percentile': e - 1 - math.floor((e - 1) * level),
            'threshold': math.ceil(1 / level) - 1 if level else e,
            'top_p': math.ceil(level * e),
            'quantile': e,
        }
        return min(max(most[self.args.rule], 1), e)

    @property
    def compares(self):
        return self.args.rule == 'quantile'

    def choices(self, capacity):
        """Of a rule that fixes the number or its mean, that; of others, as many as find room."""
        true = Fraction(self.place.num_experts, self.num_ids)
        if self.args.rule == 'percentile':
            return self.max_choices * true
        if self.args.rule == 'quantile':
            wanted = (1 - Fraction(str(self.args.level))) * self.num_experts
            return max(wanted, Fraction(1)) * true
        return min(self.room(capacity), self.max_choices * true)

    def choose(self, params, state, features: Array, context: Context) -> Routing:
        a, most = self.args, self.max_choices
        logits = linear(features, params['kernel'], normalize=a.normalize_inputs)
        noisy = logits
        if a.noise_scale and context.train:
            keys = context.keys(DynamoeStream.NOISE)
            shape = logits.shape[1:]
            drawn = a.noise_scale * jax.vmap(lambda key: jax.random.normal(key, shape))(keys)
            noisy = context.unless_settled(logits + drawn, logits)
        scores = jax.nn.softmax(noisy / a.temperature)
        ids = top_k_ids(scores, most)
        p = pick(scores, ids)  # the largest first
        wanted = jnp.ones(p.shape, bool)  # by the percentile: as many as there are choices
        if a.rule == 'threshold':
            wanted = p > a.level
        elif a.rule == 'top_p':
            wanted = jnp.cumsum(p, -1) - p < a.level
        elif a.rule == 'quantile':
            wanted = p > _quantile(scores, context.valid, a.level)[:, None, None]
        wanted |= jnp.arange(most) == 0
        gate = jnp.where(wanted, p, 0.0)
        gate /= gate.sum(-1, keepdims=True)
        logits /= a.temperature
        return self.routing(context, logits, ids, gate, active=wanted, temperature=a.temperature)


def _quantile(scores: Array, valid: Array, level: float) -> Array:
    """The score of each group that a share `level` of its valid tokens' scores lie below, [G]."""
    g, t, e = scores.shape
    real = jnp.where(valid[..., None], jax.lax.stop_gradient(scores), jnp.inf)
    last = valid.sum(-1, keepdims=True) * e - 1
    place = jnp.clip(jnp.floor(last * level).astype(jnp.int32), 0, t * e - 1)
    return jnp.take_along_axis(jnp.sort(real.reshape(g, t * e), -1), place, -1)[:, 0]
