"""Soft MoE (Puigcerver et al. 2023) and its per-sample form.

    logits[t, s] = scale * (x_t / |x_t|) . (phi_s / |phi_s|)
    slot s = sum_t softmax over t of logits[t, s] * x_t;  expert e runs on its P slots
    y_t = sum_s softmax over s of logits[t, s] * (output of slot s)

With axis `tokens` or `batch` the tokens t are those of a group (the patches of an image, or several
images), and every prediction depends on the whole group. This project's own choices: axis `none`,
where every expert sees each token as it is, as in groups of one token, and a softmax over experts
mixes the outputs; gates that are `even`; a temperature.

Axes: G groups, T tokens, E experts, P slots per expert, D width.
"""

from fractions import Fraction

import jax
import jax.numpy as jnp

from moe_vision.routing.router import Router
from moe_vision.routing.types import Context, SoftRouting


class Soft(Router):
    @property
    def slots(self) -> int:
        return 1 if self.args.axis == 'none' else self.args.slots_per_expert

    @property
    def compares(self):
        return self.args.axis != 'none'

    def room(self, capacity):
        tokens = 1 if self.args.axis == 'none' else self.place.group_size
        return Fraction(self.place.num_experts * self.slots, tokens)

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
