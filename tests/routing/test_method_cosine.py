"""The cosine router against its equation. Axes: T tokens, E experts, D width, Q projected width."""

import jax.numpy as jnp
import numpy as np
from routing_cases import context, jit, normal

from moe_vision.common.place import Place
from moe_vision.layers.moe import make_router

T, E, D, Q = 6, 4, 5, 7
ROUTER = make_router('cosine', {'project': Q}, Place(E, 2, T))
PARAMS = {
    'project': normal(0, D, Q),
    'experts_at': 0.01 * normal(1, Q, E),
    'log_scale': jnp.float32(np.log(2.0)),  # its initial value
}
X = normal(2, 1, T, D)
run = jit(lambda params, x: ROUTER(params, {}, x, context(groups=1, tokens=T)))


def test_logits_are_cosines_times_a_learned_scale():
    routing = run(PARAMS, X)
    p, m = np.asarray(X[0] @ PARAMS['project']), np.asarray(PARAMS['experts_at'])
    norms = np.linalg.norm(p, axis=1)[:, None] * np.linalg.norm(m, axis=0)
    want = 2 * (p @ m) / norms
    np.testing.assert_allclose(routing.logits[0], want, rtol=1e-4, atol=1e-5)
    probs = np.exp(want) / np.exp(want).sum(-1, keepdims=True)
    ids = np.argsort(-want, -1, kind='stable')[:, :2]
    np.testing.assert_array_equal(routing.expert_of_choice[0], ids)
    np.testing.assert_allclose(routing.gate[0], np.take_along_axis(probs, ids, -1), rtol=1e-4)


def test_neither_the_scale_of_x_nor_a_large_temperature_makes_logits_large():
    once, tenfold = run(PARAMS, X), run(PARAMS, 10 * X)
    np.testing.assert_allclose(once.logits, tenfold.logits, rtol=1e-4, atol=1e-6)
    hot = np.asarray(run(PARAMS | {'log_scale': jnp.float32(50.0)}, X).logits)
    assert np.abs(hot).max() <= 100 * (1 + 1e-5)
    np.testing.assert_allclose(hot, 50 * np.asarray(once.logits), rtol=1e-3, atol=1e-3)


def test_initial_values():
    shapes = make_router('cosine', {}, Place(E, 2)).params(D)
    assert {n: shape for n, (shape, _) in shapes.items()} == {
        'project': (D, 256),
        'experts_at': (256, E),
        'log_scale': (),
    }
    assert np.isclose(shapes['log_scale'][1](None, ()), np.log(1 / 0.5))
