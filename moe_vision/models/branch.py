"""What stands in a block's place: the block, a routed layer, or the dense block of a twin."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from moe_vision.config import registry
from moe_vision.config.placement import routed_blocks
from moe_vision.config.places import moe_at, place_at, pools, routed_layers
from moe_vision.config.schema import DROPPING, Model
from moe_vision.layers import DenseBlock, DroppingBlock, MoE, Shared, SharedBank, Step
from moe_vision.layers.moe import make_expert, make_router
from moe_vision.layers.router_variables import RouterVariables
from moe_vision.models.places import expert_at, twin_expert

Array = jax.Array


class Infos:
    """What routed layers report, by the layer's path, in order, and what they hand on.

    Attributes:
      carry: what the last layer's router left for the next one.
      shared: what layers share, by their number.
    """

    def __init__(self, carry: Any = None, shared: dict[int, Shared] | None = None) -> None:
        self.by_layer: dict[str, dict[str, Any]] = {}
        self.carry, self.shared = carry, shared or {}


def begin(net: nn.Module, step: Step, images: Array) -> tuple[Infos, Step]:
    """What a backbone begins with: arrays that its routed layers share, and a step that knows the
    images [B, H, W, C], as the network gets them, if the router needs them."""
    model = net.model
    if model.twin != 'none' or model.moe.placement == 'none':
        return Infos(), step
    if 'image' in needs(model):
        step = dataclasses.replace(step, images=images)
    moe, infos = model.moe, Infos()
    router = make_router(moe.router, moe.router_args, place_at(model, 0))
    if router.shared_params() or router.init_shared_state():
        params, state = RouterVariables(router, 0, name='router')()
        shared = Shared(params=params, state=state)
        infos.shared = dict.fromkeys(range(routed_layers(model)), shared)
    blocks = routed_blocks(moe.placement, getattr(model.args, 'blocks', None))
    for number, pool in enumerate(pools(model)):
        if len(pool) == 1:
            continue
        name = f'bank_{number}'
        expert = expert_at(moe_at(model, pool[0]), *model.args.block_shape(blocks[pool[0]]))
        bank = SharedBank(expert, moe_at(model, pool[0]).num_experts, name=name)()
        path = '/'.join((*net.path, name, 'experts'))
        for layer in pool:
            before = infos.shared.get(layer, Shared())
            infos.shared[layer] = dataclasses.replace(before, bank=bank, bank_path=path)
    return infos, step


def branch_at(
    net: nn.Module,
    number: int,
    x: Array,
    step: Step,
    infos: Infos,
    *,
    hidden: int,
    unrouted: Callable[..., nn.Module],
    tokens_per_image: int = 1,
    extras: dict[str, Array] | None = None,
) -> Array:
    """Runs the residual branch `block_{number}` of a backbone: routed where the config says so.

    Args:
      net: the backbone; its `model` and `mesh` are read, and its scope gets the branch.
      x: tokens [B, *, D].
      infos: gets what a routed layer reports.
      hidden: F of the block.
      unrouted: `unrouted(name=...)` makes the branch of a place that is not routed; it is called
        with (x, step), or with x alone if it is a `DenseBlock`.
      tokens_per_image, extras: as in `run_place`.

    Returns:
      the branch [B, *, D].
    """
    name, routed = f'block_{number}', routed_blocks(net.model.moe.placement, net.model.args.blocks)
    if number not in routed:
        return run_branch(unrouted(name=name), x, step, infos)
    return run_place(
        net,
        name,
        routed.index(number),
        x,
        step,
        infos,
        hidden=hidden,
        tokens_per_image=tokens_per_image,
        extras=extras,
    )


def run_place(
    net: nn.Module,
    name: str,
    layer: int,
    x: Array,
    step: Step,
    infos: Infos,
    *,
    hidden: int,
    tokens_per_image: int = 1,
    extras: dict[str, Array] | None = None,
) -> Array:
    """Runs what stands at a routed place, and what runs there on every token besides.

    With `model.moe.splits` the channels are cut into as many equal parts. Each is the token of a
    routed layer of its own, `{name}_split_{part}`, whose experts have that part of the block's
    width and hidden width (multi-head routing, Caccia et al. 2023).

    That is the shared expert beside it, a module of its own, `{name}_shared`, and what the experts
    of a routed layer share, `{layer's name}_before` and `{layer's name}_after`. They are in the
    routed network and in its twins alike, so they are no part of what is routed.

    Args:
      net: the backbone; its scope gets the modules.
      name: of the branch.
      layer: number of routed places before this one.
      x: tokens [B, *, D].
      hidden: F of the block that is replaced.
      tokens_per_image: patches of an image where patches are routed.
      extras: what the backbone tells the router about tokens, each with a leading B.

    Returns:
      the branch [B, *, D].
    """
    splits = net.model.moe.splits
    ways = infos.carry if splits > 1 and infos.carry is not None else (infos.carry,) * splits
    parts = [x] if splits == 1 else jnp.split(x, splits, -1)
    outputs, carries = [], []
    for part, (tokens, infos.carry) in enumerate(zip(parts, ways, strict=True)):
        number, own = layer * splits + part, name if splits == 1 else f'{name}_split_{part}'
        branch = make_branch(
            net.model,
            net.mesh,
            name=own,
            width=tokens.shape[-1],
            hidden=hidden // splits,
            payload=tokens.shape[1:],
            layer=number,
            tokens_per_image=tokens_per_image,
        )
        experts = expert_at(moe_at(net.model, number), tokens.shape[-1], hidden // splits)
        if experts.before is not None:
            tokens = DenseBlock(experts.before, name=f'{own}_before')(tokens)
        routed = run_branch(branch, tokens, step, infos, extras, infos.shared.get(number))
        if experts.after is not None:
            routed = DenseBlock(experts.after, name=f'{own}_after')(routed)
        outputs.append(routed)
        carries.append(infos.carry)
    y = outputs[0] if splits == 1 else jnp.concatenate(outputs, -1)
    infos.carry = carries[0] if splits == 1 else tuple(carries)
    moe = moe_at(net.model, layer * splits)
    if moe.shared_hidden:
        shared = make_expert(moe.expert, moe.expert_args, x.shape[-1], moe.shared_hidden)
        y = y + DenseBlock(shared, name=f'{name}_shared')(x)
    return y


def make_branch(
    model: Model,
    mesh: Mesh | None,
    *,
    name: str,
    width: int,
    hidden: int,
    payload: tuple[int, ...],
    layer: int,
    tokens_per_image: int = 1,
) -> MoE | DenseBlock | DroppingBlock:
    """The Linen module for one place that the config replaces, called `name`.

    Args:
      width, hidden: D and F of the block that is replaced.
      payload: shape of one token.
      layer: number of routed layers before this one.
      tokens_per_image: patches of an image where patches are routed.
    """
    moe = moe_at(model, layer)
    place = place_at(model, layer, tokens_per_image)
    routing: dict[str, Any] = {
        'num_experts': moe.num_experts,
        'k': moe.k,
        'group_size': moe.group_size,
        'capacity_factor': moe.capacity_factor,
        'eval_capacity_factor': moe.eval_capacity_factor,
        'capacity_multiple': moe.capacity_multiple,
        'priority': moe.priority,
        'mesh': mesh,
        'layer': layer,
        'name': name,
    }
    if model.twin == 'none':
        return MoE(
            hidden=moe.hidden or hidden,
            router=moe.router,
            router_args=moe.router_args,
            expert=moe.expert,
            expert_args=moe.expert_args,
            losses=moe.losses,
            loss_args=moe.loss_args,
            layers=place.layers,
            tokens_per_image=tokens_per_image,
            pool_layer=place.pool_layer,
            pool_layers=place.pool_layers,
            kinds=moe.kinds,
            **routing,
        )
    dense = twin_expert(moe, model.twin, place, width, hidden, payload)
    if model.twin in DROPPING:
        if model.twin == 'same_measured_drops':
            *training, evaluation = model.measured_drops
            bounded = math.isfinite(moe.eval_capacity_factor)
            routing['measured'] = (*training, evaluation if bounded else 0.0)
        return DroppingBlock(expert=dense, **routing)
    return DenseBlock(dense, moe.k if model.twin == 'ensemble' else 1, name=name)


def run_branch(
    branch: nn.Module,
    x: Array,
    step: Step,
    infos: Infos,
    extras: dict[str, Array] | None = None,
    shared: Shared | None = None,
) -> Array:
    """Runs a branch on tokens x [B, *, D]; a routed layer's report goes to `infos`."""
    if isinstance(branch, DenseBlock):
        return branch(x)
    if not isinstance(branch, MoE | DroppingBlock):
        return branch(x, step)
    if isinstance(branch, MoE):
        y, info = branch(x, step, carry=infos.carry, extras=extras, shared=shared)
    else:
        y, info = branch(x, step, carry=infos.carry)
    infos.carry = info.pop('carry')
    infos.by_layer['/'.join(branch.path)] = info
    return y


def needs(model: Model) -> tuple[str, ...]:
    """What the router of a network needs besides features; () for a network that routes nothing."""
    if model.twin != 'none' or model.moe.placement == 'none':
        return ()
    return registry.entry('router', registry.ROUTERS, model.moe.router).needs


def per_patch(step: Step, patches: int) -> Step:
    """The step for tokens that are patches: what is known of an image holds for its patches."""

    def repeat(of_images):
        return None if of_images is None else jnp.repeat(of_images, patches)

    return dataclasses.replace(
        step,
        valid=repeat(step.valid),
        labels=repeat(step.labels),
        extras={name: repeat(values) for name, values in step.extras.items()},
        start=step.start * patches,
        patches=patches,
    )
