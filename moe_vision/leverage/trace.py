"""Counts FLOPs, parameters and bytes of a config from its traced program; nothing runs.

Axes: B images of the traced batch, t tokens of an image, * the shape of a token.
"""

import dataclasses
import math
import typing
from collections import Counter, defaultdict
from fractions import Fraction
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from input_pipeline import DatasetInfo
from moe_vision import models
from moe_vision.check import own as own_methods
from moe_vision.common import flops
from moe_vision.common.errors import UserError
from moe_vision.common.paths import path_name
from moe_vision.config import registry, routing_rules, schema
from moe_vision.config.placement import HEADS
from moe_vision.config.schema import Config, Model
from moe_vision.layers import ExpertBank, MoE, Step
from moe_vision.layers.moe import make_router
from moe_vision.layers.route import slots_of, slots_per_token
from moe_vision.leverage.types import Block, Capacity, Leverage, Twin
from moe_vision.models.places import expert_flops
from moe_vision.routing.capacity import effective_factor

_MARK = '@'  # begins the scope that holds a module's path


@dataclasses.dataclass(frozen=True)
class _Layer:
    """A routed layer as the network calls it."""

    module: MoE
    tokens: jax.ShapeDtypeStruct  # [B*t, *]

    @property
    def soft(self) -> bool:
        return _soft(self.module.router)

    @property
    def choices(self) -> Fraction:
        """Experts that a token takes here."""
        moe = self.module
        router = make_router(moe.router, moe.router_args, moe.place)
        return Fraction(moe.num_experts) if self.soft else router.choices(slots_of(moe, True))

    @property
    def slots(self) -> Fraction:
        """Slots of all experts in the traced batch."""
        moe = self.module
        router = make_router(moe.router, moe.router_args, moe.place)
        return slots_per_token(moe, router) * self.tokens.shape[0]

    @property
    def flops(self) -> tuple[int, ...]:
        """FLOPs of each true expert on a token, by id; () where all are alike."""
        parts = self.module.make_experts(self.tokens.shape[-1]).parts(self.module.num_experts)
        costs = [expert_flops(expert, self.tokens.shape[1:]) for expert, _ in parts]
        return tuple(costs[kind] for kind in self.module.place.kinds)


@dataclasses.dataclass(frozen=True)
class _Traced:
    """What one trace of a network shows."""

    counts: flops.Counts  # FLOPs of the traced batch
    params: dict[str, jax.ShapeDtypeStruct]  # by path
    layers: dict[str, _Layer]  # by path
    banks: dict[str, Fraction]  # path of an expert bank -> share of its experts that a token takes


def measure(config: Config, info: DatasetInfo) -> Leverage:
    """Traces the network and its same_width twin, and adds up what each block costs.

    Raises:
      UserError: a method of the user's own returns something else than it must.
    """
    model = config.model
    own_methods.check(model, info.image_shape, info.num_classes)
    places = model.moe.placement != 'none'
    images = trace_images(config, tokens_per_image(config, info))
    own = _trace(model, info, images)
    twin = _trace(dataclasses.replace(model, twin='same_width'), info, images) if places else own
    layers = own.layers
    if places and model.twin != 'none':  # a twin's places are its network's routed layers
        layers = _trace(dataclasses.replace(model, twin='none'), info, images).layers
    cost, twin_cost = by_block(own.counts, layers), by_block(twin.counts, layers)
    params, twin_params = _params(own, layers), _params(twin, layers)
    capacities = {n: _capacity(x, x.tokens.shape[0] // images) for n, x in own.layers.items()}
    blocks = []

    def per_image(n: int | Fraction) -> int:
        return round(Fraction(n) / images)

    for name in dict.fromkeys([*cost, *params]):
        parts, weights, replaced = cost[name], params[name], sum(twin_cost[name].values())
        needed = Fraction(1)  # share of the executed expert FLOPs that k experts need
        slots = Fraction(0)  # of all experts in the traced batch
        layer = own.layers.get(name)
        if layer is not None:
            slots = layer.slots
            if not layer.soft:
                c, e = capacities[name], layer.module.num_experts
                needed = layer.choices * c.group_size / (e * c.capacity)
        rest = sum(n for kind, n in parts.items() if kind != 'experts')
        blocks.append(
            Block(
                name=name,
                routed=name in layers,
                params=weights['params'],
                params_active=weights['params'] - round(weights['idle params']),
                params_twin=twin_params[name]['params'],
                flops_twin=per_image(replaced),
                flops=per_image(rest + needed * parts['experts']),
                flops_executed=per_image(rest + parts['experts']),
                flops_router=per_image(parts['router']),
                flops_dispatch=per_image(parts['dispatch']) if name in own.layers else 0,
                flops_experts=per_image(needed * parts['experts']),
                flops_experts_executed=per_image(parts['experts']),
                bytes=weights['bytes'],
                bytes_active=weights['bytes'] - round(weights['idle bytes']),
                bytes_experts=weights['bytes of experts'],
                bytes_buffers=per_image(2 * slots * _token_bytes(layers[name].tokens))
                if slots
                else 0,
                bytes_token=_token_bytes(layers[name].tokens) if name in layers else 0,
            )
        )
    return Leverage(tuple(blocks), capacities)


def twins(config: Config, info: DatasetInfo) -> tuple[Twin, ...]:
    """Traces a dense twin of each kind, in the order of `schema.Model.twin`; none without places.

    A kind that the config's router does not allow has the reason in `refused`.
    """
    if config.model.moe.placement == 'none':
        return ()
    images = trace_images(config, tokens_per_image(config, info))
    result = []
    for name in typing.get_args(typing.get_type_hints(schema.Model)['twin']):
        if name == 'none':
            continue
        drops = (0.0, 0.0) if name == 'same_measured_drops' else ()  # they cost nothing
        model = dataclasses.replace(config.model, twin=name, measured_drops=drops)
        try:
            routing_rules.check(dataclasses.replace(config, model=model))
            traced = _trace(model, info, images)
        except UserError as e:
            result.append(Twin(name, refused=str(e)))
            continue
        result.append(
            Twin(
                name,
                round(Fraction(flops.total(traced.counts), images)),
                sum(math.prod(x.shape) for x in traced.params.values()),
            )
        )
    return tuple(result)


def tokens_per_image(config: Config, info: DatasetInfo) -> int:
    """Patches of an image if the backbone routes patches, else 1."""
    entry = registry.entry('backbone', registry.BACKBONES, config.model.name)
    if entry.unit != 'patch':
        return 1
    return config.model.args.tokens(*info.image_shape[:2])


def trace_images(config: Config, tokens: int) -> int:
    """The smallest number of images whose tokens fill whole routing groups."""
    moe = config.model.moe
    if moe.placement == 'none':
        return 1
    if moe.placement in HEADS:
        return moe.group_size
    return math.lcm(moe.group_size, tokens) // tokens


def _capacity(layer: _Layer, tokens: int) -> Capacity:
    moe = layer.module
    if layer.soft:
        none = (0, math.nan, 0, math.nan)
        own = (float(layer.choices), False, layer.flops)
        return Capacity(tokens, moe.group_size, *none, *own)
    slots = [slots_of(moe, train) for train in (True, False)]
    effective = [effective_factor(c, moe.k, moe.group_size, moe.num_experts) for c in slots]
    own = (float(layer.choices), not registry.keeps_capacity(moe.router), layer.flops)
    return Capacity(tokens, moe.group_size, slots[0], effective[0], slots[1], effective[1], *own)


def soft(model: Model) -> bool:
    """Whether the router mixes tokens instead of choosing experts, so that k means nothing."""
    return _soft(model.moe.router)


def _soft(router: str) -> bool:
    return 'k' in registry.entry('router', registry.ROUTERS, router).ignores


def _trace(model: Model, info: DatasetInfo, images: int) -> _Traced:
    net, x = _network(model, info, images)
    watch, key = _Watch(), jax.random.key(0)
    step = Step.example(images, train=True, key=key, labels=jnp.zeros(images, jnp.int32))
    variables: dict[str, Any] = {}

    def initial(x):
        with nn.intercept_methods(watch), nn.intercept_methods(mark):
            (logits, _), made = net.init_with_output(key, x, step)
        variables.update(jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), made))
        return logits

    def forward(variables, x):
        with nn.intercept_methods(mark):
            return net.apply(variables, x, step, mutable=['batch_stats'])[0][0]

    counts = flops.count(initial, x)
    if own_methods.own(model):  # whose initial values may take products
        counts = flops.count(forward, variables, x)
    params = {
        path_name(p): leaf for p, leaf in jax.tree_util.tree_leaves_with_path(variables['params'])
    }
    return _Traced(counts, params, watch.layers, watch.banks())


def mark(call, args, kwargs, context):
    """Puts a scope with the module's path around its methods, for `by_block`.

    Flax names a scope after the module, and names it again where a method calls another one of the
    same module, as `super().__call__` does. So these names are no path.
    """
    with jax.named_scope(_MARK + '/'.join(context.module.path)):
        return call(*args, **kwargs)


class _Watch:
    """An interceptor of Flax methods that notes routed layers and expert banks."""

    def __init__(self) -> None:
        self.layers: dict[str, _Layer] = {}  # by path
        self._running: list[str] = []  # routed layers that are being called
        self._takers: dict[str, set[str]] = defaultdict(set)  # path of a bank -> its layers
        self._sizes: dict[str, int] = {}  # path of a bank -> its experts

    def __call__(self, call, args, kwargs, context):
        module, path = context.module, '/'.join(context.module.path)
        if context.method_name != '__call__' or not isinstance(module, MoE | ExpertBank):
            return call(*args, **kwargs)
        if isinstance(module, ExpertBank):
            self._sizes[path] = module.num_experts
            self._takers[path].update(self._running[-1:])
            return call(*args, **kwargs)
        if (shared := kwargs.get('shared')) and shared.bank_path:
            self._takers[shared.bank_path].add(path)
        tokens = args[0] if args else kwargs['x']
        self.layers[path] = _Layer(module, jax.ShapeDtypeStruct(tokens.shape, tokens.dtype))
        self._running.append(path)
        try:
            return call(*args, **kwargs)
        finally:
            self._running.pop()

    def banks(self) -> dict[str, Fraction]:
        """The share of each bank's experts that a token takes, in all layers that share the bank.

        That is at most the sum of their choices, and at most all experts. A bank in no routed layer
        runs whole.
        """
        shares = {}
        for path, size in self._sizes.items():
            layers = [self.layers[name] for name in self._takers[path]]
            taken = sum((x.choices for x in layers), Fraction(0)) / size
            shares[path] = min(taken, Fraction(1)) if layers else Fraction(1)
        return shares


def _network(model: Model, info: DatasetInfo, images: int):
    """The module and its input as a shape. Leaves out routing losses, which are for training alone,
    and rematerialisation, which repeats products in the backward pass."""
    model = dataclasses.replace(model, remat=False, moe=dataclasses.replace(model.moe, losses={}))
    x = jax.ShapeDtypeStruct((images, *info.image_shape), jnp.float32)
    return models.build(model, info.num_classes), x


def by_block(counts: flops.Counts, layers: dict) -> dict[str, Counter[str]]:
    """Block -> FLOPs of the traced batch by kind: 'experts', 'router', 'dispatch' or 'rest'."""
    out: dict[str, Counter[str]] = defaultdict(Counter)
    for scope, number in counts.items():
        last = max((i for i, name in enumerate(scope) if name.startswith(_MARK)), default=-1)
        path = scope[last].removeprefix(_MARK) if last >= 0 else ''
        block, inside = _block(tuple(path.split('/')) if path else (), layers)
        inside += scope[last + 1 :]
        kind = 'rest'
        if block in layers:
            kind = next((k for k in ('experts', 'router') if k in inside), 'dispatch')
        out[block][kind] += number
    return out


def _params(traced: _Traced, layers: dict) -> dict[str, Counter[str]]:
    """Block -> 'params', 'bytes'; each also 'of experts', and 'idle': of experts not taken."""
    out: dict[str, Counter[str]] = defaultdict(Counter)
    for path, leaf in traced.params.items():
        block = _block(tuple(path.split('/')), layers)[0]
        taken = next((t for bank, t in traced.banks.items() if path.startswith(f'{bank}/')), None)
        number = math.prod(leaf.shape)
        for kind, size in (('params', number), ('bytes', number * leaf.dtype.itemsize)):
            out[block][kind] += size
            if taken is not None:
                out[block][f'{kind} of experts'] += size
                out[block][f'idle {kind}'] += (1 - taken) * size
    return out


def _block(path: tuple[str, ...], layers: dict) -> tuple[str, tuple[str, ...]]:
    """The block that a path lies in, a routed layer or a top module, and the rest of the path."""
    for layer in layers:
        parts = tuple(layer.split('/'))
        if path[: len(parts)] == parts:
            return layer, path[len(parts) :]
    return path[0] if path else '(network)', path[1:]


def _token_bytes(tokens: jax.ShapeDtypeStruct) -> int:
    """Bytes of one token of `tokens` [B*t, *]."""
    return math.prod(tokens.shape[1:]) * tokens.dtype.itemsize
