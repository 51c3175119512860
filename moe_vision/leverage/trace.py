"""Counts FLOPs, parameters and bytes of a config from its traced program; nothing runs.

Axes: B images of the traced batch, t tokens of an image, * the shape of a token.
"""

import dataclasses
import math
import typing
from collections import Counter, defaultdict
from fractions import Fraction

import flax.linen as nn
import jax
import jax.numpy as jnp

from input_pipeline import DatasetInfo
from moe_vision import models
from moe_vision.common import flops
from moe_vision.common.errors import UserError
from moe_vision.common.paths import path_name
from moe_vision.config import registry, routing_rules, schema
from moe_vision.config.schema import Config, Model
from moe_vision.layers import MoE, Step
from moe_vision.leverage.types import Block, Capacity, Leverage, Twin
from moe_vision.models.places import choices_per_token
from moe_vision.routing.capacity import capacity, effective_factor


@dataclasses.dataclass(frozen=True)
class _Traced:
    """What one trace of a network shows."""

    counts: flops.Counts  # FLOPs of the traced batch
    params: dict[str, jax.ShapeDtypeStruct]  # by path
    layers: dict[str, jax.ShapeDtypeStruct]  # path of a routed layer -> its tokens, [B*t, *]


def measure(config: Config, info: DatasetInfo) -> Leverage:
    """Traces the network and its same_width twin, and adds up what each block costs."""
    model = config.model
    places = model.moe.placement != 'none'
    images = trace_images(config, tokens_per_image(config, info))
    own = _trace(model, info, images)
    twin = _trace(dataclasses.replace(model, twin='same_width'), info, images) if places else own
    layers = own.layers
    if places and model.twin != 'none':  # a twin's places are its network's routed layers
        layers = _shapes(dataclasses.replace(model, twin='none'), info, images)[1]
    cost, twin_cost = _by_block(own.counts, layers), _by_block(twin.counts, layers)
    params, twin_params = _params(own.params, layers), _params(twin.params, layers)
    capacities = {n: _capacity(config, x.shape[0] // images) for n, x in own.layers.items()}
    blocks = []

    def per_image(n: int | Fraction) -> int:
        return round(Fraction(n) / images)

    for name in dict.fromkeys([*cost, *params]):
        parts, weights, replaced = cost[name], params[name], sum(twin_cost[name].values())
        needed = Fraction(1)  # share of the executed expert FLOPs that k experts need
        taken = Fraction(1)  # share of the experts that a token takes
        slots = Fraction(0)  # of all experts in the traced batch
        if name in own.layers:
            slots = Fraction(parts['experts'] * layers[name].shape[0], replaced or 1)
            if not soft(model):
                c, e = capacities[name], model.moe.num_experts
                needed = choices_per_token(model.moe) * c.group_size / (e * c.capacity)
                taken = min(choices_per_token(model.moe) / e, Fraction(1))
        rest = sum(n for kind, n in parts.items() if kind != 'experts')
        active = {
            kind: weights[kind] - round((1 - taken) * weights[f'{kind} of experts'])
            for kind in ('params', 'bytes')
        }
        blocks.append(
            Block(
                name=name,
                routed=name in layers,
                params=weights['params'],
                params_active=active['params'],
                params_twin=twin_params[name]['params'],
                flops_twin=per_image(replaced),
                flops=per_image(rest + needed * parts['experts']),
                flops_executed=per_image(rest + parts['experts']),
                flops_router=per_image(parts['router']),
                flops_dispatch=per_image(parts['dispatch']) if name in own.layers else 0,
                flops_experts=per_image(needed * parts['experts']),
                flops_experts_executed=per_image(parts['experts']),
                bytes=weights['bytes'],
                bytes_active=active['bytes'],
                bytes_experts=weights['bytes of experts'],
                bytes_buffers=per_image(2 * slots * _token_bytes(layers[name])) if slots else 0,
                bytes_token=_token_bytes(layers[name]) if name in layers else 0,
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
        except UserError as e:
            result.append(Twin(name, refused=str(e)))
            continue
        traced = _trace(model, info, images)
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
    if moe.placement in schema.HEADS:
        return moe.group_size
    return math.lcm(moe.group_size, tokens) // tokens


def _capacity(config: Config, tokens: int) -> Capacity:
    moe = config.model.moe
    if soft(config.model):
        return Capacity(tokens, moe.group_size, 0, math.nan, 0, math.nan)
    slots = [
        capacity(f, moe.k, moe.group_size, moe.num_experts, moe.capacity_multiple)
        for f in (moe.capacity_factor, moe.eval_capacity_factor)
    ]
    effective = [effective_factor(c, moe.k, moe.group_size, moe.num_experts) for c in slots]
    return Capacity(tokens, moe.group_size, slots[0], effective[0], slots[1], effective[1])


def soft(model: Model) -> bool:
    """Whether the router mixes tokens instead of choosing experts, so that k means nothing."""
    return 'k' in registry.entry('router', registry.ROUTERS, model.moe.router).ignores


def _trace(model: Model, info: DatasetInfo, images: int) -> _Traced:
    net, x = _network(model, info, images)
    variables, layers = _shapes(model, info, images)

    def forward(variables, x, key):
        step = Step.example(images, train=True, key=key, labels=jnp.zeros(images, jnp.int32))
        return net.apply(variables, x, step, mutable=['batch_stats'])[0][0]

    counts = flops.count(forward, variables, x, jax.random.key(0))
    params = {
        path_name(p): leaf for p, leaf in jax.tree_util.tree_leaves_with_path(variables['params'])
    }
    return _Traced(counts, params, layers)


def _shapes(model: Model, info: DatasetInfo, images: int):
    """Shapes of the network's variables and of the tokens that enter each routed layer."""
    net, x = _network(model, info, images)
    layers: dict[str, jax.ShapeDtypeStruct] = {}

    def note_tokens(call, args, kwargs, context):
        if isinstance(context.module, MoE) and context.method_name == '__call__':
            tokens = args[0]
            layers['/'.join(context.module.path)] = jax.ShapeDtypeStruct(tokens.shape, tokens.dtype)
        return call(*args, **kwargs)

    with nn.intercept_methods(note_tokens):
        variables = jax.eval_shape(
            lambda k, x: net.init(k, x, Step.example(images)), jax.random.key(0), x
        )
    return variables, layers


def _network(model: Model, info: DatasetInfo, images: int):
    """The module and its input as a shape. Leaves out routing losses, which have no products, and
    rematerialisation, which repeats products in the backward pass."""
    model = dataclasses.replace(model, remat=False, moe=dataclasses.replace(model.moe, losses={}))
    x = jax.ShapeDtypeStruct((images, *info.image_shape), jnp.float32)
    return models.build(model, info.num_classes), x


def _by_block(counts: flops.Counts, layers: dict) -> dict[str, Counter[str]]:
    """Block -> FLOPs of the traced batch by kind: 'experts', 'router', 'dispatch' or 'rest'."""
    out: dict[str, Counter[str]] = defaultdict(Counter)
    for scope, number in counts.items():
        block, inside = _block(scope[1:], layers)
        kind = 'rest'
        if block in layers:
            kind = next((k for k in ('experts', 'router') if k in inside), 'dispatch')
        out[block][kind] += number
    return out


def _params(params: dict[str, jax.ShapeDtypeStruct], layers: dict) -> dict[str, Counter[str]]:
    """Block -> sizes: 'params', 'bytes', 'params of experts', 'bytes of experts'."""
    out: dict[str, Counter[str]] = defaultdict(Counter)
    for path, leaf in params.items():
        block, inside = _block(tuple(path.split('/')), layers)
        number = math.prod(leaf.shape)
        for kind, size in (('params', number), ('bytes', number * leaf.dtype.itemsize)):
            out[block][kind] += size
            if block in layers and 'experts' in inside:
                out[block][f'{kind} of experts'] += size
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
