"""The dense control with a routed layer's drops, and nothing else of routing.

Axes: B tokens given, G groups, T tokens of a group, E experts, K choices, D width.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import Mesh as DeviceMesh

from moe_vision.config import registry
from moe_vision.layers.exchange import over_groups
from moe_vision.layers.experts import Expert
from moe_vision.layers.moe import Step, choices_of, make_router
from moe_vision.routing import telemetry
from moe_vision.routing.capacity import capacity
from moe_vision.routing.plan import Priority, index_plan
from moe_vision.routing.types import Context

Array = jax.Array


class DroppingBlock(nn.Module):
    """A dense block times the share of a token's choices that find a slot, K of E drawn at random.

    Its parameters, and what it computes, are those of `DenseBlock`; its attributes are of `MoE`.
    """

    expert: Expert
    num_experts: int
    k: int
    group_size: int
    capacity_factor: float = 1.25
    eval_capacity_factor: float = 2.0
    capacity_multiple: int = 1
    priority: Priority = 'token'
    mesh: DeviceMesh | None = None
    layer: int = 0

    @nn.compact
    def __call__(self, x: Array, step: Step, *, carry: Any = None) -> tuple[Array, dict[str, Any]]:
        """x [B, *, D] to (branch [B, *, D], info) as of `MoE`: choices are the ones drawn.

        A dropped choice takes 1/K of the output with it, as if K equal experts shared it. The drops
        are those of even loads: a learned router's may be more. What is counted of experts tells
        of the draw alone.

        Raises:
          ValueError: `step` has no key.
        """
        tokens, t, e = x.shape[0], self.group_size, self.num_experts
        router = make_router('random', registry.RandomArgs(), e, self.k)
        factor = self.capacity_factor if step.train else self.eval_capacity_factor
        slots = capacity(factor, self.k, t, e, self.capacity_multiple)
        key = jax.random.key(0) if step.key is None and self.is_initializing() else step.key
        key = None if key is None else jax.random.fold_in(key, self.layer)

        def on_groups(key, _, group, rows):
            valid, labels = rows
            context = Context(valid=valid, key=key, group=group, train=step.train)
            routing = router({}, {}, jnp.zeros((*valid.shape, 1)), context)
            plan = index_plan(routing, e, slots, self.priority,
                              context.keys(9) if self.priority == 'random' else None)
            counts = telemetry.count(routing, plan, context)
            if labels is not None and step.num_classes:
                counts['by_class'] = telemetry.by_class(routing, labels, context, step.num_classes)
            return (), choices_of(routing, plan), counts

        valid = jnp.ones(tokens, bool) if step.valid is None else step.valid
        _, made, counts = over_groups(on_groups, self.mesh, tokens, t)(
            key, {}, step.start // t + jnp.arange(tokens // t), (valid, step.labels))
        share = made['kept'].mean(-1).reshape(tokens, *(1,) * (x.ndim - 1)).astype(x.dtype)
        params = {name: self.param(name, init, shape)
                  for name, (shape, init) in self.expert.shapes().items()}
        y = jnp.where(share > 0, share * self.expert.apply(params, x), jnp.zeros((), x.dtype))
        return y, {'losses': {}, 'telemetry': {n: v.sum(0) for n, v in counts.items()},
                   'choices': made, 'carry': carry}
