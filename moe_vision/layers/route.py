"""Routing in groups: what the routed layer and its dense control with drops have in common.

Axes: B tokens given (images, or patches), G groups, T tokens of a group, E experts, K choices,
`*` payload of a token ([D], or [H, W, D] for a feature map).
"""

import dataclasses
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from moe_vision.common.streams import LayerStream
from moe_vision.config import registry
from moe_vision.layers.exchange import over_groups
from moe_vision.routing import telemetry
from moe_vision.routing.capacity import capacity
from moe_vision.routing.interventions import Intervention
from moe_vision.routing.plan import IndexPlan, index_plan
from moe_vision.routing.routers.soft import Soft
from moe_vision.routing.soft_plan import SoftPlan, soft_plan
from moe_vision.routing.types import Context, Router, Routing, SoftRouting, expect

Array = jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Step:
    """What every layer of a network may know about the step.

    `key` derives from (seed, step). Without a key, anything that draws at random raises an error.
    Routers that are taught read `labels`. With `num_classes`, which evaluation sets, layers also
    count the choices of each class.
    """

    valid: Array | None = None  # [B] bool; None: all are real
    key: Array | None = None
    fraction: Array | float = 0.0  # of training done
    labels: Array | None = None  # [B] int32
    start: Array | int = 0  # place of the first token in the whole pass; groups are numbered by it
    extras: dict[str, Array] = dataclasses.field(default_factory=dict)  # [B] each, for routers
    intervention: Intervention | None = None  # changes routes after they are made
    settled: Array | None = None  # bool scalar; True: routers are frozen; None: False
    train: bool = dataclasses.field(default=False, metadata={'static': True})
    num_classes: int = dataclasses.field(default=0, metadata={'static': True})

    @classmethod
    def example(cls, images: int, **fields: Any) -> 'Step':
        """A step for tracing a network: it has all that data can tell routers, as zeros."""
        return cls(extras={'domain': jnp.zeros(images, jnp.int32)}, **fields)


@dataclasses.dataclass(frozen=True)
class Routed:
    """What `route_groups` returns. `info` turns it into the report of a layer."""

    y: Any  # [B, *], what `on_groups` returned
    choices: dict[str, Array]  # [B, K] each, as in `choices_of`
    carry: Any  # for the next routed layer, with a leading B
    losses: dict[str, Array]  # [G] each, not weighted
    counts: dict[str, Array]  # [G, ...] each, as in `routing.telemetry.count`

    def info(self, weights: Mapping[str, float]) -> dict[str, Any]:
        """'losses' {name: weighted mean over the groups with at least one valid token};
        'telemetry' {name: sum over groups}; 'choices'; 'carry'."""
        occupied = (self.counts['tokens'] > 0).astype(jnp.float32)

        def mean(per_group):
            return jnp.sum(per_group * occupied) / jnp.maximum(occupied.sum(), 1.0)

        return {
            'losses': {name: weights[name] * mean(value) for name, value in self.losses.items()},
            'telemetry': {name: value.sum(0) for name, value in self.counts.items()},
            'choices': self.choices,
            'carry': self.carry,
        }


def route_groups(
    layer: nn.Module,
    on_groups: Callable,
    step: Step,
    tokens: int,
    *,
    x: Array | None = None,
    shared: Any = (),
    bank: dict[str, Array] | None = None,
    losses: Mapping[str, float] | None = None,
    carry: Any = None,
    extras: dict[str, Array] | None = None,
) -> Routed:
    """Runs `on_groups` on the devices where the groups lie; adds losses and counts of its routes.

    Args:
      layer: its attributes num_experts, group_size, mesh and layer are read.
      on_groups: (context, x [G, T, *], shared, bank) -> (y [G, T, *], routing, plan). It gets the
        groups of one device and that device's part of the bank.
      step: this step.
      tokens: B.
      x: [B, *]; None if `on_groups` reads no tokens.
      shared: arrays that every group reads whole.
      bank: parameters of all experts, each with a leading E.
      losses: name -> weight; those with weight zero are not computed.
      carry, extras: what the router may read besides, as in `Context`, each with a leading B.

    Raises:
      ValueError: group_size does not divide the number of tokens, or something draws at random and
        `step` has no key.
    """
    size = layer.group_size
    if tokens % size:
        raise ValueError(f'{tokens} tokens do not make groups of {size}')
    loss_fns = {
        name: registry.load(registry.entry('loss', registry.LOSSES, name).path)
        for name, weight in (losses or {}).items()
        if weight
    }
    key = jax.random.key(0) if step.key is None and layer.is_initializing() else step.key
    key = None if key is None else jax.random.fold_in(key, layer.layer)

    def on_device(replicated, bank, group, rows):
        shared, key, fraction, settled = replicated
        x, valid, labels, carry, extras = rows
        context = Context(
            valid=valid,
            key=key,
            group=group,
            fraction=fraction,
            carry=carry,
            extras=extras,
            labels=labels,
            settled=settled,
            train=step.train,
        )
        y, routing, plan = on_groups(context, x, shared, bank)
        values = {name: fn(routing, context, layer.num_experts) for name, fn in loss_fns.items()}
        for name, value in values.items():
            one_per_group = (len(context.valid),)
            expect(f"loss '{name}'", value, one_per_group, 'float32', 'one value per group, [G]')
        counts = telemetry.count(routing, plan, context)
        if labels is not None and step.num_classes:
            counts['by_class'] = telemetry.by_class(routing, labels, context, step.num_classes)
        return y, (choices_of(routing, plan), routing.carry), (values, counts)

    valid = jnp.ones(tokens, bool) if step.valid is None else step.valid
    y, (choices, carry), (values, counts) = over_groups(on_device, layer.mesh, tokens, size)(
        (shared, key, jnp.asarray(step.fraction, jnp.float32), step.settled),
        bank or {},
        step.start // size + jnp.arange(tokens // size),
        (x, valid, step.labels, carry, {**step.extras, **(extras or {})}),
    )
    return Routed(y, choices, carry, values, counts)


def make_plan(
    layer: nn.Module, routing: Routing | SoftRouting, context: Context
) -> IndexPlan | SoftPlan:
    """The plan of a routing, with the capacity and the priority that the layer's attributes say."""
    if isinstance(routing, SoftRouting):
        return soft_plan(routing, context.valid)
    factor = layer.capacity_factor if context.train else layer.eval_capacity_factor
    slots = capacity(factor, layer.k, layer.group_size, layer.num_experts, layer.capacity_multiple)
    keys = context.keys(LayerStream.PRIORITY) if layer.priority == 'random' else None
    return index_plan(routing, layer.num_experts, slots, layer.priority, keys)


def slots_per_token(layer: Any, router: Router) -> Fraction:
    """Slots of all experts that training computes, full or empty, per token of a group.

    Of soft routing: E if every expert sees every token, else E * P / T.

    Args:
      layer: its attributes num_experts, k, group_size, capacity_factor and capacity_multiple are
        read: an `MoE`, or the config's `model.moe`.
    """
    if isinstance(router, Soft):
        tokens = 1 if router.args.axis == 'none' else layer.group_size
        return Fraction(layer.num_experts * router.slots, tokens)
    factor, multiple = layer.capacity_factor, layer.capacity_multiple
    slots = capacity(factor, layer.k, layer.group_size, layer.num_experts, multiple)
    return Fraction(layer.num_experts * slots, layer.group_size)


def choices_of(routing: Routing | SoftRouting, plan: IndexPlan | SoftPlan) -> dict[str, Array]:
    """Per token and choice, [G, T, K]: the expert, its gate, and whether it was kept."""
    if isinstance(routing, SoftRouting):
        gate = routing.combine.sum(-1)
        ids = jnp.broadcast_to(jnp.arange(gate.shape[-1], dtype=jnp.int32), gate.shape)
        return {'expert': ids, 'gate': gate, 'kept': jnp.ones(gate.shape, bool)}
    assert isinstance(plan, IndexPlan)
    return {'expert': plan.expert_of_choice, 'gate': plan.gate, 'kept': plan.keep}
