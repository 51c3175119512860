"""A router that observes and remembers: only unsure tokens take a second expert.

A token is unsure if its largest probability is below the mean of all tokens, which the router keeps
as state. What `observe` returns is summed over the step's groups, devices and micro-batches, and
reaches `update_state` once after each optimizer step.

    PYTHONPATH=. python main.py --config=configs/digits_k2.py --workdir=W \
        --config.model.moe.router=examples.unsure_router:Unsure \
        --config.model.moe.router_args={} --config.model.moe.losses.load=0

Axes: G groups, T tokens, E experts, D width.
"""

import dataclasses

import jax
import jax.numpy as jnp

from moe_vision.routing.router import Router
from moe_vision.routing.types import Context, Routing, pick, top_k_ids


@dataclasses.dataclass(frozen=True)
class Args:
    """Fields of `model.moe.router_args`."""

    decay: float = 0.99  # of the mean, per optimizer step


class Unsure(Router):
    Args = Args

    def init_state(self):
        return {'sure': jnp.full((), 1 / self.num_experts, jnp.float32)}

    def choose(self, params, state, features, context: Context) -> Routing:
        logits = features @ params['kernel']
        probs = jax.nn.softmax(logits)
        ids = top_k_ids(logits, self.k)
        gate = pick(probs, ids)
        unsure = gate[..., :1] < state['sure']
        first = jnp.arange(self.k) == 0
        return self.routing(context, logits, ids, gate, active=first | unsure)

    def observe(self, routing, context):
        largest = routing.probs.max(-1)
        return {'largest': jnp.where(context.valid, largest, 0.0).sum(1)}  # [G]

    def update_state(self, state, sums):
        mean = sums['largest'] / jnp.maximum(sums['tokens'], 1.0)
        return {'sure': self.args.decay * state['sure'] + (1 - self.args.decay) * mean}
