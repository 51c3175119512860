"""Small routed layers for the tests. Axes: B tokens, E experts, D width, F hidden width."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import routing_cases

from moe_vision.common import platform
from moe_vision.config import registry
from moe_vision.layers import MoE, Step
from moe_vision.routing.router import Router
from moe_vision.routing.types import Routing

jit, normal = routing_cases.jit, routing_cases.normal
TRAIN = Step(train=True, key=jax.random.key(5))


def tokens(expert, count=8, width=8):
    """Tokens of the kind that this expert takes: vectors or maps."""
    is_map = 'map' in registry.entry('expert', registry.EXPERTS, expert).needs
    return normal(1, count, *((6, 5) if is_map else ()), width)


def made_for(kind, compute_capability=''):
    """`platform.made_for` devices of this kind, which need not be there."""
    device = types.SimpleNamespace(platform=kind, compute_capability=compute_capability)
    return platform.made_for(types.SimpleNamespace(devices=np.array([device])))


def expert_args(expert):
    """Arguments that fit a width of 8."""
    args = registry.entry('expert', registry.EXPERTS, expert).args
    return {'norm_groups': 4} if hasattr(args, 'norm_groups') else {}


def moe(num_experts=4, k=2, group_size=4, hidden=16, **kwargs):
    if 'expert' in kwargs:
        kwargs.setdefault('expert_args', expert_args(kwargs['expert']))
    return MoE(num_experts, k, group_size, hidden, **kwargs)


def init(layer, x, step=TRAIN, seed=0):
    """Variables with drawn values, which are quicker to make than initial ones."""

    def draw(path, leaf):
        rng = np.random.default_rng((seed, len(str(path))))
        values = rng.normal(size=leaf.shape) * max(leaf.shape[-2:-1] + (1,)) ** -0.5
        bias = path[-1].key.endswith('bias')
        return jnp.asarray(np.asarray(0.1 * values if bias else values, leaf.dtype))

    return jax.tree_util.tree_map_with_path(
        draw, jax.eval_shape(lambda x: layer.init(jax.random.key(0), x, step), x)
    )


class Counting(Router):
    """A user's own router, named by its path: sends every token to the expert that `carry` names.

    It passes the next number to the next layer.
    """

    def choose(self, params, state, features, context):
        start = jnp.zeros(features.shape[:2], jnp.int32) if context.carry is None else context.carry
        none = jnp.zeros((*features.shape[:2], self.num_experts))
        ids = (start % self.num_experts)[..., None]
        return Routing(
            probs=jax.nn.softmax(none),
            logits=none,
            expert_of_choice=ids,
            gate=jnp.ones(ids.shape),
            active=context.valid[..., None],
            carry=start + 1,
        )
