"""Routes by cosines between projected tokens and expert vectors (X-MoE, Swin-MoE, Tutel).

    logits = cos(x P, m_e) exp(min(t, ln 100)),    P [D, Q] and M [Q, E] learned, t starts at ln 2

So the scale of x does not count, and no logit is larger than 100. The k largest softmax
probabilities are the gates.

Source: Chi et al. 2022 (arXiv 2204.09179); Hwang et al. 2022 (arXiv 2206.03382), whose code has
Q = 256, these initial values and this bound. "What's the Sweet Spot?" (arXiv 2411.18322) found it
no better than a linear router on ImageNet. This project's own choice: P is drawn with variance 1/D.

Axes: G groups, T tokens, E experts, K choices, D width, Q projected width.
"""

import math

import jax
import jax.numpy as jnp

from moe_vision.routing.linear import linear
from moe_vision.routing.router import Router
from moe_vision.routing.types import Array, Context, Routing, pick, top_k_ids


class Cosine(Router):
    def params(self, width):
        normal = jax.nn.initializers.normal
        return {
            'project': ((width, self.args.project), normal(width**-0.5)),
            'experts_at': ((self.args.project, self.num_experts), normal(0.01)),
            'log_scale': ((), jax.nn.initializers.constant(math.log(2.0))),
        }

    def choose(self, params, state, features, context: Context) -> Routing:
        x = _unit(linear(features, params['project'], normalize=False), -1)
        scale = jnp.exp(jnp.minimum(params['log_scale'], math.log(100.0)))
        logits = scale * linear(x, _unit(params['experts_at'], 0), normalize=False)
        probs = jax.nn.softmax(logits)
        ids = top_k_ids(logits, self.k)
        gate = pick(probs, ids)
        return self.routing(context, logits, ids, gate, probs=probs)


def _unit(v: Array, axis: int) -> Array:
    """v, scaled to length 1 along the axis."""
    return v * jax.lax.rsqrt(jnp.sum(jnp.square(v), axis, keepdims=True) + 1e-12)
