"""The control without any router: k distinct experts at random, anew at each step.

Cf. THOR, Zuo et al. 2021. In evaluation the draw is fixed by (seed, layer, group).
"""

import jax
import jax.numpy as jnp

from moe_vision.routing.types import Context, Router, Routing, top_k_ids


class Random(Router):
    def params(self, width):
        return {}

    def choose(self, params, state, features, context: Context) -> Routing:
        g, t, _ = features.shape
        draw = lambda key: jax.random.uniform(key, (t, self.num_experts))  # noqa: E731
        drawn = jax.vmap(draw)(context.keys(0))
        ids = top_k_ids(drawn, self.k)
        logits = jnp.zeros((g, t, self.num_experts), jnp.float32)
        return Routing(
            probs=jax.nn.softmax(logits), logits=logits, expert_of_choice=ids,
            gate=jnp.full(ids.shape, self.args.gate_scale / self.k, jnp.float32),
            active=jnp.broadcast_to(context.valid[..., None], ids.shape))
