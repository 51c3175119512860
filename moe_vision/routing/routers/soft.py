"""Soft MoE (Puigcerver et al. 2023) and its per-sample form.

Logits are products of unit features and unit slot vectors, times a learned scale. With axis
`tokens` or `batch` a slot is a mixture of the tokens of a group (the patches of an image, or
several images), and every prediction depends on the whole group. With axis `none` every expert sees
each token as it is, and a softmax over experts mixes the outputs, as in groups of one token.

Axes: G groups, T tokens, E experts, P slots per expert, D width.
"""

import jax
import jax.numpy as jnp

from moe_vision.routing.router import Router
from moe_vision.routing.types import Context, SoftRouting


class Soft(Router):
    @property
    def slots(self) -> int:
        return 1 if self.args.axis == 'none' else self.args.slots_per_expert

    def params(self, width):
        shape = (width, self.num_experts * self.slots)
        return {
            'slots': (shape, jax.nn.initializers.normal(width**-0.5)),
            'scale': ((), jax.nn.initializers.ones),
        }

    def choose(self, params, state, features, context: Context) -> SoftRouting:
        g, t, _ = features.shape
        e, p = self.num_experts, self.slots
        x = _unit(features.astype(jnp.float32), -1)
        logits = params['scale'] * jnp.einsum(
            'gtd,ds->gts', x, _unit(params['slots'], 0), precision='highest'
        )
        logits = logits / self.args.temperature
        gates = jax.nn.softmax(logits)
        if self.args.gate == 'even':
            gates = jnp.full_like(logits, 1 / (e * p))
        combine = gates.reshape(g, t, e, p)
        dispatch = None
        if self.args.axis != 'none':
            valid = context.valid[..., None]
            seen = jnp.where(valid, logits, -jnp.inf)
            seen = jnp.where(context.valid.any(1)[:, None, None], seen, 0.0)
            dispatch = jnp.where(valid, jax.nn.softmax(seen, axis=1), 0.0).reshape(g, t, e, p)
        return SoftRouting(
            probs=combine.sum(-1),
            logits=logits,
            combine=combine,
            dispatch=dispatch,
            temperature=self.args.temperature,
        )


def _unit(x, axis):
    return x * jax.lax.rsqrt(jnp.sum(jnp.square(x), axis, keepdims=True) + 1e-12)
