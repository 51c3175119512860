"""What a config computes: FLOPs by block, parameters and leverages, from traced programs.

FLOPs are per image, forward, in training: 2 per multiply-accumulate, products and
convolutions only. `flops` is what k active experts need; `flops_executed` what the padded buffers
run.
"""

import dataclasses
import math
from collections import Counter
from fractions import Fraction
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

    def rho_active_at(self, choices_per_token: float, k: Fraction) -> float:
        """rho_active where tokens took this many experts on average instead of k."""
        experts = self._sum('flops_experts')
        measured = experts * choices_per_token / float(k)
        return measured / (self.flops - experts + measured)


def measure(config: Config, info: DatasetInfo) -> Leverage:
    """Traces the network and its same_width twin; runs nothing."""
    model = config.model
    places = model.moe.placement != 'none'
    of = lambda twin: dataclasses.replace(model, twin=twin if places else 'none')  # noqa: E731
    images = trace_images(config, tokens_per_image(config, info))
    in_twin = _by_block(_counts(of('same_width'), info, images))
    cost = _by_block(_counts(model, info, images))
    shapes = _param_shapes(model, info, images)
    replaced = {path.split('/')[0] for path in _param_shapes(of('none'), info, images)
                if '/experts/' in path}
    capacities = {name: _capacity(config, info, name) for name in cost
                  if name in replaced and model.twin == 'none'}
    blocks: list[Block] = []
    for name in [*cost, *dict.fromkeys(path.split('/')[0] for path in shapes)]:
        if name in [b.name for b in blocks]:
            continue
        parts = cost.get(name, Counter())
        routed = name in capacities
        used = Fraction(1)  # of the executed expert FLOPs, what k experts need
        share = Fraction(1)  # of the experts, those that a token takes
        if routed and not soft(model):
            c, e = capacities[name], model.moe.num_experts
            used = choices_per_token(model) * c.group_size / (e * c.capacity)
            share = min(choices_per_token(model) / e, Fraction(1))
        own = {path: math.prod(x) for path, x in shapes.items() if path.split('/')[0] == name}
        bank = sum(n for path, n in own.items() if '/experts/' in path)
        per_image = lambda n: round(Fraction(n) / images)  # noqa: E731
        blocks.append(Block(
            name=name, params=sum(own.values()),
            params_active=sum(own.values()) - bank + round(share * bank),
            flops_twin=per_image(sum(in_twin.get(name, Counter()).values())),
            flops=per_image(parts['rest'] + used * parts['experts']),
            flops_executed=per_image(parts['rest'] + parts['experts']),
            flops_router=per_image(parts['rest']) if routed else 0,
            flops_experts=per_image(used * parts['experts']) if routed else 0,
            flops_experts_executed=per_image(parts['experts']) if routed else 0,
            routed=name in replaced))
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


def choices_per_token(model: Model) -> Fraction:
    """Experts a token takes: k, or its expectation under balance where null experts share."""
    router = make_router(model.moe.router, model.moe.router_args, model.moe.num_experts,
                         model.moe.k)
    return Fraction(model.moe.k * model.moe.num_experts, router.num_ids)


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


def _by_block(counts: flops.Counts) -> dict[str, Counter[str]]:
    """FLOPs of the traced batch: block -> {'experts': ..., 'rest': ...}, in program order."""
    out: dict[str, Counter[str]] = {}
    for scope, number in counts.items():
        block = scope[1] if len(scope) > 1 else '(network)'
        out.setdefault(block, Counter())['experts' if 'experts' in scope[2:] else 'rest'] += number
    return out
