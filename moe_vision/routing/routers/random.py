"""The control without learned routes: draws k distinct experts at random at each step.

Compare THOR, Zuo et al. 2021. In evaluation (seed, layer, group) decide the draw. With gate
'softmax' the drawn experts get the gates that a learned top-k router would give them, so only the
routes differ from that router.
"""

import functools

import jax
import jax.numpy as jnp

from moe_vision.common.streams import RandomStream
from moe_vision.routing.linear import linear
from moe_vision.routing.types import Context, Router, Routing, pick, top_k_ids


class Random(Router):
    draws = True

    def params(self, width):
        return super().params(width) if self.args.gate == 'softmax' else {}

    def choose(self, params, state, features, context: Context) -> Routing:
        g, t, _ = features.shape
        draw = functools.partial(jax.random.uniform, shape=(t, self.num_experts))
        ids = top_k_ids(jax.vmap(draw)(context.keys(RandomStream.EXPERTS)), self.k)
        if self.args.gate == 'softmax':
            logits = linear(features, params['kernel'], normalize=self.args.normalize_inputs)
            gate = pick(jax.nn.softmax(logits), ids)
        else:
            logits = jnp.zeros((g, t, self.num_experts), jnp.float32)
            gate = jnp.full(ids.shape, 1 / self.k, jnp.float32)
        return Routing(
            probs=jax.nn.softmax(logits),
            logits=logits,
            expert_of_choice=ids,
            gate=gate * self.args.gate_scale,
            active=jnp.broadcast_to(context.valid[..., None], ids.shape),
        )
