"""The uncertainty-aware router of MoFME. Axes: G groups, T tokens, M passes, N ids, D width."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from routing_cases import context, jit, make, normal

from moe_vision.routing.types import pick

G, T, D, E = 2, 8, 5, 4
KERNEL, X = normal(1, D, E), normal(2, G, T, D)


def route(train=True, k=2, **args):
    router = make(('uncertain', tuple(args.items())), k=k)
    ctx = dataclasses.replace(context(), train=train)
    return jit(lambda w, x: router({'kernel': w}, {}, x, ctx))(KERNEL, X)


def plain():
    x = (X - X.mean(-1, keepdims=True)) / jnp.sqrt(X.var(-1, keepdims=True) + 1e-6)
    return jax.nn.softmax(jnp.einsum('gtd,dn->gtn', x, KERNEL))


@pytest.mark.parametrize(
    'args', [{'passes': 1, 'dropout': 0.0}, {'dropout': 0.0}, {'train': False}], ids=str
)
def test_without_a_spread_it_is_the_plain_router(args):
    """One pass, no dropout, or evaluation."""
    routing, probs = route(**args), plain()
    top = jax.lax.top_k(probs, 2)[0]
    chex.assert_trees_all_close(routing.probs, probs, atol=1e-5)
    chex.assert_trees_all_close(routing.gate, top / top.sum(-1, keepdims=True), atol=1e-5)


def test_one_pass_with_dropout_has_no_spread():
    one, mean = route(passes=1, dropout=0.5), route(passes=1, dropout=0.5, calibrate=False)
    chex.assert_trees_all_close(one, mean, atol=1e-5)
    assert np.abs(np.asarray(one.gate - route(dropout=0.0).gate)).max() > 0.05


def test_weights_are_means_over_spreads():
    """All experts chosen, so gates are the weights in falling order: nonnegative, with sum 1."""
    router = make(('uncertain', (('dropout', 0.3), ('epsilon', 0.05))), k=E)
    ctx = context()
    x = (X - X.mean(-1, keepdims=True)) / jnp.sqrt(X.var(-1, keepdims=True) + 1e-6)

    @jit
    def both(kernel):
        routing = router({'kernel': kernel}, {}, X, ctx)
        keys = jax.vmap(lambda g: jax.random.fold_in(jax.random.fold_in(ctx.key, 0), g))(ctx.group)
        masks = jax.vmap(lambda k: jax.random.bernoulli(k, 0.7, (5, T, D)))(keys)
        passes = jax.nn.softmax(jnp.einsum('gmtd,dn->gmtn', masks * x[:, None] / 0.7, kernel))
        return routing, passes.mean(1) / (passes.std(1) + 0.05)

    routing, want = both(KERNEL)
    want = want / want.sum(-1, keepdims=True)
    chex.assert_trees_all_close(routing.gate, pick(want, routing.expert_of_choice), atol=1e-4)
    assert (np.diff(np.asarray(routing.gate), axis=-1) <= 1e-6).all()
    np.testing.assert_allclose(routing.gate.sum(-1), 1, rtol=1e-5)
    assert (np.asarray(routing.gate) >= 0).all()


def test_gradients_are_finite_without_a_spread():
    router = make(('uncertain', (('dropout', 0.0),)))
    loss = jit(jax.grad(lambda w: router({'kernel': w}, {}, X, context()).gate[..., 0].sum()))
    for kernel in (KERNEL, jnp.zeros_like(KERNEL)):
        assert np.isfinite(loss(kernel)).all()
