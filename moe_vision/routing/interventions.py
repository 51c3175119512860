"""Changes to routes after the router has made them, to see what depends on them.

Gates are not renormalised, and the router's probabilities stay as they are.

Axes: G groups, T tokens, K choices, E experts, N ids, P slots per expert of a soft router.
"""

import dataclasses
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from moe_vision.common.errors import UserError
from moe_vision.common.streams import LayerStream
from moe_vision.routing.types import Array, Context, Routing, SoftRouting, pick

NONE, ABLATE, SHUFFLE, DRAW = range(4)  # kinds of `Intervention`
AnyRouting = TypeVar('AnyRouting', Routing, SoftRouting)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Intervention:
    """One of the changes below, in one routed layer or in all. Every field may be traced."""

    kind: Array | int
    layer: Array | int = -1  # number of the routed layer; -1: all
    expert: Array | int = 0  # read by ABLATE

    def __call__(
        self, routing: AnyRouting, context: Context, layer: int, num_experts: int
    ) -> AnyRouting:
        """The routing of routed layer number `layer`, changed if the intervention is for it."""
        here = (self.layer < 0) | (self.layer == layer)
        return jax.lax.switch(
            jnp.where(here, self.kind, NONE),
            [
                lambda: routing,
                lambda: ablate(routing, self.expert),
                lambda: shuffle(routing, context),
                lambda: draw(routing, context, num_experts),
            ],
        )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Path:
    """An intervention that sends every token along one path: to one id in each routed layer.

    That is its only choice, with gate 1. Ids of null experts are allowed.
    """

    ids: Array  # [L] int32, by the number of the routed layer

    def __call__(
        self, routing: AnyRouting, context: Context, layer: int, num_experts: int
    ) -> AnyRouting:
        """The routing of routed layer number `layer`, as the path has it.

        Raises:
          UserError: soft routing has no choices.
        """
        del num_experts
        if isinstance(routing, SoftRouting):
            raise UserError('soft routing makes no choices, so no path leads through its experts.')
        first = jnp.broadcast_to(
            jnp.arange(routing.gate.shape[-1]) == 0, routing.expert_of_choice.shape
        )
        return dataclasses.replace(
            routing,
            expert_of_choice=jnp.full_like(routing.expert_of_choice, self.ids[layer]),
            gate=first.astype(jnp.float32),
            active=context.valid[..., None] & first,
        )


def ablate(routing: AnyRouting, expert: Array | int) -> AnyRouting:
    """Takes one expert away: choices of it are not made, and its outputs have no weight."""
    new: dict[str, Any]
    if isinstance(routing, SoftRouting):
        others = jnp.arange(routing.combine.shape[2]) != expert
        new = {'combine': routing.combine * others[:, None]}
    else:
        new = {'active': routing.active & (routing.expert_of_choice != expert)}
    return dataclasses.replace(routing, **new)


def shuffle(routing: AnyRouting, context: Context, stream: int = LayerStream.SHUFFLE) -> AnyRouting:
    """Permutes the routes of each group's valid tokens among them.

    Args:
      stream: as in `Context.keys`.

    Raises:
      ValueError: the context has no key.
    """
    order = _permutation(context.keys(stream), context.valid)
    names = (
        ['combine', 'dispatch']
        if isinstance(routing, SoftRouting)
        else ['expert_of_choice', 'gate', 'active']
    )
    new: dict[str, Any] = {
        n: _permuted(getattr(routing, n), order) for n in names if getattr(routing, n) is not None
    }
    return dataclasses.replace(routing, **new)


def draw(routing: AnyRouting, context: Context, num_experts: int) -> AnyRouting:
    """Replaces each token's true experts by as many that are drawn uniformly; gates stay.

    Null choices stay null. In soft routing, each token's combine weights are permuted over experts.

    Raises:
      ValueError: the context has no key.
    """
    tokens = context.valid.shape[1]
    keys = context.keys(LayerStream.DRAW)
    drawn = jax.vmap(lambda key: jax.random.uniform(key, (tokens, num_experts)))(keys)
    order = jnp.argsort(drawn, axis=-1).astype(jnp.int32)  # [G, T, E], one for each token
    new: dict[str, Any]
    if isinstance(routing, SoftRouting):
        combine = jnp.moveaxis(routing.combine, 3, 2)  # [G, T, P, E]
        moved = pick(combine, jnp.broadcast_to(order[:, :, None], combine.shape))
        new = {'combine': jnp.moveaxis(moved, 3, 2)}
    else:
        ids = routing.expert_of_choice
        true = ids < num_experts
        place = jnp.clip(jnp.cumsum(true, -1) - 1, 0, num_experts - 1)
        new = {'expert_of_choice': jnp.where(true, jnp.take_along_axis(order, place, -1), ids)}
    return dataclasses.replace(routing, **new)


def _permutation(keys: Array, valid: Array) -> Array:
    """For each token, the token whose route it gets, [G, T] int32. Padding keeps its own route."""
    t = valid.shape[1]
    drawn = jax.vmap(lambda key: jax.random.uniform(key, (t,)))(keys)
    mixed = jnp.argsort(jnp.where(valid, drawn, 2.0), axis=-1)  # valid ones first
    place = jnp.maximum(jnp.cumsum(valid, -1) - 1, 0)  # of a token among the valid ones
    return jnp.where(valid, jnp.take_along_axis(mixed, place, -1), jnp.arange(t)).astype(jnp.int32)


def _permuted(values: Array, order: Array) -> Array:
    """values [G, T, ...] in the order [G, T], a permutation."""
    take = _take_floats if jnp.issubdtype(values.dtype, jnp.floating) else _take
    return take(values, order)


def _take(values: Array, order: Array) -> Array:
    return jnp.take_along_axis(values, order.reshape(*order.shape, *(1,) * (values.ndim - 2)), 1)


@jax.custom_vjp
def _take_floats(values: Array, order: Array) -> Array:
    """`_take` whose gradient is a gather too, with the inverse permutation."""
    return _take(values, order)


_take_floats.defvjp(
    lambda values, order: (_take(values, order), order),
    lambda order, d: (_take(d, jnp.argsort(order, axis=-1)), None),
)
