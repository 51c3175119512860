"""A router whose layers share what an expert stands for: one column for each expert in all of them.

Each layer projects its features by itself, p = x A. The columns B are the same in all routed
layers (`shared_params`), and so is how often each expert was chosen (`init_shared_state`), which
raises the logits of experts that few layers use: p B - strength * log(E share). That suits layers
that share their experts, too:

    PYTHONPATH=. python main.py --config=configs/digits_k2.py --workdir=W \
        --config.model.moe.router=examples.shared_router:SharedColumns \
        --config.model.moe.router_args={} --config.model.moe.losses.load=0 \
        --config.model.moe.placement=last_2 --config.model.moe.bank=2

Axes: G groups, T tokens, E experts, K choices, D width, P width of the projection.
"""

import dataclasses

import jax
import jax.numpy as jnp

from moe_vision.routing.router import Router
from moe_vision.routing.types import Context, Routing, pick, top_k_ids


@dataclasses.dataclass(frozen=True)
class Args:
    """Fields of `model.moe.router_args`."""

    width: int = 16  # P
    strength: float = 0.1  # of the balance
    decay: float = 0.99  # of the shares, per optimizer step


class SharedColumns(Router):
    Args = Args

    def params(self, width):
        return {'project': ((width, self.args.width), jax.nn.initializers.normal(width**-0.5))}

    def shared_params(self):
        p = self.args.width
        return {'columns': ((p, self.num_experts), jax.nn.initializers.normal(p**-0.5))}

    def init_shared_state(self):
        return {'share': jnp.full(self.num_experts, 1 / self.num_experts, jnp.float32)}

    def choose(self, params, state, features, context: Context) -> Routing:
        projected = features.astype(jnp.float32) @ params['project']
        rare = jnp.log(jnp.maximum(self.num_experts * state['share'], 1e-6))
        logits = projected @ params['columns'] - self.args.strength * rare  # [G, T, E]
        ids = top_k_ids(logits, self.k)
        return self.routing(context, logits, ids, pick(jax.nn.softmax(logits), ids))

    def update_shared_state(self, state, sums):
        chosen = sum(layer['chosen'] for layer in sums)  # [E], over all layers
        share = chosen / jnp.maximum(chosen.sum(), 1.0)
        return {'share': self.args.decay * state['share'] + (1 - self.args.decay) * share}
