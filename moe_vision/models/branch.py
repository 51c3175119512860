"""What stands at a replaced place: the routed layer, or the dense block of a twin."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.sharding import Mesh

from moe_vision.config.schema import Model
from moe_vision.layers import DenseBlock, DroppingBlock, MoE, Step
from moe_vision.models.places import expert_at, twin_expert


class Infos:
    """What routed layers report, by path of the layer, in order; threads the routers' carry."""

    def __init__(self, carry: Any = None) -> None:
        self.by_layer: dict[str, dict[str, Any]] = {}
        self.carry = carry


def make_branch(model: Model, mesh: Mesh | None, *, name: str, width: int, hidden: int,
                payload: tuple[int, ...], layer: int) -> MoE | DenseBlock | DroppingBlock:
    """The Linen module for one replaced place, called `name`.

    Args:
      width, hidden: D and F of the block that is replaced.
      payload: shape of one token.
      layer: number of routed layers before this one.
    """
    moe = model.moe
    of = lambda module, *but: {  # noqa: E731
        f.name: getattr(moe, f.name) for f in dataclasses.fields(module)
        if hasattr(moe, f.name) and f.name not in but}
    if model.twin != 'none':
        dense = twin_expert(moe, model.twin, width, hidden, payload)
        if model.twin == 'same_drops':
            return DroppingBlock(**of(DroppingBlock, 'expert'), expert=dense, mesh=mesh,
                                 layer=layer, name=name)
        return DenseBlock(dense, name=name)
    return MoE(**of(MoE, 'hidden'), hidden=expert_at(moe, width, hidden).hidden, mesh=mesh,
               layer=layer, name=name)


def run_branch(branch: nn.Module, x, step: Step, infos: Infos):
    """Runs it on tokens x [B, *, D]; a routed layer's report goes to `infos`."""
    if isinstance(branch, DenseBlock):
        return branch(x)
    y, info = branch(x, step, carry=infos.carry)
    infos.carry = info.pop('carry')
    infos.by_layer['/'.join(branch.path)] = info
    return y


def per_patch(step: Step, patches: int) -> Step:
    """The step as patches see it: what is known of an image holds for each of its patches."""
    repeat = lambda v: None if v is None else jnp.repeat(v, patches)  # noqa: E731
    return dataclasses.replace(step, valid=repeat(step.valid), labels=repeat(step.labels),
                               start=step.start * patches)
