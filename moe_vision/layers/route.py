"""Routing in groups: what the routed layer and its dense control with drops have in common.

Axes: B tokens given (images, or patches), G groups, T tokens of a group, E experts, K choices,
`*` payload of a token ([D], or [H, W, D] for a feature map).
"""

import dataclasses
import zlib
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from moe_vision.common.errors import UserError
from moe_vision.common.place import Place
from moe_vision.common.streams import LayerStream
from moe_vision.config import registry
from moe_vision.layers.exchange import over_groups
from moe_vision.routing import telemetry
from moe_vision.routing.capacity import capacity
from moe_vision.routing.interventions import Intervention, Path
from moe_vision.routing.plan import IndexPlan, index_plan
from moe_vision.routing.router import Router
from moe_vision.routing.soft_plan import SoftPlan, soft_plan
from moe_vision.routing.types import Context, Routing, SoftRouting, expect

Array = jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Step:
    """What every layer of a network may know about the step.

    `key` derives from (seed, step). Without a key, anything that draws at random raises an error.
    Routers that are taught read `labels`, in training alone. With `num_classes`, which evaluation
    sets, layers also count the choices of each class.
    """

    valid: Array | None = None  # [B] bool; None: all are real
    key: Array | None = None
    fraction: Array | float = 0.0  # of training done
    labels: Array | None = None  # [B] int32
    start: Array | int = 0  # place of the first token in the whole pass; groups are numbered by it
    extras: dict[str, Array] = dataclasses.field(default_factory=dict)  # [B, ...], for routers
    images: Array | None = None  # [images, H, W, C], for `Router.pool` where it needs them
    intervention: Intervention | Path | None = None  # changes routes after they are made
    # bool scalars by a routed layer's path, '' for all layers not named; True: a router is frozen
    settled: dict[str, Array] = dataclasses.field(default_factory=dict)
    # other parameters of routers, by whoever asks and by path ('' for what layers share): layers
    # report how many tokens these would send elsewhere
    compared: dict[str, dict[str, dict[str, Array]]] = dataclasses.field(default_factory=dict)
    train: bool = dataclasses.field(default=False, metadata={'static': True})
    num_classes: int = dataclasses.field(default=0, metadata={'static': True})
    # tokens in a row that are of one image and have its label
    patches: int = dataclasses.field(default=1, metadata={'static': True})

    def settled_at(self, path: str) -> Array | None:
        """Whether the router of the layer with this path is frozen, a bool scalar; None: no."""
        return self.settled.get(path, self.settled.get(''))

    def compared_at(self, path: str, params: dict[str, Array]) -> dict[str, dict[str, Array]]:
        """Parameters to compare with those of the router of the layer with this path."""
        return {
            name: params | given.get('', {}) | given.get(path, {})
            for name, given in self.compared.items()
        }

    @classmethod
    def example(cls, images: int, **fields: Any) -> 'Step':
        """A step for tracing a network: it has all that data can tell routers, as zeros."""
        return cls(extras={'domain': jnp.zeros(images, jnp.int32)}, **fields)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Static:
    """A value that goes along with arrays through a program and is none of them."""

    value: Any


@dataclasses.dataclass(frozen=True)
class Routed:
    """What `route_groups` returns. `info` turns it into the report of a layer."""

    y: Any  # [B, *], what `on_groups` returned
    choices: dict[str, Array]  # [B, K] each, as in `choices_of`
    carry: Any  # for the next routed layer, with a leading B
    losses: dict[str, Array]  # [G] each, not weighted
    counts: dict[str, Array]  # [G, ...] each, as in `routing.telemetry.count`
    observed: dict[str, Array]  # [G, ...] each, what the router observed in training
    changed: dict[str, Array]  # [G] each, tokens that `Step.compared` would send elsewhere

    def info(self, weights: Mapping[str, float], place: Place) -> dict[str, Any]:
        """'losses' {name: weighted mean over the groups with at least one valid token};
        'telemetry', 'observed' and 'changed' {name: sum over groups}; 'choices'; 'carry';
        'place'."""
        occupied = (self.counts['tokens'] > 0).astype(jnp.float32)

        def mean(per_group):
            return jnp.sum(per_group * occupied) / jnp.maximum(occupied.sum(), 1.0)

        return {
            'losses': {name: weights[name] * mean(value) for name, value in self.losses.items()},
            'telemetry': {name: value.sum(0) for name, value in self.counts.items()},
            'observed': {name: value.sum(0) for name, value in self.observed.items()},
            'changed': {name: value.sum(0) for name, value in self.changed.items()},
            'choices': self.choices,
            'carry': self.carry,
            'place': Static(place),
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
    loss_args: Mapping[str, Any] | None = None,
    router: Router | None = None,
    features: Any = None,
    carry: Any = None,
    extras: dict[str, Array] | None = None,
) -> Routed:
    """Runs `on_groups` on the devices where the groups lie; adds losses and counts of its routes.

    Args:
      layer: its attributes group_size, mesh, layer and those that `slots_of` reads.
      on_groups: (context, x [G, T, *], features, shared, bank) -> (y [G, T, *], routing, plan,
        view for losses, `Routed.changed`). It gets the groups of one device and that device's part
        of the bank.
      step: this step.
      tokens: B.
      x: [B, *]; None if `on_groups` reads no tokens.
      shared: arrays that every group reads whole.
      bank: parameters of all experts, each with a leading E.
      losses: losses of a group, name -> weight; those with weight zero are not computed.
      loss_args: name -> the arguments of a loss.
      router: what observes the routes in training, if anything does.
      features: a tree of what `on_groups` gets, [B, *] each, such as features that were pooled.
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
        x, features, valid, labels, carry, extras = rows
        context = Context(
            valid=valid,
            key=key,
            group=group,
            fraction=fraction,
            carry=carry,
            extras=extras,
            labels=labels if step.train else None,
            capacity=slots_of(layer, step.train),
            settled=settled,
            train=step.train,
        )
        y, routing, plan, view, changed = on_groups(context, x, features, shared, bank)
        values = {}
        for name, fn in loss_fns.items():
            own = dataclasses.replace(view, args=(loss_args or {}).get(name))
            draws = dataclasses.replace(context, key=loss_key(context.key, name))
            values[name] = fn(routing, draws, own)
            one_per_group = context.valid.shape[:1]
            expect(
                f"loss '{name}'", values[name], one_per_group, 'float32', 'one value per group, [G]'
            )
        counts = telemetry.count(routing, plan, context)
        if labels is not None and step.num_classes:
            counts['by_class'] = telemetry.by_class(
                routing, labels, context, step.num_classes, step.patches
            )
        seen = {}
        if router is not None and step.train:
            reads = view.bank is not None and 'bank' in router.needs
            seen = observed(router, routing, context.with_view(view, reads))
        return y, (choices_of(routing, plan), routing.carry), (values, counts, seen, changed)

    valid = jnp.ones(tokens, bool) if step.valid is None else step.valid
    settled = step.settled_at('/'.join(layer.path))
    y, (choices, carry), per_group = over_groups(on_device, layer.mesh, tokens, size)(
        (shared, key, jnp.asarray(step.fraction, jnp.float32), settled),
        bank or {},
        step.start // size + jnp.arange(tokens // size),
        (x, features, valid, step.labels, carry, {**step.extras, **(extras or {})}),
    )
    return Routed(y, choices, carry, *per_group)


def loss_key(key: Array | None, name: str) -> Array | None:
    """What a loss draws from, given the layer's key: it draws for itself, whatever others there
    are."""
    if key is None:
        return None
    return jax.random.fold_in(
        jax.random.fold_in(key, LayerStream.LOSSES), zlib.crc32(name.encode())
    )


def observed(router: Router, routing: Routing | SoftRouting, context: Context) -> dict[str, Array]:
    """What a router observes, checked: [G, ...] each."""
    what, seen = f'{type(router).__name__}.observe', router.observe(routing, context)
    if not isinstance(seen, dict):
        given = type(seen).__name__
        raise UserError(f'{what} returned a {given}; expected a dict of arrays [G, ...].')
    for name, value in seen.items():
        shape = (context.valid.shape[0], *getattr(value, 'shape', ())[1:])
        expect(f"{what}: '{name}'", value, shape, 'float32', '[G, ...]')
        if name in ('chosen', 'tokens'):
            raise UserError(f"{what} returned '{name}', which update_state gets anyway; rename it.")
    return seen


def elsewhere(
    routing: Routing | SoftRouting, other: Routing | SoftRouting, context: Context
) -> Array:
    """How many tokens of a group have another most probable expert in another routing, [G]."""
    first, then = (jnp.argmax(r.probs, -1) for r in (routing, other))
    return (context.valid & (first != then)).sum(-1).astype(jnp.float32)


def slots_of(layer: Any, train: bool) -> int:
    """C, slots per expert and group in training or in evaluation.

    Args:
      layer: its attributes num_experts, k, group_size, capacity_multiple, router and the two
        capacity factors are read: an `MoE`, or the config's `moe_at`. A router whose routes follow
        from capacity has that of training in evaluation.
    """
    as_trained = train or registry.keeps_capacity(layer.router)
    factor = layer.capacity_factor if as_trained else layer.eval_capacity_factor
    return capacity(factor, layer.k, layer.group_size, layer.num_experts, layer.capacity_multiple)


def make_plan(
    layer: nn.Module, routing: Routing | SoftRouting, context: Context
) -> IndexPlan | SoftPlan:
    """The plan of a routing, with the capacity and the priority that the layer's attributes say."""
    if isinstance(routing, SoftRouting):
        return soft_plan(routing, context.valid)
    keys = context.keys(LayerStream.PRIORITY) if layer.priority == 'random' else None
    return index_plan(routing, layer.num_experts, context.capacity, layer.priority, keys)


def slots_per_token(layer: Any, router: Router) -> Fraction:
    """Slots of all experts that training computes, full or empty, per token of a group.

    Args:
      layer: as in `slots_of`.
    """
    return router.room(slots_of(layer, train=True))


def choices_of(routing: Routing | SoftRouting, plan: IndexPlan | SoftPlan) -> dict[str, Array]:
    """Per token and choice, [G, T, K]: the expert, its gate, and whether it was kept."""
    if isinstance(routing, SoftRouting):
        gate = routing.combine.sum(-1)
        ids = jnp.broadcast_to(jnp.arange(gate.shape[-1], dtype=jnp.int32), gate.shape)
        return {'expert': ids, 'gate': gate, 'kept': jnp.ones(gate.shape, bool)}
    assert isinstance(plan, IndexPlan)
    return {'expert': plan.expert_of_choice, 'gate': plan.gate, 'kept': plan.keep}
