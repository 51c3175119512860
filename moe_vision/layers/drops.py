"""A dense control that drops tokens as a routed layer does, and does nothing else of routing.

Axes: B tokens given, E experts, K choices, D width, `*` payload of a token.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import Mesh as DeviceMesh

from moe_vision.common.place import Place
from moe_vision.common.streams import LayerStream
from moe_vision.config import registry
from moe_vision.layers.banks import declare_params
from moe_vision.layers.experts import Expert
from moe_vision.layers.moe import make_router
from moe_vision.layers.route import Step, make_plan, route_groups
from moe_vision.routing.plan import Priority
from moe_vision.routing.types import Context

Array = jax.Array


class DroppingBlock(nn.Module):
    """A dense block, times the share of a token's choices that found a slot.

    Each token chooses K of E experts at random. With `measured` the slots do not count: each choice
    is dropped with a given probability, such as a routed network was measured to drop. Parameters
    and computation are those of `DenseBlock`. The other attributes mean what they mean in `MoE`.
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
    measured: tuple[float, ...] = ()  # shares at equally spaced moments, then in evaluation

    router = 'random'  # no attribute to set

    @nn.compact
    def __call__(self, x: Array, step: Step, *, carry: Any = None) -> tuple[Array, dict[str, Any]]:
        """x [B, *, D] to (branch [B, *, D], info); info as in `MoE`, of the drawn choices.

        A dropped choice takes 1/K of the output with it, as if K equal experts shared the work.
        The choices are even, so a learned router may drop more. Counts of experts describe the draw
        alone, since there are no experts.

        Raises:
          ValueError: as in `MoE`; it always draws at random.
        """
        router = make_router(self.router, registry.RandomArgs(), self.place)

        def on_groups(context, x, features, shared, bank):
            del x, features, shared, bank
            routing = router({}, {}, jnp.zeros((*context.valid.shape, 1)), context)
            plan = make_plan(self, routing, context)
            if self.measured:
                plan = dataclasses.replace(plan, keep=routing.active & self._spared(context))
            return (), routing, plan, None, {}

        routed = route_groups(self, on_groups, step, x.shape[0])
        share = routed.choices['kept'].mean(-1)  # of a token's choices
        share = share.reshape(-1, *(1,) * (x.ndim - 1)).astype(x.dtype)
        params = declare_params(self, self.expert)
        y = jnp.where(share > 0, share * self.expert.run(params, x), jnp.zeros((), x.dtype))
        return y, routed.info({}, self.place) | {'carry': carry}

    @property
    def place(self) -> Place:
        """Where the block stands, as in `MoE`."""
        return Place(self.num_experts, self.k, self.group_size, self.layer)

    def _spared(self, context: Context) -> Array:
        """Which choices are not dropped, bool [G, T, K], by the measured shares."""
        *training, evaluation = self.measured
        moments = jnp.linspace(0.0, 1.0, len(training))
        rate = jnp.interp(context.fraction, moments, jnp.asarray(training))
        rate = rate if context.train else jnp.float32(evaluation)
        draw = functools.partial(jax.random.uniform, shape=(context.valid.shape[1], self.k))
        return jax.vmap(draw)(context.keys(LayerStream.DROPS)) >= rate
