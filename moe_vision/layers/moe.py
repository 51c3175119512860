"""The routed layer as a Linen module: parameters and state here, arithmetic in `routing`.

Axes: B tokens given (images, or patches), G groups, T tokens of a group, E experts, K choices,
D width, `*` payload of a token ([D], or [H, W, D] for a feature map).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh as DeviceMesh

from moe_vision.config import registry
from moe_vision.layers.exchange import over_groups, run_plan, spans
from moe_vision.layers.experts import Expert
from moe_vision.routing import telemetry
from moe_vision.routing.capacity import capacity
from moe_vision.routing.interventions import Intervention
from moe_vision.routing.plan import index_plan
from moe_vision.routing.soft_plan import soft_plan
from moe_vision.routing.types import Context, Router, Routing, SoftRouting

Array = jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Step:
    """What every layer of a network is told about the step.

    `key` derives from (seed, step); without one, what draws at random refuses to run. `labels` are
    read by routers that are taught; with `num_classes` (in evaluation) layers also count choices by
    class.
    """

    valid: Array | None = None  # [B] bool; None: all are real
    key: Array | None = None
    fraction: Array | float = 0.0  # of training done
    labels: Array | None = None  # [B] int32
    start: Array | int = 0  # place of the first token in the whole pass; groups are numbered by it
    intervention: Intervention | None = None  # changes routes after they are made
    train: bool = dataclasses.field(default=False, metadata={'static': True})
    num_classes: int = dataclasses.field(default=0, metadata={'static': True})


class ExpertBank(nn.Module):
    """E independent experts: each parameter stacked with leading axis E."""

    expert: Expert
    num_experts: int

    @nn.compact
    def __call__(self) -> dict[str, Array]:
        def stacked(init):
            def draw(key, shape):
                keys = jax.vmap(lambda e: jax.random.fold_in(key, e))(jnp.arange(self.num_experts))
                return jax.vmap(lambda k: init(k, shape))(keys)
            return draw
        return {name: self.param(name, stacked(init), shape)
                for name, (shape, init) in self.expert.shapes().items()}


class DenseBlock(nn.Module):
    """One expert on every token: the block an expert copies."""

    expert: Expert

    @nn.compact
    def __call__(self, x: Array) -> Array:
        params = {name: self.param(name, init, shape)
                  for name, (shape, init) in self.expert.shapes().items()}
        return self.expert.apply(params, x)


class RouterVariables(nn.Module):
    """What a router learns ('params') and keeps ('router_state')."""

    router: Router
    width: int

    @nn.compact
    def __call__(self) -> tuple[dict[str, Array], dict[str, Array]]:
        params = {name: self.param(name, init, shape)
                  for name, (shape, init) in self.router.params(self.width).items()}
        state = {name: self.variable('router_state', name, lambda v=value: v).value
                 for name, value in self.router.init_state().items()}
        return params, state


class MoE(nn.Module):
    """A routed block: each token goes to k of E experts with room for a static number of tokens.

    Returns the residual branch: add it to the input, so that a token without expert keeps its
    features.

    Attributes:
      num_experts, k: E and K.
      group_size: T, tokens that share capacity; must divide the number of tokens given.
      hidden: hidden width of one expert.
      router, expert: names in the tables, or 'module:Class'; `*_args` a dict or their Args.
      capacity_factor, eval_capacity_factor: slots per expert in training and evaluation;
        `float('inf')` is room for all.
      priority: 'token', 'gate' or 'random': who gets the slots first.
      losses: name -> weight.
      mesh: ('data', 'expert') mesh, or None on one device.
      layer: index of this routed layer, for random keys.
      bank: an expert bank shared with other layers; None makes one named 'experts'. Only banks of
        that name are laid over the mesh.
    """

    num_experts: int
    k: int
    group_size: int
    hidden: int
    router: str = 'top_k'
    router_args: Any = None
    expert: str = 'mlp'
    expert_args: Any = None
    capacity_factor: float = 1.25
    eval_capacity_factor: float = 2.0
    capacity_multiple: int = 1
    priority: str = 'token'
    losses: Mapping[str, float] | None = None
    mesh: DeviceMesh | None = None
    layer: int = 0
    bank: ExpertBank | None = None

    @nn.compact
    def __call__(self, x: Array, step: Step | None = None, *, carry: Any = None,
                 extras: dict[str, Array] | None = None) -> tuple[Array, dict[str, Any]]:
        """x [B, *, D] to (branch [B, *, D], info).

        info: 'losses' {name: weighted scalar}; 'telemetry' sums as in `routing.telemetry.count`;
        'choices' per token, [B, K]: 'expert', 'gate', 'kept'; 'carry' for the next routed layer.

        Raises:
          ValueError: group_size does not divide the number of tokens, or something draws at
            random and `step` has no key.
        """
        step = step or Step()
        tokens, t, e = x.shape[0], self.group_size, self.num_experts
        if tokens % t:
            raise ValueError(f'{tokens} tokens do not make groups of {t}')
        across = self.mesh is not None and spans(tokens, t, self.mesh.shape)
        router = make_router(self.router, self.router_args, e, self.k)
        expert = make_expert(self.expert, self.expert_args, x.shape[-1], self.hidden)
        bank = self.bank or ExpertBank(expert, e, name='experts')
        params, state = RouterVariables(router, x.shape[-1], name='router')()
        factor = self.capacity_factor if step.train else self.eval_capacity_factor
        slots = capacity(factor, self.k, t, e, self.capacity_multiple)
        weights = dict(self.losses or {})
        loss_fns = {n: registry.load(registry.entry('loss', registry.LOSSES, n).path)
                    for n, w in weights.items() if w}
        key = jax.random.key(0) if step.key is None and self.is_initializing() else step.key
        key = None if key is None else jax.random.fold_in(key, self.layer)

        def on_groups(shared, bank_params, group, rows):
            router_params, router_state, key, fraction, intervention = shared
            x, valid, labels, carry, extras = rows
            context = Context(valid=valid, key=key, group=group, fraction=fraction, carry=carry,
                              extras=extras, labels=labels, train=step.train)
            # A token is routed by its mean over space (the vector itself where it has none).
            features = x.astype(jnp.float32).mean(tuple(range(2, x.ndim - 1)))
            with jax.named_scope('router'):
                routing = router(router_params, router_state, features, context)
            if intervention is not None:
                routing = intervention(routing, context, self.layer, e)
            soft = isinstance(routing, SoftRouting)
            plan = soft_plan(routing, valid) if soft else index_plan(
                routing, e, slots, self.priority,
                context.keys(9) if self.priority == 'random' else None)
            y = run_plan(plan, x, expert, bank_params, self.mesh, across, step.train)
            losses = {n: fn(routing, context, e) for n, fn in loss_fns.items()}
            counts = telemetry.count(routing, plan, context)
            if labels is not None and step.num_classes:
                counts['by_class'] = telemetry.by_class(routing, labels, context, step.num_classes)
            return y, (choices_of(routing, plan), routing.carry), (losses, counts)

        valid = jnp.ones(tokens, bool) if step.valid is None else step.valid
        shared = (params, state, key, jnp.asarray(step.fraction, jnp.float32),
                  jax.tree.map(jnp.asarray, step.intervention))
        y, (choices, carry), (losses, counts) = over_groups(on_groups, self.mesh, tokens, t)(
            shared, bank(), step.start // t + jnp.arange(tokens // t),
            (x, valid, step.labels, carry, extras or {}))

        real = (counts['tokens'] > 0).astype(jnp.float32)
        mean = lambda v: jnp.sum(v * real) / jnp.maximum(real.sum(), 1.0)  # noqa: E731
        info = {
            'losses': {n: weights[n] * mean(v) for n, v in losses.items()},
            'telemetry': {n: v.sum(0) for n, v in counts.items()},
            'choices': choices,
            'carry': carry,
        }
        return y, info


def make_router(name: str, args: Any, num_experts: int, k: int) -> Router:
    """The router that a table name and its arguments (a dict, its Args or None) describe."""
    entry = registry.entry('router', registry.ROUTERS, name)
    return registry.load(entry.path)(_args(entry, args), num_experts, k)


def make_expert(name: str, args: Any, width: int, hidden: int) -> Expert:
    """The expert that a table name and its arguments (a dict, its Args or None) describe."""
    entry = registry.entry('expert', registry.EXPERTS, name)
    return registry.load(entry.path)(_args(entry, args), width, hidden)


def _args(entry: registry.Entry, args: Any) -> Any:
    if args is None or isinstance(args, Mapping):
        return entry.args(**(args or {}))
    return args


def choices_of(routing: Routing | SoftRouting, plan: Any) -> dict[str, Array]:
    """Per token and choice, [G, T, K]: the expert, its gate, and whether it was kept."""
    if isinstance(routing, SoftRouting):
        gate = routing.combine.sum(-1)
        ids = jnp.broadcast_to(jnp.arange(gate.shape[-1], dtype=jnp.int32), gate.shape)
        return {'expert': ids, 'gate': gate, 'kept': jnp.ones(gate.shape, bool)}
    return {'expert': plan.expert_of_choice, 'gate': plan.gate, 'kept': plan.keep}
