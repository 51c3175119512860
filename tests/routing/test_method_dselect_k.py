"""DSelect-k against its equations. Axes: T tokens, S selectors (k of them), B digits, E experts."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from routing_cases import context, experts, jit, normal, view

from configs import base
from moe_vision.common.errors import UserError
from moe_vision.common.place import Place
from moe_vision.config import check as config_lib
from moe_vision.layers.moe import make_router
from moe_vision.routing.losses import selector_entropy
from moe_vision.routing.plan import index_plan
from moe_vision.routing.routers.dselect_k import experts_of_digits, smooth_step

T, S, B, E, D = 5, 2, 2, 4, 6
ROUTER = make_router('dselect_k', {'normalize_inputs': False}, Place(E, S, T))
PARAMS = {
    'weights': normal(0, D, S),
    'weights_bias': normal(1, S),
    'codes': 0.1 * normal(2, D, S * B),
    'codes_bias': 0.1 * normal(3, S * B),
}
X, WEIGHTS = normal(4, 1, T, D), (normal(5, E, D, 3), normal(6, E, 1, 3))
CTX = dataclasses.replace(context(groups=1, tokens=T), capacity=T)


@jit
def run(params, x):
    routing = ROUTER(params, {}, x, CTX)
    plan = index_plan(routing, E, T)
    loss = selector_entropy(routing, CTX, view(E))
    return routing, plan.apply(x, experts(WEIGHTS)), loss


def step(t, gamma=1.0):
    cubic = -2 * t**3 / gamma**3 + 3 * t / (2 * gamma) + 0.5
    return np.where(np.abs(t) < gamma / 2, cubic, t > 0)


def by_hand(params, x):
    """r [T, S, E] and gates [T, E], an expert at a time."""
    x, p = np.asarray(x[0]), jax.tree.map(np.asarray, params)
    z = (x @ p['codes'] + p['codes_bias']).reshape(T, S, B)
    r = np.ones((T, S, E))
    for j, bits in enumerate(itertools.product((0, 1), repeat=B)):
        for b, bit in enumerate(bits):
            r[:, :, j] *= step(z[..., b]) if bit else 1 - step(z[..., b])
    alpha = x @ p['weights'] + p['weights_bias']
    alpha = np.exp(alpha) / np.exp(alpha).sum(-1, keepdims=True)
    return r, (alpha[..., None] * r).sum(1)


def test_gates_and_output_against_the_equations():
    routing, y, loss = run(PARAMS, X)
    r, gates = by_hand(PARAMS, X)
    np.testing.assert_allclose(routing.probs[0], gates, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(routing.probs.sum(-1), 1, rtol=1e-5)
    assert (np.asarray(routing.active).sum(-1) > S).any()  # still dense
    said = experts(WEIGHTS)(jnp.broadcast_to(X, (E, T, D)))
    np.testing.assert_allclose(y[0], np.einsum('te,etf->tf', gates, said), rtol=1e-3, atol=1e-5)
    h = -(r * np.log(np.maximum(r, 1e-30))).sum(-1)
    np.testing.assert_allclose(routing.aux['selector_entropy'][0], h, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(loss[0], h.sum(-1).mean(), rtol=1e-4)


def test_hard_selectors_choose_at_most_k():
    """|z| is above gamma/2 everywhere: selector 0 names expert 2 (digits 10), selector 1 varies."""
    params = PARAMS | {
        'codes': jnp.zeros((D, S * B)).at[0, 3].set(9.0),
        'codes_bias': jnp.asarray([0.5, -0.5, 2.0, 0.0]),
    }
    x = X.at[0, :, 0].set(jnp.asarray([1.0, -1.0, 1.0, -1.0, 1.0]))
    routing, _, loss = run(params, x)
    np.testing.assert_array_equal(np.asarray(routing.active).sum(-1)[0], [2, 1, 2, 1, 2])
    chosen = np.asarray(routing.probs)[0] > 0
    assert chosen[:, 2].all() and chosen[::2, 3].all() and not chosen[1::2, 3].any()
    np.testing.assert_allclose(routing.gate[0, 1, 0], 1, rtol=1e-6)  # both selectors: expert 2
    np.testing.assert_allclose(loss, 0, atol=1e-6)
    gates = np.asarray(routing.gate)[0]
    assert (np.diff(gates, axis=-1) <= 0).all()  # the largest first


@pytest.mark.parametrize('gamma', [1.0, 4.0])
def test_the_step_is_smooth(gamma):
    t = jnp.asarray([-gamma, -gamma / 2, -gamma / 4, 0.0, gamma / 4, gamma / 2, gamma])
    np.testing.assert_allclose(
        smooth_step(t, gamma), [0, 0, 0.15625, 0.5, 0.84375, 1, 1], atol=1e-6
    )
    slope = jax.vmap(jax.grad(lambda v: smooth_step(v, gamma)))
    ends = jnp.asarray([-1.0, 1.0]) * gamma / 2
    np.testing.assert_allclose(slope(ends * (1 - 1e-3)), 0, atol=1e-2)  # as outside
    np.testing.assert_allclose(slope(ends * (1 + 1e-3)), 0)
    np.testing.assert_allclose(slope(jnp.zeros(1)), 1.5 / gamma, rtol=1e-6)


def test_digits_count_the_first_one_most():
    ones = jnp.asarray([0.9, 0.2, 1.0])
    want = [0, 0.08, 0, 0.02, 0, 0.72, 0, 0.18]  # 001, 011, 101 and 111 are possible
    np.testing.assert_allclose(experts_of_digits(ones), want, atol=1e-6)
    np.testing.assert_array_equal(experts_of_digits(jnp.ones((3, 0))), np.ones((3, 1)))


def test_experts_are_alike_at_the_start():
    params = {
        n: init(jax.random.key(i), shape)
        for i, (n, (shape, init)) in enumerate(ROUTER.params(D).items())
    }
    assert all(np.abs(p).max() <= 0.01 for p in params.values())
    np.testing.assert_allclose(run(params, X)[0].probs, 1 / E, atol=0.05)


@pytest.mark.parametrize(
    'changes, says',
    [
        ({}, None),
        ({'model.moe.num_experts': 6}, 'num_experts is 6.*dselect_k.*power of 2, such as 4 or 8'),
        ({'model.moe.layers': {'0': {'num_experts': 12}}}, 'num_experts is 12.*8 or 16'),
        (
            {'model.moe.router': 'top_k', 'model.moe.losses': {'selector_entropy': 0.1}},
            "router 'top_k' has no selectors; set model.moe.router to 'dselect_k'",
        ),
        ({'model.moe.losses': {'selector_entropy': 0.1}}, None),
    ],
)
def test_what_a_config_must_hold(changes, says):
    c = base.get_config()
    start = {'model.moe.router': 'dselect_k', 'model.moe.losses': {}, 'model.moe.router_args': {}}
    for key, value in (start | changes).items():
        *path, last = key.split('.')
        section = c
        for part in path:
            section = section[part]
        with section.unlocked():
            section[last] = value
    if says is None:
        config_lib.check(c)
        return
    with pytest.raises(UserError, match=says):
        config_lib.check(c)
