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
from moe_vision.config.places import moe_at, place_at
from moe_vision.config.schema import DROPPING, Model
from moe_vision.layers import DenseBlock, DroppingBlock, MoE, Step
from moe_vision.layers.moe import make_expert
from moe_vision.models.places import expert_at, twin_expert

Array = jax.Array


class Infos:
    """What routed layers report, by the layer's path, in order, and the carry of their routers."""

    def __init__(self, carry: Any = None) -> None:
        self.by_layer: dict[str, dict[str, Any]] = {}
        self.carry = carry


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
    """Runs what stands at a routed place, and the shared expert beside it, if there is one.

    The shared expert is a module of its own, `{name}_shared`. It runs on every token, in the routed
    network and in its twins alike, so it is no part of what is routed.

    Args:
      net: the backbone; its scope gets the modules.
      name: of the branch.
      layer: number of routed layers before this one.
      x: tokens [B, *, D].
      hidden: F of the block that is replaced.
      tokens_per_image: patches of an image where patches are routed.
      extras: what the backbone tells the router about tokens, each with a leading B.

    Returns:
      the branch [B, *, D].
    """
    branch = make_branch(
        net.model,
        net.mesh,
        name=name,
        width=x.shape[-1],
        hidden=hidden,
        payload=x.shape[1:],
        layer=layer,
        tokens_per_image=tokens_per_image,
    )
    y = run_branch(branch, x, step, infos, extras)
    moe = moe_at(net.model, layer)
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
            hidden=expert_at(moe, width, hidden).hidden,
            router=moe.router,
            router_args=moe.router_args,
            expert=moe.expert,
            expert_args=moe.expert_args,
            losses=moe.losses,
            loss_args=moe.loss_args,
            layers=place.layers,
            tokens_per_image=tokens_per_image,
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
) -> Array:
    """Runs a branch on tokens x [B, *, D]; a routed layer's report goes to `infos`."""
    if isinstance(branch, DenseBlock):
        return branch(x)
    if not isinstance(branch, MoE | DroppingBlock):
        return branch(x, step)
    more = {'extras': extras} if extras and isinstance(branch, MoE) else {}
    y, info = branch(x, step, carry=infos.carry, **more)
    infos.carry = info.pop('carry')
    infos.by_layer['/'.join(branch.path)] = info
    return y


def needs(model: Model) -> tuple[str, ...]:
    """What the router of a network needs besides features; () for a network that routes nothing."""
    if model.twin != 'none' or model.moe.placement == 'none':
        return ()
    return registry.entry('router', registry.ROUTERS, model.moe.router).needs


def with_images(model: Model, step: Step, images: Array) -> Step:
    """The step with the images [B, H, W, C], as the network gets them, if the router needs them."""
    return dataclasses.replace(step, images=images) if 'image' in needs(model) else step


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
    )
