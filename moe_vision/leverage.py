"""What a config computes: FLOPs by block, parameters and leverages, from traced programs.

FLOPs are per image, forward, in training: 2 per multiply-accumulate, products and
convolutions only. `flops` is what k active experts need; `flops_executed` what the padded buffers
run.
"""

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from input_pipeline import DatasetInfo
from moe_vision import flops, models, registry
from moe_vision.layers import Step
from moe_vision.layers.moe import make_router
from moe_vision.optimizer import path_name
from moe_vision.routing.capacity import capacity, effective_factor
from moe_vision.settings import Config, Model


@dataclasses.dataclass(frozen=True)
class Block:
    """One block of the network. FLOPs per image."""

    name: str
    params: int
    params_active: int  # of k experts
    flops_twin: int  # of the same place in the same_width twin
    flops: int  # with k active experts
    flops_executed: int  # with the padded buffers
    flops_router: int  # of the router and dispatch alone, part of both
    flops_experts: int  # of k active experts, part of `flops`
    flops_experts_executed: int
    routed: bool


@dataclasses.dataclass(frozen=True)
class Capacity:
    """Static sizes of one routed layer."""

    tokens_per_image: int
    group_size: int
    capacity: int  # in training; 0 for soft routing
    effective_factor: float  # of `capacity`
    eval_capacity: int
    eval_effective_factor: float


@dataclasses.dataclass(frozen=True)
class Leverage:
    """Compute and parameters of a config, with the leverages that follow."""

    blocks: tuple[Block, ...]
    capacities: dict[str, Capacity]

    def _sum(self, field: str) -> int:
        return sum(getattr(b, field) for b in self.blocks)

    @property
    def params_total(self) -> int:
        return self._sum('params')

    @property
    def params_active(self) -> int:
        return self._sum('params_active')

    @property
    def flops(self) -> int:
        return self._sum('flops')

    @property
    def flops_executed(self) -> int:
        return self._sum('flops_executed')

    @property
    def rho_place(self) -> float:
        """Share of the same_width twin's FLOPs that stands at routed places. Free of k."""
        return sum(b.flops_twin for b in self.blocks if b.routed) / self._sum('flops_twin')

    @property
    def rho_active(self) -> float:
        return self._sum('flops_experts') / self.flops

    @property
    def rho_executed(self) -> float:
        return self._sum('flops_experts_executed') / self.flops_executed

    def rho_active_at(self, choices_per_token: float, k: float) -> float:
        """rho_active where tokens took this many experts on average instead of k."""
        experts = self._sum('flops_experts')
        measured = experts * choices_per_token / k
        return measured / (self.flops - experts + measured)


def measure(config: Config, info: DatasetInfo) -> Leverage:
    """Traces the network and its same_width twin; runs nothing."""
    model = config.model
    images = trace_images(config, tokens_per_image(config, info))
    routed_net = model.twin == 'none' and model.moe.placement != 'none'
    twin = dataclasses.replace(model, twin='same_width') if model.moe.placement != 'none' else model
    of_twin = _by_block(_counts(twin, info, images), images)
    of_net = _by_block(_counts(model, info, images), images)
    shapes = _param_shapes(model, info, images)
    replaced = set()
    if model.moe.placement != 'none':
        replaced = set(_by_path(_param_shapes(dataclasses.replace(model, twin='none'), info,
                                              images), 'router'))
    active = choices_per_token(model)
    blocks = []
    for name in _order(shapes, of_net):
        params = sum(math.prod(s) for p, s in shapes.items() if _block(p) == name)
        bank = sum(math.prod(s) for p, s in shapes.items()
                   if _block(p) == name and '/experts/' in f'/{p}')
        cost = of_net.get(name, {})
        executed = sum(cost.values())
        in_experts = cost.get('experts', 0)
        routed = routed_net and name in replaced
        experts = in_experts
        if routed and not soft(model):
            layer = _capacity(config, info, name)
            per_slot = in_experts / (model.moe.num_experts * layer.capacity)
            experts = round(per_slot * layer.group_size * active)
        e = model.moe.num_experts
        share = 1.0 if soft(model) else min(active / e, 1.0)
        blocks.append(Block(
            name=name, params=params, params_active=params - round(bank * (1 - share)),
            flops_twin=sum(of_twin.get(name, {}).values()),
            flops=executed - in_experts + experts, flops_executed=executed,
            flops_router=executed - in_experts if routed else 0,
            flops_experts=experts if routed else 0,
            flops_experts_executed=in_experts if routed else 0, routed=name in replaced))
    capacities = {b.name: _capacity(config, info, b.name)
                  for b in blocks if b.routed and routed_net}
    return Leverage(tuple(blocks), capacities)


def tokens_per_image(config: Config, info: DatasetInfo) -> int:
    """Patches of an image where patches are routed, else 1."""
    entry = registry.entry('backbone', registry.BACKBONES, config.model.name)
    if entry.unit != 'patch':
        return 1
    return config.model.args.tokens(*info.image_shape[:2])


def trace_images(config: Config, tokens: int) -> int:
    """The smallest batch that makes whole routing groups."""
    moe = config.model.moe
    if moe.placement == 'none':
        return 1
    if moe.placement == 'head':
        return moe.group_size
    return math.lcm(moe.group_size, tokens) // tokens


def _capacity(config: Config, info: DatasetInfo, name: str) -> Capacity:
    moe = config.model.moe
    tokens = 1 if name.split('/')[0] == 'head' else tokens_per_image(config, info)
    if soft(config.model):
        return Capacity(tokens, moe.group_size, 0, math.nan, 0, math.nan)
    slots = [capacity(f, moe.k, moe.group_size, moe.num_experts, moe.capacity_multiple)
             for f in (moe.capacity_factor, moe.eval_capacity_factor)]
    effective = [effective_factor(c, moe.k, moe.group_size, moe.num_experts) for c in slots]
    return Capacity(tokens, moe.group_size, slots[0], effective[0], slots[1], effective[1])


def choices_per_token(model: Model) -> float:
    """Experts a token takes: k, or its expectation under balance where null experts share."""
    router = make_router(model.moe.router, model.moe.router_args, model.moe.num_experts,
                         model.moe.k)
    return model.moe.k * model.moe.num_experts / router.num_ids


def soft(model: Model) -> bool:
    """True where the router mixes tokens instead of choosing experts: k means nothing to it."""
    return 'k' in registry.entry('router', registry.ROUTERS, model.moe.router).ignores


def _traced(model: Model, info: DatasetInfo, images: int) -> tuple[nn.Module, Any, Any]:
    """The network, its variables and its input, as shapes."""
    net = models.build(model, info.num_classes)
    x = jax.ShapeDtypeStruct((images, *info.image_shape), jnp.float32)
    variables = jax.eval_shape(lambda k, x: net.init(k, x, Step()), jax.random.key(0), x)
    return net, variables, x


def _counts(model: Model, info: DatasetInfo, images: int) -> flops.Counts:
    net, variables, x = _traced(model, info, images)

    def forward(variables, x, key):
        return net.apply(variables, x, Step(train=True, key=key), mutable=['batch_stats'])[0][0]

    return flops.count(forward, variables, x, jax.random.key(0))


def _param_shapes(model: Model, info: DatasetInfo, images: int) -> dict[str, tuple[int, ...]]:
    _, variables, _ = _traced(model, info, images)
    return {path_name(p): leaf.shape
            for p, leaf in jax.tree_util.tree_leaves_with_path(variables['params'])}


def _block(path: str) -> str:
    return path.split('/', 1)[0]


def _by_path(shapes: dict[str, Any], part: str) -> list[str]:
    """Blocks that have this part among their parameters, or experts (routers may have none)."""
    return [_block(p) for p in shapes if f'/{part}/' in p or '/experts/' in p]


def _by_block(counts: flops.Counts, images: int) -> dict[str, dict[str, int]]:
    """FLOPs per image: block -> {'experts': ..., 'rest': ...}."""
    out: dict[str, dict[str, int]] = {}
    for scope, number in counts.items():
        block = scope[1] if len(scope) > 1 else '(network)'
        part = 'experts' if 'experts' in scope[2:] else 'rest'
        parts = out.setdefault(block, {})
        parts[part] = parts.get(part, 0) + number
    return {b: {p: _per_image(n, images) for p, n in parts.items()} for b, parts in out.items()}


def _per_image(number: int, images: int) -> int:
    return number // images if number % images == 0 else round(number / images)


def _order(shapes: dict[str, Any], counts: dict[str, Any]) -> list[str]:
    """Blocks in the order in which the program meets them; those without products last."""
    names = list(counts)
    return names + [b for b in dict.fromkeys(_block(p) for p in shapes) if b not in names]
