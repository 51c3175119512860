"""Losses on router columns (arXiv 2511.03251 and 2506.14038). Axes: E experts, D width."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from routing_cases import jit, normal

from moe_vision.common.errors import UserError
from moe_vision.common.place import Place
from moe_vision.routing import layer_losses
from moe_vision.routing.types import View

NAMES = ('orthogonality', 'simbal')


def loss(name, columns, e=None):
    kernel = jnp.asarray(columns, jnp.float32).T
    view = View(Place(e or kernel.shape[1], 1), params={'kernel': kernel})
    return getattr(layer_losses, name)(view, None)


@pytest.mark.parametrize(
    'columns, orthogonality, simbal',
    [
        ([[1, 0, 0], [0, 0, -1]], 0, 0),
        ([[2, 0], [0, 3]], 0, 3 + 8),  # orthogonal, and of the wrong length
        ([[3, 4], [4, 3]], 2 * (24 / 25) ** 2, 24 + 24 + 24 + 24),
        ([[1, 1], [1, 1]], 2, 1 + 1 + 2 + 2),
        ([[0, 0], [1, 0]], 1, 1),  # a column of zeros has no direction
    ],
)
def test_by_hand(columns, orthogonality, simbal):
    assert float(loss('orthogonality', columns)) == pytest.approx(orthogonality, abs=1e-6)
    assert float(loss('simbal', columns)) == pytest.approx(simbal, abs=1e-5)


def test_more_experts_than_features_leave_a_remainder():
    """Three directions of a plane, 120 degrees apart: 6 (1/2)^2 = E^2 / D - E = 1.5."""
    angles = 2 * np.pi * np.arange(3) / 3
    star = np.stack([np.cos(angles), np.sin(angles)], -1)
    assert float(loss('orthogonality', star)) == pytest.approx(1.5)
    for seed in range(3):
        assert loss('orthogonality', normal(seed, 3, 2)) >= 1.5 - 1e-5


@pytest.mark.parametrize('name', NAMES)
def test_null_experts_do_not_count(name):
    columns = normal(0, 6, 5)
    np.testing.assert_allclose(loss(name, columns, e=4), loss(name, columns[:4]), rtol=1e-6)


@pytest.mark.parametrize('name', NAMES)
def test_descent_makes_columns_orthogonal_and_corners_are_finite(name):
    rate = {'orthogonality': 0.1, 'simbal': 0.01}[name]

    @jit
    def after(columns, steps=150):
        def step(c, n):
            return c - rate * (1 - n / steps) * jax.grad(lambda c: loss(name, c))(c), None

        return jax.lax.scan(step, columns, jnp.arange(steps))[0]

    columns = normal(1, 3, 6)
    assert loss(name, after(columns)) < 0.1 * loss(name, columns)
    for corner in (jnp.zeros((3, 6)), jnp.ones((3, 6))):
        assert np.isfinite(after(corner)).all()
    assert np.isfinite(jax.grad(lambda c: loss(name, c))(normal(2, 1, 6))).all()


@pytest.mark.parametrize('name', NAMES)
def test_a_router_without_columns_is_refused(name):
    with pytest.raises(UserError, match=f"loss '{name}' needs a linear router"):
        getattr(layer_losses, name)(View(Place(2, 1), params={'slots': jnp.ones(2)}), None)
