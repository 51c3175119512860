"""Expert-router coupling (arXiv 2512.23447). Axes: E experts, D width, F outputs."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from routing_cases import jit, normal

from moe_vision.common.errors import UserError
from moe_vision.common.place import Place
from moe_vision.config.loss_args import ErcArgs
from moe_vision.layers.moe import make_expert
from moe_vision.layers.parts import conv
from moe_vision.routing import layer_losses
from moe_vision.routing.types import View

KEY = jax.random.key(3)


class FirstOf:
    """An expert whose parameters are its first matrix."""

    def first_matrix(self, params):
        return params['w']


def loss(kernel, w, key=KEY, **args):
    place = Place(w.shape[0], 1)
    view = View(place, ErcArgs(**args), {'kernel': kernel}, bank={'w': w}, expert=FirstOf())
    return layer_losses.erc(view, key)


def test_two_experts_by_hand():
    """Both columns are (3, 4), so that nothing is moved; W^1 = I and W^2 = 2 I: M = (5, 10) twice.

    a = 1: i = 1 gives max(10 - 5, 0) + max(5 - 5, 0) and i = 2 nothing, over E^2 = 4.
    a = 0: every off-diagonal entry twice, 2 (10 + 5) / 4. a = 1/2: (7.5 + 2.5 + 5 + 0) / 4, of
    which the first two are over 2.5 and the others over 5.
    """
    kernel, w = jnp.asarray([[3.0, 3.0], [4.0, 4.0]]), jnp.stack([jnp.eye(2), 2 * jnp.eye(2)])
    run = {a: float(loss(kernel, w, alpha=a)) for a in (1.0, 0.5, 0.0)}
    assert run == {1.0: pytest.approx(1.25), 0.5: pytest.approx(3.75), 0.0: pytest.approx(7.5)}


@pytest.mark.parametrize('alpha', [1.0, 0.4])
def test_it_is_zero_only_if_no_other_norm_is_above_the_share_of_the_own(alpha):
    coupled = jnp.asarray([[5.0, 2.0, 1.0], [1.9, 5.0, 0.0], [0.5, 2.0, 5.0]])
    assert layer_losses.coupling(coupled, alpha) == 0
    # one entry of row 0 and column 1 is above a M_00 by 1 and above a M_11 by 1, over 9
    too_large = coupled.at[0, 1].set(5 * alpha + 1)
    np.testing.assert_allclose(layer_losses.coupling(too_large, alpha), 2 / 9, rtol=1e-6)


def test_other_names_of_the_experts_change_nothing():
    norms, perm = jnp.abs(normal(0, 4, 4)), np.array([2, 0, 3, 1])
    np.testing.assert_allclose(
        layer_losses.coupling(norms[perm][:, perm], 0.7),
        layer_losses.coupling(norms, 0.7),
        rtol=1e-6,
    )
    columns, w = normal(1, 4, 6), normal(2, 4, 6, 3)
    norms = layer_losses.activation_norms(columns, w)
    np.testing.assert_allclose(norms[1, 2], np.linalg.norm(columns[1] @ w[2]), rtol=1e-5)


def test_a_proxy_stays_nearer_to_its_column_than_to_any_other():
    columns = normal(0, 5, 7).at[3].multiply(0.1)
    moved = np.asarray(jax.vmap(lambda k: layer_losses.proxies(columns, k))(jax.random.split(KEY)))
    apart = np.linalg.norm(np.asarray(columns)[:, None] - np.asarray(columns), axis=-1)
    nearest = (apart + np.diag(np.full(5, np.inf))).min(-1)
    distance = np.linalg.norm(moved - columns, axis=-1)
    assert (distance < nearest / 2).all() and (distance > 0.1 * nearest).all()
    assert (moved[0] != moved[1]).all()


def test_who_learns():
    kernel, w = normal(0, 6, 4), normal(1, 4, 6, 3)

    def grads(detach):
        return jit(jax.grad(lambda k, w: loss(k, w, detach_router=detach), (0, 1)))(kernel, w)

    of_router, of_experts = grads(False)
    alone, same = grads(True)
    assert (np.asarray(of_router) != 0).any() and (np.asarray(alone) == 0).all()
    assert (np.asarray(of_experts) != 0).any()
    np.testing.assert_array_equal(same, of_experts)


def test_corners_are_finite():
    run = jit(jax.value_and_grad(loss, (0, 1)))
    for value in (0.0, 1.0):  # all columns and all experts are equal
        out = run(jnp.full((6, 4), value), jnp.full((4, 6, 3), value))
        assert all(np.isfinite(a).all() for a in jax.tree.leaves(out))
    of_one, grads = jax.value_and_grad(loss, (0, 1))(normal(0, 6, 1), normal(1, 1, 6, 3))
    assert of_one == 0 and all((np.asarray(g) == 0).all() for g in grads)  # it has no other


def test_experts_specialise_under_it():
    params = {'kernel': normal(0, 8, 4), 'w': 0.3 * normal(1, 4, 8, 5)}

    def ratio(p):
        norms = np.asarray(layer_losses.activation_norms(p['kernel'].T, p['w']))
        return norms.diagonal().mean() / norms[~np.eye(4, dtype=bool)].mean()

    @jit
    def trained(params):
        def step(p, key):
            g = jax.grad(lambda p: loss(p['kernel'], p['w'], key, alpha=0.5))(p)
            return jax.tree.map(lambda a, b: a - 0.1 * b, p, g), None

        return jax.lax.scan(step, params, jax.random.split(KEY, 40))[0]

    assert ratio(trained(params)) > 1.5 * ratio(params)


@pytest.mark.parametrize('name', ['mlp', 'conv', 'depthwise_conv', 'bottleneck', 'convnext'])
def test_the_first_matrix_is_what_an_even_map_meets(name):
    made = make_expert(name, None, 8, 16)
    bank = {n: normal(i, 2, *shape) for i, (n, (shape, _)) in enumerate(made.shapes().items())}
    matrix = made.first_matrix(bank)
    assert matrix.shape == (2, 8, 16)
    one, row = {n: w[1] for n, w in bank.items()}, normal(9, 8)
    even = jnp.broadcast_to(row, (1, 9, 9, 8))
    if 'depthwise' in one:
        seen = conv(even, one['depthwise'], groups=8)[0, 4, 4] @ one['in_kernel']
    elif 'conv1' in one:
        seen = conv(even, one['conv1'])[0, 4, 4]
    else:
        seen = row @ one['in_kernel']
    np.testing.assert_allclose(row @ matrix[1], seen, rtol=1e-4, atol=1e-4)


def test_what_does_not_fit_is_one_line():
    w = normal(1, 4, 6, 3)
    with pytest.raises(UserError, match=r"'kernel' \[D, E\]"):
        layer_losses.erc(View(Place(4, 1), ErcArgs(), {}, bank={'w': w}, expert=FirstOf()), KEY)
    with pytest.raises(UserError, match='width 5 with experts of width 6'):
        loss(normal(0, 5, 4), w)
    with pytest.raises(ValueError, match='give the step a key'):
        loss(normal(0, 6, 4), w, None)
    with pytest.raises(UserError, match=r'alpha is 2.0; allowed: 0 <= alpha <= 1'):
        ErcArgs(alpha=2.0)


def test_a_mesh_gathers_no_weights(jax_environment):
    """On 2 x 4 devices: the same loss, and neither a gather nor a permute in its program."""
    script = Path(__file__).parents[1] / 'cases' / 'erc_on_a_mesh.py'
    flags = f'{jax_environment.get("XLA_FLAGS", "")} --xla_force_host_platform_device_count=8'
    done = subprocess.run(
        [sys.executable, str(script)],
        text=True,
        capture_output=True,
        env=jax_environment | {'XLA_FLAGS': flags, 'JAX_PLATFORMS': 'cpu'},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    seen = json.loads(done.stdout)
    assert seen['loss'] == pytest.approx(seen['loss_of_one'], rel=1e-5) and seen['loss'] > 0
    assert seen['gradient_error'] < 1e-5
    assert set(seen['kinds']) == {'all-reduce'}, seen['kinds']
