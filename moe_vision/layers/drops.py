"""A dense control that drops tokens as a routed layer does, and does nothing else of routing.

Axes: B tokens given, E experts, K choices, D width, `*` payload of a token.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import Mesh as DeviceMesh

from moe_vision.config import registry
from moe_vision.layers.experts import Expert
from moe_vision.layers.moe import declare_params, make_router
from moe_vision.layers.route import Step, make_plan, route_groups
from moe_vision.routing.plan import Priority

Array = jax.Array


class DroppingBlock(nn.Module):
    """A dense block, times the share of a token's choices that found a slot.

    Each token chooses K of E experts at random. Parameters and computation are those of
    `DenseBlock`. The other attributes mean what they mean in `MoE`.
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
        """x [B, *, D] to (branch [B, *, D], info); info as in `MoE`, of the drawn choices.

        A dropped choice takes 1/K of the output with it, as if K equal experts shared the work.
        The choices are even, so a learned router may drop more. Counts of experts describe the draw
        alone, since there are no experts.

        Raises:
          ValueError: as in `MoE`; it always draws at random.
        """
        router = make_router('random', registry.RandomArgs(), self.num_experts, self.k)

        def on_groups(context, x, shared, bank):
            del x, shared, bank
            routing = router({}, {}, jnp.zeros((*context.valid.shape, 1)), context)
            return (), routing, make_plan(self, routing, context)

        routed = route_groups(self, on_groups, step, len(x))
        share = routed.choices['kept'].mean(-1)  # of a token's choices
        share = share.reshape(-1, *(1,) * (x.ndim - 1)).astype(x.dtype)
        params = declare_params(self, self.expert)
        y = jnp.where(share > 0, share * self.expert.run(params, x), jnp.zeros((), x.dtype))
        return y, routed.info({}) | {'carry': carry}
