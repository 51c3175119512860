"""The plan of soft routing: slots are mixtures of tokens, and outputs are mixtures of slots.

Axes: G groups, T tokens, E experts, P slots of an expert, `*` payload of a token.
"""

import dataclasses

import jax
import jax.numpy as jnp

from moe_vision.routing.plan import Experts, masked
from moe_vision.routing.types import Array, SoftRouting


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SoftPlan:
    """A plan for soft routing. It drops nothing."""

    combine: Array  # [G, T, E, P] float32
    dispatch: Array | None  # [G, T, E, P] float32, or None: every expert sees every token
    valid: Array  # [G, T] bool; padding is read as zero and receives zero

    def apply(self, x: Array, experts: Experts) -> Array:
        """Runs tokens x [G, T, *] through all experts: [G, T, *out]."""
        g, t, e, p = self.combine.shape
        x = masked(self.valid, x)
        if self.dispatch is None:
            slots = jnp.broadcast_to(x.reshape(1, g * t, *x.shape[2:]), (e, g * t, *x.shape[2:]))
        else:
            slots = jnp.einsum('gt...,gtep->egp...', x, self.dispatch.astype(x.dtype))
            slots = slots.reshape(e, g * p, *x.shape[2:])
        with jax.named_scope('experts'):
            out = experts(slots)
        weights = self.combine.astype(out.dtype)
        if self.dispatch is None:
            out = out.reshape(e, g, t, *out.shape[2:])
            return masked(self.valid, jnp.einsum('egt...,gte->gt...', out, weights[..., 0]))
        out = out.reshape(e, g, p, *out.shape[2:])
        return masked(self.valid, jnp.einsum('egp...,gtep->gt...', out, weights))

    def for_experts(self, first: Array, count: int) -> 'SoftPlan':
        """The plan of `count` experts from `first` on."""
        weights = {
            name: jax.lax.dynamic_slice_in_dim(getattr(self, name), first, count, axis=2)
            for name in ('dispatch', 'combine')
            if getattr(self, name) is not None
        }
        return dataclasses.replace(self, **weights)


def soft_plan(routing: SoftRouting, valid: Array) -> SoftPlan:
    return SoftPlan(routing.combine, routing.dispatch, valid)
