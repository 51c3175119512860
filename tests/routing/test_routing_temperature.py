"""Temperature schedules against their closed forms."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from routing_cases import jit, normal

from moe_vision.routing.temperature import entropy, schedule, with_entropy_floor

START, END = 2.0, 0.5


@pytest.mark.parametrize(
    'kind, quarter, half',
    [
        ('constant', 2.0, 2.0),
        ('linear', 1.625, 1.25),  # 2 - 1.5 / 4
        ('cosine', 0.5 + 1.5 * 0.5 * (1 + math.sqrt(0.5)), 1.25),
        ('sigmoid', 0.5 + 1.5 / (1 + math.exp(-1.75)), 1.25),  # 7 (1/4 - 1/2) = -1.75
        ('entropy_floor', 1.625, 1.25),
    ],
)
def test_values_by_hand(kind, quarter, half):
    assert schedule(kind, START, END, 0.25) == pytest.approx(quarter)
    assert schedule(kind, START, END, 0.5) == pytest.approx(half)


@pytest.mark.parametrize('kind', ['linear', 'cosine', 'sigmoid', 'entropy_floor'])
def test_from_start_to_end_without_turning(kind):
    tau = np.asarray(jax.vmap(lambda p: schedule(kind, START, END, p))(jnp.linspace(0, 1, 101)))
    assert (np.diff(tau) < 0).all()
    # The sigmoid ends short of both by (start - end) / (1 + e^3.5) = 1.5 * 0.0293 = 0.044.
    short = 1.5 / (1 + math.exp(3.5)) if kind == 'sigmoid' else 0.0
    np.testing.assert_allclose(tau[[0, -1]], [START - short, END + short], rtol=1e-5)
    assert schedule(kind, START, END, 1.7) == pytest.approx(tau[-1])  # past the end: the end
    assert schedule(kind, START, END, -1.0) == pytest.approx(tau[0])


def test_unknown_schedule():
    with pytest.raises(ValueError, match='exponential'):
        schedule('exponential', 1.0, 0.1, 0.5)


def test_entropy_has_a_gradient_at_certainty():
    certain = jnp.asarray([1.0, 0.0, 0.0])
    assert entropy(certain) == 0
    assert bool(jnp.isfinite(jax.grad(entropy)(certain)).all())
    assert entropy(jnp.full(8, 1 / 8)) == pytest.approx(math.log(8))


def test_entropy_floor_of_two_logits_by_hand():
    # Two logits a apart have p = 1 / (1 + e^(-a / tau)). Entropy 0.8 ln 2 means p = 0.7570.
    p = 0.7570
    share = -(p * math.log(p) + (1 - p) * math.log(1 - p)) / math.log(2)
    a = 3.0
    tau = with_entropy_floor(jnp.asarray([[a, 0.0], [0.1, 0.0]]), jnp.float32(0.5), share)
    assert tau[0] == pytest.approx(a / math.log(p / (1 - p)), rel=1e-4)  # 2.640
    assert tau[1] == pytest.approx(0.5)  # 0.1 apart: uncertain enough already


def test_entropy_floor_has_no_gradient():
    gradient = jit(jax.grad(lambda x: jnp.sum(with_entropy_floor(x, jnp.float32(0.1), 0.5))))(
        normal(0, 3, 4)
    )
    np.testing.assert_array_equal(gradient, 0)
