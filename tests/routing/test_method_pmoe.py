"""pMoE against its equations: experts choose patches within an image.

Axes: G images, T patches, E experts, L patches of an expert, D width, F output width.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from routing_cases import context, experts, jit, normal

from configs import base
from moe_vision.common.errors import UserError
from moe_vision.common.place import Place
from moe_vision.config import check as config_lib
from moe_vision.layers.moe import make_router
from moe_vision.routing.plan import index_plan

G, T, E, L, D, F = 3, 8, 4, 3, 5, 2
ROUTER = make_router('pmoe', {'normalize_inputs': False}, Place(E, 1, T))


@jit
def run(kernel, x, weights, valid):
    ctx = dataclasses.replace(context(valid, groups=G, tokens=T), capacity=L)
    routing = ROUTER({'kernel': kernel}, {}, x, ctx)
    plan = index_plan(routing, E, L)
    return routing, plan, plan.apply(x, experts(weights))


def test_each_expert_takes_its_best_patches_of_each_image():
    kernel, x = normal(0, D, E), normal(1, G, T, D)
    weights = normal(2, E, D, F), normal(3, E, 1, F)
    _, plan, y = run(kernel, x, weights, jnp.ones((G, T), bool))
    assert plan.filled.all()  # exactly L of each image
    want = np.zeros((G, T, F))
    for g in range(G):
        for e in range(E):
            score = np.asarray(x[g] @ kernel)[:, e]
            best = np.argsort(-score, kind='stable')[:L]
            gate = np.exp(score[best]) / np.exp(score[best]).sum()
            for t, weight in zip(best, gate, strict=True):
                want[g, t] += weight * (np.tanh(x[g, t] @ weights[0][e]) + weights[1][e, 0])
    np.testing.assert_allclose(y, want, rtol=1e-4, atol=1e-5)
    others = run(kernel, x.at[1:].set(7.0), weights, jnp.ones((G, T), bool))[2]
    np.testing.assert_array_equal(others[0], y[0])  # of other images, nothing


def test_by_hand():
    # 4 patches with scores 1, 0, -1, 5 for expert 0; it takes 3. e^5 + e^1 + e^0 = 152.13.
    scores = jnp.asarray([1.0, 0.0, -1.0, 5.0, 9.0, 9.0, 9.0, 9.0])
    x = jnp.zeros((G, T, D)).at[:, :, 0].set(scores)
    valid = jnp.broadcast_to(jnp.arange(T) < 4, (G, T)).at[2].set(False)  # and an empty image
    kernel = jnp.zeros((D, E)).at[0, 0].set(1.0)
    routing, plan, _ = run(kernel, x, (normal(2, E, D, F), normal(3, E, 1, F)), valid)
    of_0 = np.where(routing.active & (routing.expert_of_choice == 0), routing.gate, 0).sum(-1)
    np.testing.assert_allclose(of_0[0, :4], [0.017868, 0.006573, 0, 0.975559], atol=1e-5)
    # the others see equal scores and take the first three, with a gate of a third each
    np.testing.assert_allclose(routing.gate[0, 2], [1 / 3, 1 / 3, 1 / 3, 0], atol=1e-6)
    assert not np.asarray(plan.filled)[:, 2].any() and np.isfinite(routing.gate).all()


VIT = {
    'model.name': 'vit',
    'model.args': {'width': 8, 'depth': 1, 'heads': 2, 'patch_size': 4},
    'model.moe.router': 'pmoe',
    'model.moe.router_args': {},
    'model.moe.losses': {},
    'dataset.image_size': 8,
}


def test_a_group_is_one_image():
    def config(**changes):
        c = base.get_config()
        c.update_from_flattened_dict(VIT | changes)
        return config_lib.check(c)

    config(**{'model.moe.group_size': 4})
    with pytest.raises(UserError, match="router is 'pmoe', within one image of 4 tokens.* to 4"):
        config(**{'model.moe.group_size': 8})
    with pytest.raises(UserError, match="router is 'pmoe', which needs patches.*'head'"):
        config(**{'model.moe.group_size': 4, 'model.moe.placement': 'head'})
