"""Small backbones for the tests. Axes: B images, HW space."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import routing_cases

from moe_vision import models
from moe_vision.config import registry
from moe_vision.config.placement import HEADS
from moe_vision.config.schema import Model, Moe
from moe_vision.layers import Step

jit = routing_cases.jit
TRAIN = Step(train=True, key=jax.random.key(5), fraction=0.5)
CLASSES, IMAGE, B = 5, (8, 8, 3), 4

# Two blocks each. A backbone that is missing here runs with its defaults.
SMALL = {
    'conv': {'widths': (8, 16), 'depth': 1},
    'depthwise': {'widths': (8, 16), 'depth': 1, 'expansion': 2},
    'resnet': {'widths': (32,), 'depths': (3,)},
    'convnext': {'widths': (8, 16), 'depths': (1, 1)},
    'vit': {'width': 16, 'depth': 2, 'heads': 2, 'patch_size': 4},
}


def config(
    name, placement='every_2', twin='none', dtype='float32', args=None, measured_drops=(), **moe
):
    """A `Model`; `moe` overrides routing settings, `args` those of the backbone."""
    entry = registry.entry('backbone', registry.BACKBONES, name)
    expert = moe.pop('expert', 'mlp' if placement in HEADS else entry.expert)
    expert_args = registry.entry('expert', registry.EXPERTS, expert).args()
    if hasattr(expert_args, 'norm_groups'):
        expert_args = dataclasses.replace(expert_args, norm_groups=4)
    router = moe.get('router', 'top_k')
    routing = Moe(
        **{
            'placement': placement,
            'router': router,
            'num_experts': 3,
            'k': 2,
            'router_args': registry.entry('router', registry.ROUTERS, router).args(),
            'capacity_factor': 1.25,
            'eval_capacity_factor': 2.0,
            'capacity_multiple': 1,
            'group_size': 2,
            'priority': 'token',
            'expert': expert,
            'expert_args': expert_args,
            'hidden': 0,
            'losses': {'importance': 0.1},
        }
        | moe
    )
    return Model(
        name=name,
        args=entry.args(**SMALL.get(name, {}) | (args or {})),
        dtype=dtype,
        remat=False,
        twin=twin,
        measured_drops=measured_drops,
        moe=routing,
    )


def build(*args, **kwargs):
    return models.build(config(*args, **kwargs), CLASSES)


def images(seed=0, count=B):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(count, *IMAGE)), jnp.float32)


def abstract(net):
    """Shapes of all variables."""
    return jax.eval_shape(lambda x: net.init(jax.random.key(0), x, TRAIN), images())


def filled(net):
    """Variables with drawn values, which are quicker to make than initial ones."""

    def draw(path, leaf):
        rng = np.random.default_rng(len(str(path)))
        values = rng.normal(size=leaf.shape) * max(np.prod(leaf.shape[:-1]), 1) ** -0.5
        name = path[-1].key
        values = np.asarray(values + (name in ('scale', 'var')), leaf.dtype)
        return jnp.asarray(values)  # converted by jax it would be a program for each shape

    return jax.tree_util.tree_map_with_path(draw, abstract(net))


def paths(tree):
    return {
        '/'.join(k.key for k in path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
