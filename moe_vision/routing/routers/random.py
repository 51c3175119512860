"""Controls without learned routes: k distinct experts at random, or those of the image's domain.

Compare THOR, Zuo et al. 2021. In evaluation (seed, layer, group) decide the draw. With gate
'softmax' the drawn experts get the gates that a learned top-k router would give them, so only the
routes differ from that router.
"""

import functools

import jax
import jax.numpy as jnp

from moe_vision.common.streams import RandomStream
from moe_vision.routing.linear import linear
from moe_vision.routing.router import Router
from moe_vision.routing.types import Array, Context, Routing, pick, top_k_ids


class Random(Router):
    draws = True

    def params(self, width):
        return super().params(width) if self.args.gate == 'softmax' else {}

    def choose(self, params, state, features, context: Context) -> Routing:
        g, t, _ = features.shape
        ids = self.ids(t, context)
        if self.args.gate == 'softmax':
            logits = linear(features, params['kernel'], normalize=self.args.normalize_inputs)
            gate = pick(jax.nn.softmax(logits), ids)
        else:
            logits = jnp.zeros((g, t, self.num_experts), jnp.float32)
            gate = jnp.full(ids.shape, 1 / self.k, jnp.float32)
        return self.routing(context, logits, ids, gate)

    def ids(self, tokens: int, context: Context) -> Array:
        """The experts of each token, int32 [G, T, K]."""
        draw = functools.partial(jax.random.uniform, shape=(tokens, self.num_experts))
        return top_k_ids(jax.vmap(draw)(context.keys(RandomStream.EXPERTS)), self.k)


class Oracle(Random):
    """A control that is given the domain of an image: choice j of domain d is expert (d + j) mod E.

    It shows what routing can be worth on a set with `dataset.domains`.
    """

    needs = ('domain',)
    draws = False

    def ids(self, tokens: int, context: Context) -> Array:
        """The experts of each token, int32 [G, T, K]."""
        del tokens
        domain = context.extras['domain'][..., None]
        return (domain + jnp.arange(self.k, dtype=jnp.int32)) % self.num_experts
