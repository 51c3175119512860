"""Routers that remember (routing_methods 3.15).

Axes: G groups, T tokens, D width of features, P width of the state, E experts.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from leverage_cases import block, found
from model_cases import TRAIN, abstract, build, filled, images, paths
from routing_cases import context, jit, normal

from moe_vision.common.place import Place
from moe_vision.layers.moe import make_router

G, T, D, P, E = 2, 4, 5, 3, 4


def made(**args):
    return make_router('rmoe', {'width': P, **args}, Place(E, 2, T))


def params(router, seed=0):
    shapes = router.params(D) | router.shared_params()
    return {n: normal((seed, i), *shape) for i, (n, (shape, _)) in enumerate(shapes.items())}


def route(params, x, carry, cell='gru'):
    ctx = dataclasses.replace(context(groups=G, tokens=T), carry=carry)
    return made(cell=cell)(params, {}, x, ctx)


@functools.cache
def run(cell='gru'):
    """(params, features, carry) -> routing."""
    return jit(functools.partial(route, cell=cell))


def test_two_steps_by_hand():
    """Gates of 1/2, so that h_1 = tanh(1) / 2 and h_2 = tanh(1 + 2 h_1 / 2) / 2 + h_1 / 2."""
    router = made(width=1)
    one, none = jnp.ones((1, 1, 1)), jnp.zeros((1, 1, 1))
    w = {
        'input': jnp.asarray([[0.0, 0.0, 1.0]]),
        'recurrent': jnp.asarray([[0.0, 0.0, 2.0]]),
        'input_bias': jnp.zeros(3),
        'recurrent_bias': jnp.zeros(3),
    }
    first = router.step(w, one, none)
    second = router.step(w, one, first)
    h = math.tanh(1) / 2
    assert float(first[0, 0, 0]) == pytest.approx(h)
    assert float(second[0, 0, 0]) == pytest.approx(math.tanh(1 + h) / 2 + h / 2)


@pytest.mark.parametrize('cell', ['gru', 'rnn'])
def test_against_numpy(cell):
    router = made(cell=cell)
    w, x, h = params(router), normal(1, G, T, D), normal(2, G, T, P)
    routing = run(cell)(w, x, h)
    x, h, w = np.asarray(x), np.asarray(h), {n: np.asarray(a) for n, a in w.items()}
    x = (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True)
    new = x @ w['in_kernel'] @ w['input'] + w['input_bias']
    old = h @ w['recurrent'] + w['recurrent_bias']

    def sigmoid(a):
        return 1 / (1 + np.exp(-a))

    if cell == 'rnn':
        want = np.tanh(new + old)
    else:
        z, u = (
            sigmoid(new[..., i * P : (i + 1) * P] + old[..., i * P : (i + 1) * P]) for i in (0, 1)
        )
        want = (1 - u) * np.tanh(new[..., 2 * P :] + z * old[..., 2 * P :]) + u * h
    np.testing.assert_allclose(routing.carry, want, rtol=1e-4, atol=1e-5)
    logits = want @ w['kernel']
    np.testing.assert_allclose(routing.logits, logits, rtol=1e-4, atol=1e-4)
    ids = np.argsort(-logits, -1)[..., :2]
    np.testing.assert_array_equal(routing.expert_of_choice, ids)
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    top = np.take_along_axis(p, ids, -1)
    np.testing.assert_allclose(routing.gate, top / top.sum(-1, keepdims=True), rtol=1e-3)


def test_the_first_layer_has_no_past():
    """It is a router of two layers: the recurrent matrix says nothing, and h = 0 the same."""
    w, x = params(made()), normal(1, G, T, D)
    first, other = run()(w, x, None), run()(w | {'recurrent': normal(9, P, 3 * P)}, x, None)
    np.testing.assert_array_equal(first.logits, other.logits)
    np.testing.assert_allclose(first.logits, run()(w, x, jnp.zeros((G, T, P))).logits, rtol=1e-6)


@pytest.mark.parametrize('cell', ['gru', 'rnn'])
def test_without_recurrent_weights_layers_are_independent(cell):
    """Of a GRU the update gate must be closed, too: with weight u it keeps h as it is."""
    w, x = params(made(cell=cell)), normal(1, G, T, D)
    w['recurrent'] = jnp.zeros_like(w['recurrent'])
    if cell == 'gru':
        w['input_bias'] = w['input_bias'].at[P : 2 * P].set(-100.0)
    one, two = (run(cell)(w, x, normal(s, G, T, P)).logits for s in (2, 3))
    np.testing.assert_array_equal(one, two)


def test_a_later_layer_teaches_the_first():
    first, second = params(made(), 0), params(made(), 1)
    x, y = normal(1, G, T, D), normal(2, G, T, D)

    @jit
    @jax.grad
    def gradient(first):
        return jnp.sum(jnp.sin(route(second, y, route(first, x, None).carry).probs))

    d = gradient(first)
    assert np.abs(d['in_kernel']).min() > 0 and not np.any(d['kernel'])


@pytest.mark.parametrize('shared', [True, False])
def test_all_layers_share_a_cell_unless_each_has_one(shared):
    args = {'width': P, 'shared': shared}
    net = build('vit', 'every_1', router='rmoe', router_args=made(**args).args, losses={})
    shapes = {n: a.shape for n, a in paths(abstract(net)['params']).items() if 'router/' in n}
    own = {'in_kernel': (16, P), 'kernel': (P, 3)}
    cell = {'input': (P, 3 * P), 'recurrent': (P, 3 * P)}
    cell |= {'input_bias': (3 * P,), 'recurrent_bias': (3 * P,)}
    want = {f'block_{i}/router/{n}': s for i in (0, 1) for n, s in own.items()}
    where = ['router'] if shared else ['block_0/router', 'block_1/router']
    want |= {f'{path}/{n}': s for path in where for n, s in cell.items()}
    assert shapes == want


@pytest.mark.parametrize('name, tokens', [('vit', 16), ('conv', 4)])
def test_the_state_goes_from_layer_to_layer_with_its_token(name, tokens):
    """The first layer's experts say nothing, so the second sees of it what the router left alone.

    In the convolutional network, maps of 8x8 with 8 channels come before maps of 4x4 with 16.
    """
    args = made(width=6).args
    net = build(name, 'every_1', router='rmoe', router_args=args, losses={}, group_size=4)
    variables, x = filled(net), images()
    flat = paths(variables['params'])
    last = [n for n in flat if n.startswith('block_0/experts/') and ('out_' in n or 'conv2' in n)]
    assert last

    @jit
    def gates(params):
        infos = net.apply(variables | {'params': params}, x, TRAIN, mutable=['batch_stats'])[0][1]
        return [infos[f'block_{i}']['choices']['gate'] for i in (0, 1)]

    def changed(paths, by):
        def at(path, leaf):
            return by(leaf) if '/'.join(k.key for k in path) in paths else leaf

        return jax.tree_util.tree_map_with_path(at, variables['params'])

    variables['params'] = changed(last, jnp.zeros_like)
    before = gates(variables['params'])
    one_token = changed(['block_0/router/in_kernel'], lambda w: w + 1.0 * normal(3, *w.shape))
    after = gates(one_token)
    assert before[1].shape == (tokens, 2)
    assert (np.abs(after[1] - before[1]).max(1) > 1e-4).all()
    cut = changed(['block_0/router/kernel'], lambda w: -w)  # changes routes, and not the state
    third = gates(cut)
    assert np.abs(third[0] - before[0]).max() > 1e-3
    np.testing.assert_array_equal(third[1], before[1])


def test_its_products_are_counted():
    """Of each image 2 (D P + 2 P 3 P + P E), with maps of 16 channels and four experts."""
    cost = found(
        model__moe__router='rmoe', model__moe__router_args={'width': 5}, model__moe__losses={}
    )
    assert block(cost, 'block_1').flops_router == 2 * (16 * 5 + 2 * 5 * 15 + 5 * 4)
    parameters = 16 * 5 + 5 * 4 + 2 * 5 * 15 + 2 * 15
    assert block(cost, 'block_1').params + block(cost, 'router').params == parameters + 4 * (
        2 * 9 * 16 * 16 + 2 * 2 * 16
    )
