"""A router of your own: logits are cosines between projected tokens and expert vectors.

ell = cos(x P, m_e) * exp(min(t, ln 100)), with a learned temperature t (Tutel, Hwang et al. 2022;
X-MoE, Chi et al. 2022): scale invariant in x, and |ell| <= 100.

    python main.py --config=configs/digits_k2.py --workdir=W \
        --config.model.moe.router=examples.cosine_router:Cosine \
        --config.model.moe.router_args={} --config.model.moe.losses.load=0

Axes: G groups, T tokens, E experts, K choices, D width, Q projected width.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from moe_vision.routing.types import Context, Router, Routing, pick, top_k_ids


@dataclasses.dataclass(frozen=True)
class Args:
    """Fields of `model.moe.router_args`."""

    project: int = 64  # Q


class Cosine(Router):
    Args = Args

    def params(self, width):
        normal = jax.nn.initializers.normal
        return {
            'project': ((width, self.args.project), normal(width**-0.5)),
            'experts_at': ((self.args.project, self.num_experts), normal(0.01)),
            'log_scale': ((), jax.nn.initializers.constant(math.log(2.0))),
        }

    def choose(self, params, state, features, context: Context) -> Routing:
        x = _unit(features.astype(jnp.float32) @ params['project'], -1)
        scale = jnp.exp(jnp.minimum(params['log_scale'], math.log(100.0)))
        logits = scale * (x @ _unit(params['experts_at'], 0))
        probs = jax.nn.softmax(logits)
        ids = top_k_ids(logits, self.k)
        return Routing(
            probs=probs,
            logits=logits,
            expert_of_choice=ids,
            gate=pick(probs, ids),
            active=jnp.broadcast_to(context.valid[..., None], ids.shape),
        )


def _unit(v: jax.Array, axis: int) -> jax.Array:
    """v, scaled to length 1 along the axis."""
    return v * jax.lax.rsqrt(jnp.sum(jnp.square(v), axis, keepdims=True) + 1e-12)
