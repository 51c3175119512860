"""Backbones, dense or routed at the places a config names. `registry.BACKBONES` lists them."""

import flax.linen as nn
from jax.sharding import Mesh

from moe_vision.config import registry
from moe_vision.config.schema import Model


def build(model: Model, num_classes: int, mesh: Mesh | None = None) -> nn.Module:
    """The network of a config. Its routed layers are laid over the devices of `mesh`."""
    entry = registry.entry('backbone', registry.BACKBONES, model.name)
    return registry.load(entry.path)(model=model, num_classes=num_classes, mesh=mesh)
