"""A router of your own: a small network gives the logits, tanh(x A) B.

A router names its parameters in `params` and computes in `choose`. Everything it returns has a row
for each token of each group, and padding makes no choice.

    PYTHONPATH=. python main.py --config=configs/digits_k2.py --workdir=W \
        --config.model.moe.router=examples.two_layer_router:TwoLayer \
        --config.model.moe.router_args={} --config.model.moe.losses.load=0

Axes: G groups, T tokens, E experts, K choices, D width, F hidden width of the router.
"""

import dataclasses

import jax
import jax.numpy as jnp

from moe_vision.routing.router import Router
from moe_vision.routing.types import Context, Routing, pick, top_k_ids


@dataclasses.dataclass(frozen=True)
class Args:
    """Fields of `model.moe.router_args`."""

    hidden: int = 64  # F


class TwoLayer(Router):
    Args = Args

    def params(self, width):
        normal, hidden = jax.nn.initializers.normal, self.args.hidden
        return {
            'in_kernel': ((width, hidden), normal(width**-0.5)),
            'out_kernel': ((hidden, self.num_experts), normal(hidden**-0.5)),
        }

    def choose(self, params, state, features, context: Context) -> Routing:
        hidden = jnp.tanh(features.astype(jnp.float32) @ params['in_kernel'])
        logits = hidden @ params['out_kernel']  # [G, T, E]
        probs = jax.nn.softmax(logits)
        ids = top_k_ids(logits, self.k)
        gate = pick(probs, ids)  # the gradient reaches the router by this
        return self.routing(context, logits, ids, gate)
