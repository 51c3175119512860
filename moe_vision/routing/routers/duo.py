"""Chooses between large and small modules and none, within a budget (Duo-LLM, 2024).

First each token takes one module at random, so that the modules become interchangeable. From
`random_until` on the k likeliest modules run, and their outputs are mixed by their probabilities,
renormalised over those k; with k = N all of them do. The temperature falls, so that the mixture
becomes one choice. In evaluation a token takes its likeliest module alone, with gate 1.

Loss `budget` keeps the use of large modules, those of the first of `model.moe.kinds`, near its
target: (mean over tokens and layers of P(large) - target)^2. The sum over layers goes from layer to
layer as carry, so the loss is computed in the last routed layer.

Source: Alizadeh et al. 2024. This project's own choices: both phases in one run, a temperature that
falls linearly, a linear router, and a mean over the tokens of a routing group.

Axes: G groups, T tokens, K choices, N ids.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from moe_vision.common.streams import DuoStream
from moe_vision.routing.linear import linear
from moe_vision.routing.router import Router
from moe_vision.routing.temperature import schedule
from moe_vision.routing.types import Context, Routing, pick, top_k_ids


class Duo(Router):
    def choose(self, params, state, features, context: Context) -> Routing:
        a = self.args
        logits = linear(features, params['kernel'], normalize=a.normalize_inputs)
        learned = (context.fraction - a.random_until) / (1 - a.random_until)
        tau = schedule('linear', a.temperature_start, a.temperature_end, learned)
        logits = logits / tau
        probs = jax.nn.softmax(logits)
        ids = top_k_ids(logits, self.k)
        alone = jnp.broadcast_to(jnp.arange(self.k) == 0, ids.shape)
        gate, made = jax.nn.softmax(pick(logits, ids)), jnp.ones_like(alone)
        if not context.train:
            gate, made = alone.astype(jnp.float32), alone
        elif a.random_until:
            draw = functools.partial(jax.random.uniform, shape=logits.shape[1:])
            drawn = top_k_ids(jax.vmap(draw)(context.keys(DuoStream.MODULE)), self.k)
            at_random = context.unless_settled(context.fraction < a.random_until, False)
            ids = jnp.where(at_random, drawn, ids)
            gate = jnp.where(at_random, alone.astype(jnp.float32), gate)
            made = jnp.where(at_random, alone, made)
        kinds = self.place.kinds or (0,) * self.place.num_experts
        large = np.isin(np.arange(self.num_ids), np.flatnonzero(np.asarray(kinds) == 0))
        used = jnp.where(large, probs, 0.0).sum(-1)  # [G, T]
        used = used if context.carry is None else used + context.carry
        return self.routing(
            context,
            logits,
            ids,
            gate,
            probs=probs,
            active=made,
            temperature=tau,
            carry=used,
            aux={'large': used / self.place.layers},
        )
