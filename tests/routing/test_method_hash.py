"""The hash of an image: from its pixels alone, about the mean of what training has seen.

Axes: I images, E experts, P side of a patch.
"""

import jax
import jax.numpy as jnp
import model_cases
import numpy as np
import pytest
from routing_cases import context, normal

from moe_vision import models
from moe_vision.common.errors import UserError
from moe_vision.common.place import Place
from moe_vision.layers.moe import make_router

E = 4
ROUTER = make_router('hash', {}, Place(E, 2))


def cells(image, side):
    """Means of squares of this side, row by row."""
    h, w = image.shape
    return image.reshape(h // side, side, w // side, side).mean((1, 3)).reshape(-1)


def test_cells_of_images_and_of_patches():
    images = normal(0, 2, 8, 8, 3)
    grey = np.asarray(images).mean(-1)

    def pooled(tokens):
        return np.asarray(ROUTER.pool({}, jnp.zeros((tokens, 5)), {'image': images}))

    whole = np.stack([cells(g, 2) for g in grey])
    np.testing.assert_allclose(pooled(2), whole, atol=1e-5)
    # 4 patches of 4x4 pixels: each pixel is a cell; the second patch is that of the upper right
    patches = pooled(2 * 4)
    np.testing.assert_allclose(patches[1], grey[0, :4, 4:].reshape(-1), atol=1e-6)
    np.testing.assert_allclose(patches[6], grey[1, 4:, :4].reshape(-1), atol=1e-6)
    with_token = pooled(2 * 5).reshape(2, 5, 16)
    np.testing.assert_allclose(with_token[:, 0], whole, atol=1e-5)
    np.testing.assert_allclose(with_token[:, 1:].reshape(8, 16), patches, atol=1e-6)
    # of 6 pixels along a side, a cell has one and a half
    six = ROUTER.pool({}, jnp.zeros((1, 5)), {'image': jnp.ones((1, 6, 6, 1)).at[0, 1].set(4.0)})
    np.testing.assert_allclose(
        six.reshape(4, 4)[:, 0], [(1 + 0.5 * 4) / 1.5, (0.5 * 4 + 1) / 1.5, 1, 1]
    )
    with pytest.raises(UserError, match='cannot tell which pixels 7 tokens of an image of 8x8'):
        pooled(2 * 7)


def test_a_token_takes_the_experts_of_its_largest_projections():
    features, mean, projection = normal(1, 1, 6, 16), normal(2, 16), normal(3, 16, E)
    state = {'mean': mean, 'seen': jnp.float32(9)}
    routing = ROUTER({'projection': projection}, state, features, context(groups=1, tokens=6))
    scores = (np.asarray(features[0]) - np.asarray(mean)) @ np.asarray(projection)
    np.testing.assert_array_equal(routing.expert_of_choice[0], np.argsort(-scores, -1)[:, :2])
    np.testing.assert_array_equal(routing.gate, np.full((1, 6, 2), 0.5))


def test_the_mean_is_that_of_all_tokens_seen():
    state, seen = ROUTER.init_state(), []
    for step in range(3):
        features = normal(step, 2, 5, 16) + 2
        valid = np.random.default_rng(step).random((2, 5)) < 0.7
        ctx = context(valid, groups=2, tokens=5)
        routing = ROUTER({'projection': normal(3, 16, E)}, state, features, ctx)
        sums = {n: v.sum(0) for n, v in ROUTER.observe(routing, ctx).items()}
        state = ROUTER.update_state(state, sums | {'tokens': jnp.float32(valid.sum())})
        seen.append(np.asarray(features)[valid])
    np.testing.assert_allclose(state['mean'], np.concatenate(seen).mean(0), rtol=1e-5)
    assert state['seen'] == sum(map(len, seen))


def test_about_the_mean_images_spread_over_the_experts():
    """Images that have most in common go to one expert without it."""
    features = normal(4, 1, 400, 16) + 20 * normal(5, 16)
    loads = []
    for mean in (jnp.zeros(16), features.mean((0, 1))):
        state = {'mean': mean, 'seen': jnp.float32(1)}
        routing = ROUTER(
            {'projection': normal(3, 16, E)}, state, features, context(groups=1, tokens=400)
        )
        loads.append(np.bincount(np.asarray(routing.expert_of_choice)[0, :, 0], minlength=E).max())
    assert loads[0] > 350 and loads[1] < 200


def test_nothing_that_learns_changes_a_route():
    """In a network, in each layer: only the image and the frozen projection count."""
    net = models.build(
        model_cases.config('vit', placement='every_1', router='hash', group_size=4, losses={}),
        model_cases.CLASSES,
    )
    variables, images = model_cases.filled(net), model_cases.images()
    moved = jax.tree_util.tree_map_with_path(
        lambda path, a: a if path[-1].key == 'projection' else a + 0.3, variables['params']
    )

    @model_cases.jit
    def chosen(params, images):
        made = {**variables, 'params': params}
        _, infos = net.apply(made, images, model_cases.Step())
        return {name: info['choices']['expert'] for name, info in infos.items()}

    first, other = chosen(variables['params'], images), chosen(moved, images)
    for name in first:
        np.testing.assert_array_equal(first[name], other[name])
    assert (np.asarray(chosen(moved, images[::-1])['block_0']) != first['block_0']).any()
