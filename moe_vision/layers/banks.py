"""Modules that hold the parameters of experts: a bank of E, or one block that all tokens take.

Axes: E experts, B tokens, D width, `*` payload of a token.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from moe_vision.layers.experts import Expert
from moe_vision.routing.types import declared

Array = jax.Array


class ExpertBank(nn.Module):
    """The parameters of E experts, each with a leading axis E, or the number of experts of a kind.
    Experts are drawn independently."""

    expert: Expert
    num_experts: int

    @nn.compact
    def __call__(self) -> dict[str, Array]:
        def stacked(init, count):
            def draw(key, shape):
                keys = jax.vmap(lambda e: jax.random.fold_in(key, e))(jnp.arange(count))
                return jax.vmap(lambda k: init(k, shape))(keys)

            return draw

        for kind, _ in self.expert.parts(self.num_experts):
            declared(f'{type(kind).__name__}.shapes', kind.shapes())
        return {
            name: self.param(name, stacked(init, count), shape)
            for name, (count, shape, init) in self.expert.bank_shapes(self.num_experts).items()
        }


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Shared:
    """What several routed layers share. The network makes it before its blocks and hands it on,
    because a block that is computed again in the backward pass takes arrays, and no modules."""

    bank: dict[str, Array] | None = None  # the experts' parameters, each with a leading E
    bank_path: str = dataclasses.field(default='', metadata={'static': True})
    params: dict[str, Array] = dataclasses.field(default_factory=dict)  # of `Router.shared_params`
    state: dict[str, Array] = dataclasses.field(default_factory=dict)


class SharedBank(nn.Module):
    """Experts that several layers share, in a scope of their own."""

    expert: Expert
    num_experts: int

    @nn.compact
    def __call__(self) -> dict[str, Array]:
        return ExpertBank(self.expert, self.num_experts, name='experts')()


class DenseBlock(nn.Module):
    """One expert that runs on every token: the block that experts copy.

    With `branches` above 1 it is an ensemble: the mean of as many independent blocks.
    """

    expert: Expert
    branches: int = 1

    @nn.compact
    def __call__(self, x: Array) -> Array:
        if self.branches == 1:
            return self.expert.run(declare_params(self, self.expert), x)
        bank = ExpertBank(self.expert, self.branches, name='branches')()
        copies = jnp.broadcast_to(x, (self.branches, *x.shape))
        return self.expert.run_stacked(bank, copies).mean(0)


def declare_params(module: nn.Module, expert: Expert) -> dict[str, Array]:
    """Makes the parameters of one expert parameters of this module, and returns their values."""
    shapes = declared(f'{type(expert).__name__}.shapes', expert.shapes())
    return {name: module.param(name, init, shape) for name, (shape, init) in shapes.items()}
