"""Duo-LLM: random modules, then learned ones within a budget. Axes: G groups, T tokens, N ids."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from routing_cases import jit, normal

from moe_vision.common.place import Place
from moe_vision.config.loss_args import BudgetArgs
from moe_vision.config.router_args import DuoArgs
from moe_vision.routing import losses
from moe_vision.routing.routers.duo import Duo
from moe_vision.routing.types import Context, View

# large, small and skip; two layers
PLACE = Place(2, 3, 4, layer=0, layers=2, kinds=(0, 1), skips=1)
G, T = 2, 4


def made(k=3, layer=0, **args):
    return Duo(DuoArgs(**args), dataclasses.replace(PLACE, k=k, layer=layer))


def context(fraction, train=True, carry=None, valid=None):
    return Context(
        valid=jnp.ones((G, T), bool) if valid is None else jnp.asarray(valid),
        key=jax.random.key(0),
        group=jnp.arange(G),
        fraction=jnp.float32(fraction),
        carry=carry,
        train=train,
    )


# rows are logits: features are one-hot, and not normalised
LOGITS = jnp.asarray([[2.0, 1.0, 0.0], [0.0, 1.0, 2.0], [0.0, 3.0, 0.0], [1.0, 0.5, 0.0]])
FEATURES = jnp.broadcast_to(jnp.eye(4), (G, T, 4))


@jit
def route(fraction, train_carry=None):
    router = made(normalize_inputs=False, temperature_end=0.5)
    return router({'kernel': LOGITS}, {}, FEATURES, context(fraction, carry=train_carry))


def test_modules_are_drawn_at_random_first_each_alone_with_gate_one():
    router = made(normalize_inputs=False)
    x = jnp.broadcast_to(FEATURES[:, :1], (G, 300, 4))
    wide = dataclasses.replace(context(0.49), valid=jnp.ones((G, 300), bool))
    routing = jit(lambda x: router({'kernel': LOGITS}, {}, x, wide))(x)
    assert (np.asarray(routing.active) == [True, False, False]).all()
    assert (np.asarray(routing.gate) == [1.0, 0.0, 0.0]).all()
    counts = np.bincount(np.asarray(routing.expert_of_choice[..., 0]).ravel(), minlength=3)
    assert (abs(counts - 200) < 60).all()  # 600 draws of 3: 11.5 (sd)


@pytest.mark.parametrize('fraction, tau', [(0.5, 1.0), (0.75, 0.75), (1.0, 0.5)])
def test_then_outputs_are_mixed_ever_harder(fraction, tau):
    routing = route(fraction)
    each = jax.nn.softmax(LOGITS / tau)
    np.testing.assert_allclose(routing.probs[0], each, rtol=1e-6)
    assert np.asarray(routing.active).all() and float(routing.temperature) == tau
    np.testing.assert_allclose(routing.gate[0], np.sort(each, -1)[:, ::-1], rtol=1e-6)
    assert routing.expert_of_choice[0, 1].tolist() == [2, 1, 0]


def test_in_evaluation_a_token_takes_its_likeliest_module_alone():
    routing = made(normalize_inputs=False)(
        {'kernel': LOGITS}, {}, FEATURES, context(1.0, train=False)
    )
    assert routing.expert_of_choice[0, :, 0].tolist() == [0, 2, 1, 0]
    assert (np.asarray(routing.active) == [True, False, False]).all()
    assert (np.asarray(routing.gate) == [1.0, 0.0, 0.0]).all()


def budget(target, layers_of_logits, valid=None):
    """The loss of each of two layers, [2, G]."""
    carry, found = None, []
    for n, logits in enumerate(layers_of_logits):
        router = made(layer=n, normalize_inputs=False, temperature_end=1.0, random_until=0.0)
        ctx = context(1.0, carry=carry, valid=valid)
        routing = router({'kernel': logits}, {}, FEATURES, ctx)
        carry = routing.carry
        found.append(losses.budget(routing, ctx, View(router.place, BudgetArgs(target))))
    return jnp.stack(found)


def test_the_budget_is_of_the_mean_over_tokens_and_layers():
    """Large modules get 3 / 4 in the first layer and 1 / 4 in the second: 1 / 2 on the whole."""
    first = jnp.log(jnp.tile(jnp.asarray([[0.75, 0.15, 0.1]]), (4, 1)))
    second = jnp.log(jnp.tile(jnp.asarray([[0.25, 0.35, 0.4]]), (4, 1)))
    np.testing.assert_allclose(jit(functools.partial(budget, 0.5))([first, second]), 0, atol=1e-12)
    np.testing.assert_allclose(
        jit(functools.partial(budget, 0.2))([first, second]), [[0, 0], [0.09, 0.09]], rtol=1e-5
    )
    valid = np.asarray([[True, True, False, False], [False] * 4])
    mixed = second.at[2:].set(first[0])  # the last two tokens are padding in one group
    got = jit(lambda logits: budget(0.0, logits, valid))([mixed, mixed])
    np.testing.assert_allclose(got, [[0, 0], [0.0625, 0]], rtol=1e-5)
    # both layers learn from it
    d = jit(jax.grad(lambda logits: budget(0.2, logits).sum()))([first, second])
    assert all((np.asarray(g) != 0).any() for g in d)


def test_without_kinds_all_modules_are_large():
    router = Duo(DuoArgs(), Place(3, 2))
    kernel = normal(0, 4, 3)
    routing = router({'kernel': kernel}, {}, FEATURES, context(0.9))
    np.testing.assert_allclose(routing.aux['large'], 1, rtol=1e-6)
