"""Similarity- and Attention-aware routing against their equations.

Axes: G groups, T tokens, N tokens of an image, E experts, D width.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from routing_cases import context, jit, normal

from configs import base
from moe_vision.common.errors import UserError
from moe_vision.common.place import Place
from moe_vision.config import check as config_lib
from moe_vision.layers.moe import make_router

G, T, N, E, D = 2, 6, 3, 4, 5
KERNEL, EYE, X = normal(0, D, E), jnp.eye(D), normal(1, G, T, D)
VALID = np.ones((G, T), bool)


@functools.cache
def compiled(name, args, train):
    router = make_router(name, {'normalize_inputs': False} | dict(args), Place(E, 2, T, 0, 1, N))

    def run(x, similarity, valid, attention):
        ctx = context(valid, groups=G, tokens=T, train=train)
        ctx = dataclasses.replace(ctx, extras={'attention': attention})
        params = {'kernel': KERNEL} | ({'similarity': similarity} if name[0] == 's' else {})
        return router(params, {}, x, ctx)

    return jit(run)


def routed(name, x=X, similarity=EYE, valid=VALID, attention=None, train=True, **args):
    attention = jnp.zeros((G, T, N)) if attention is None else attention
    return compiled(name, tuple(args.items()), train)(x, similarity, valid, attention)


def softmax(a):
    e = np.exp(a - a.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


R = softmax(np.asarray(X) @ np.asarray(KERNEL))


def test_similarity_against_its_equation():
    w = np.asarray(normal(2, D, D))
    routing = routed('similarity_aware', similarity=w, temperature=2.0, mix=0.7)
    for g in range(G):
        for image in range(T // N):
            own = slice(N * image, N * image + N)
            x = np.asarray(X)[g, own]
            s = softmax(x @ w @ x.T / 2.0)
            want = 0.3 * R[g, own] + 0.7 * s @ R[g, own]
            np.testing.assert_allclose(routing.probs[g, own], want, rtol=1e-4)
    ids = np.argsort(-np.asarray(routing.probs), -1, kind='stable')[..., :2]
    np.testing.assert_array_equal(routing.expert_of_choice, ids)
    np.testing.assert_allclose(routing.gate, np.take_along_axis(routing.probs, ids, -1), rtol=1e-6)


def test_by_hand():
    """Two unit tokens at a right angle: S is softmax(1, 0) = (0.7311, 0.2689)."""
    x = jnp.zeros((G, T, D)).at[:, 0, 0].set(1.0).at[:, 1, 1].set(1.0)
    valid = np.broadcast_to(np.arange(T) < 2, (G, T))
    r = np.asarray(routed('similarity_aware', x, valid=valid, mix=0.0).probs)[0, :2]
    mixed = np.asarray(routed('similarity_aware', x, valid=valid, temperature=1.0).probs)[0, :2]
    np.testing.assert_allclose(mixed[0], 0.731059 * r[0] + 0.268941 * r[1], rtol=1e-5)
    np.testing.assert_allclose(mixed[1], 0.731059 * r[1] + 0.268941 * r[0], rtol=1e-5)


@pytest.mark.parametrize('args', [{'mix': 0.0}, {'temperature': 1e-4}])
def test_without_neighbours_it_is_the_linear_router(args):
    plain = routed('top_k')
    unit = X / jnp.linalg.norm(X, axis=-1, keepdims=True)  # nothing is more like it than itself
    if 'temperature' in args:
        plain = routed('top_k', unit)
    own = routed('similarity_aware', unit if 'temperature' in args else X, **args)
    np.testing.assert_allclose(own.probs, plain.probs, rtol=1e-5)
    np.testing.assert_array_equal(own.expert_of_choice, plain.expert_of_choice)
    np.testing.assert_allclose(own.gate, plain.gate, rtol=1e-5)


def test_equal_tokens_keep_their_probabilities():
    x = jnp.broadcast_to(X[:, :1], X.shape)
    probs = routed('similarity_aware', x, temperature=1.0).probs
    np.testing.assert_allclose(probs, np.broadcast_to(R[:, :1], R.shape), rtol=1e-5)


def test_tokens_of_a_cluster_agree():
    """Two clusters in a group: inside each, all take the same experts, whatever their noise."""
    rng = np.random.default_rng(5)
    centre = np.where(np.arange(T) % 2, 1.0, -1.0)[:, None] * np.eye(D)[0]
    x = jnp.asarray(centre + rng.normal(size=(G, T, D)) * [0, 0.3, 0.3, 0.3, 0.3], jnp.float32)
    along = jnp.diag(jnp.asarray([1.0, 0, 0, 0, 0]))  # W_s compares them by the first coordinate
    routing = routed('similarity_aware', x, similarity=along, graph='group', temperature=0.01)
    for odd in (0, 1):
        probs = np.asarray(routing.probs)[:, odd::2]
        np.testing.assert_allclose(probs, np.broadcast_to(probs[:, :1], probs.shape), rtol=1e-5)
    assert np.ptp(np.asarray(routed('top_k', x).probs)[:, ::2], axis=1).max() > 0.05


def test_images_compare_themselves_in_training_alone():
    x = X.at[:, -1].add(3.0)
    args = {'graph': 'group', 'temperature': 1.0}
    train = [routed('similarity_aware', v, **args).probs for v in (X, x)]
    assert np.abs(train[0][:, 0] - train[1][:, 0]).max() > 1e-3
    score = [routed('similarity_aware', v, train=False, **args).probs for v in (X, x)]
    np.testing.assert_array_equal(score[0][:, :-1], score[1][:, :-1])
    np.testing.assert_allclose(score[0], R, rtol=1e-5)


def test_x_has_unit_length_where_inputs_are_normalised():
    x = jnp.asarray([[[1.0, -1.0, 1.0, -1.0, 0.0], [1.0, 1.0, -1.0, -1.0, 0.0], [0.0] * 5]] * G)
    x = jnp.concatenate([3 * x + 1, x], 1)  # mean 0 and right angles; scale and mean do not count
    args = {'normalize_inputs': True, 'temperature': 1.0}
    routing, plain = (routed('similarity_aware', x, **args | m) for m in ({}, {'mix': 0.0}))
    r = np.asarray(plain.probs)
    s = softmax(np.asarray([1.0, 0.0, 0.0]))  # the third token is constant: no direction
    np.testing.assert_allclose(routing.probs[:, 0], np.einsum('s,gse->ge', s, r[:, :3]), rtol=1e-4)
    np.testing.assert_allclose(routing.probs[:, 3:5], routing.probs[:, :2], rtol=1e-4)


def test_attention_against_its_equation():
    attention = jax.nn.softmax(normal(3, G, T, N))
    routing = routed('attention_aware', attention=attention, mix=0.6)
    a, r = np.asarray(attention).reshape(G, 2, N, N), R.reshape(G, 2, N, E)
    want = (0.4 * r + 0.6 * np.einsum('gits,gise->gite', a, r)).reshape(G, T, E)
    np.testing.assert_allclose(routing.probs, want, rtol=1e-5)
    next_one = jnp.tile(jnp.eye(N)[jnp.asarray([1, 2, 0])], (G, 2, 1))  # each attends to the next
    moved = routed('attention_aware', attention=next_one)
    np.testing.assert_allclose(moved.probs, R[:, [1, 2, 0, 4, 5, 3]], rtol=1e-5)


def test_padding_is_nobodys_neighbour():
    valid = VALID.copy()
    valid[0, 1] = False
    a = np.asarray(jax.nn.softmax(normal(3, G, T, N)))
    routing = routed('attention_aware', attention=jnp.asarray(a), valid=valid)
    share = a[0, 0, [0, 2]] / a[0, 0, [0, 2]].sum()
    np.testing.assert_allclose(routing.probs[0, 0], share @ R[0, [0, 2]], rtol=1e-4)


@pytest.mark.parametrize('stop', [False, True])
def test_the_attention_learns_from_the_router_unless_it_is_stopped(stop):
    router = make_router(
        'attention_aware', {'normalize_inputs': False, 'stop_gradient': stop}, Place(E, 2, T)
    )

    def loss(attention):
        ctx = dataclasses.replace(
            context(VALID, groups=G, tokens=T), extras={'attention': attention}
        )
        return jnp.sum(jnp.sin(router({'kernel': KERNEL}, {}, X, ctx).gate))

    grad = jit(jax.grad(loss))(jax.nn.softmax(normal(3, G, T, N)))
    assert bool(jnp.any(grad != 0)) != stop


VIT = {
    'model.name': 'vit',
    'model.args': {'width': 8, 'depth': 1, 'heads': 2, 'patch_size': 4},
    'dataset.image_size': 8,
    'model.moe.losses': {},
    'model.moe.router_args': {},
}


@pytest.mark.parametrize(
    'router, changes, says',
    [
        ('similarity_aware', VIT | {'model.moe.group_size': 8}, None),
        ('similarity_aware', VIT | {'model.moe.group_size': 2}, "graph is 'image'.* cuts images"),
        ('similarity_aware', {}, "graph is 'image', which needs patches.*use 'group'"),
        ('similarity_aware', {'model.moe.router_args': {'graph': 'group'}}, None),
        ('similarity_aware', {'model.moe.router_args': {'graph': 'group', 'mix': 2.0}}, 'mix is 2'),
        ('attention_aware', VIT | {'model.moe.group_size': 8}, None),
        ('attention_aware', VIT | {'model.moe.group_size': 2}, 'reads the attention.* cuts images'),
        ('attention_aware', {}, "needs 'attention' but backbone 'conv' supplies map, image"),
        ('attention_aware', VIT | {'model.moe.placement': 'head'}, "needs 'attention'.*'head'"),
    ],
)
def test_groups_hold_whole_images(router, changes, says):
    c = base.get_config()
    start = {'model.moe.router': router, 'model.moe.losses': {}, 'model.moe.router_args': {}}
    for key, value in (start | changes).items():
        c.update_from_flattened_dict({key: value})
    if says is None:
        config_lib.check(c)
    else:
        with pytest.raises(UserError, match=says):
            config_lib.check(c)
