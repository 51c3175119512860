"""Sinkhorn's plan, and the routers that route by it: S-BASE, BASE and SSR.

Axes: G groups, T tokens, E experts, K choices.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from routing_cases import context, jit, normal
from scipy.optimize import linear_sum_assignment

from moe_vision.common.errors import UserError
from moe_vision.common.place import Place
from moe_vision.config.router_args import SsrArgs
from moe_vision.layers.moe import make_router
from moe_vision.routing.routers.base import assign
from moe_vision.routing.sinkhorn import log_plan

G, T, E = 2, 12, 3
RAW = {'normalize_inputs': False}
VALID = np.ones((G, T), bool)
VALID[1, [0, 3, 4]] = False
plan = functools.partial(jit, static_argnums=3)(lambda *args: jnp.exp(log_plan(*args)))
SKEWED = normal(0, G, T, E) + jnp.asarray([3.0, 0.0, -1.0])  # most tokens like expert 0


@pytest.mark.parametrize('xi', [0.3, 1.0])
def test_rows_sum_to_one_and_columns_to_the_share_of_an_expert(xi):
    p = np.asarray(plan(SKEWED, VALID, xi, 200))
    np.testing.assert_allclose(p.sum(2)[VALID], 1, atol=1e-5)
    np.testing.assert_allclose((p * VALID[..., None]).sum(1), [[4] * E, [3] * E], atol=1e-4)


def test_it_is_the_plan_that_scaling_rows_and_columns_finds():
    k = np.exp(np.asarray(SKEWED, np.float64) / 0.5)
    for _ in range(1000):  # Sinkhorn and Knopp 1967
        k = k / k.sum(1, keepdims=True) * T / E
        k = k / k.sum(2, keepdims=True)
    np.testing.assert_allclose(plan(SKEWED, jnp.ones((G, T), bool), 0.5, 200), k, atol=1e-5)


def test_both_experts_are_used_where_scores_are_skewed():
    scores = jnp.asarray([[[0.95, 0.05], [0.90, 0.10]]])
    p = np.asarray(plan(scores, jnp.ones((1, 2), bool), 0.05, 200))
    # u and v leave the ratio P00 P11 / (P01 P10) = exp((0.95 + 0.10 - 0.05 - 0.90) / 0.05) = e^2
    np.testing.assert_allclose(p[0], [[0.731059, 0.268941], [0.268941, 0.731059]], atol=1e-5)


def test_much_entropy_makes_it_uniform_and_little_an_assignment():
    valid = jnp.ones((G, T), bool)
    np.testing.assert_allclose(plan(SKEWED, valid, 1e4, 200), 1 / E, atol=1e-3)
    sharp = np.asarray(plan(SKEWED, valid, 0.01, 2000))
    assert (np.abs(sharp - sharp.round()) < 0.02).mean() > 0.9  # but for near ties
    assert (sharp.round().sum(1) == T / E).mean() > 0.5


def test_the_gradient_passes_by_the_iterations():
    weights = normal(3, G, T, E)

    def loss(scores):
        return jnp.sum(log_plan(scores, jnp.asarray(VALID), 0.5, 20) * weights)

    np.testing.assert_allclose(jit(jax.grad(loss))(SKEWED), weights / 0.5, rtol=1e-6)


@functools.cache
def compiled(name, args, k, train, tokens):
    """(scores [1, T, E], key) -> routing of a router whose logits are the scores."""
    router = make_router(name, RAW | dict(args), Place(E, k, tokens))

    def run(scores, key):
        ctx = dataclasses.replace(context(groups=1, tokens=tokens, train=train), key=key)
        return router({'kernel': jnp.eye(E)}, {}, scores, ctx)

    return jit(run)


def routed(name, scores, k=1, train=True, key=0, **args):
    run = compiled(name, tuple(args.items()), k, train, scores.shape[1])
    return run(scores, jax.random.key(key))


def loads(routing):
    ids = np.asarray(routing.expert_of_choice)[np.asarray(routing.active)]
    return np.bincount(ids, minlength=E)


def test_sinkhorn_balances_in_training_alone():
    scores, p = SKEWED[:1], np.asarray(jax.nn.softmax(SKEWED[:1]))
    plain = routed('sinkhorn', scores, train=False)
    np.testing.assert_array_equal(plain.expert_of_choice[..., 0], scores.argmax(-1))
    assert loads(plain).max() >= 10
    trained = routed('sinkhorn', scores, xi=0.3, iterations=200)
    assert loads(trained).max() <= 5  # 4 each if the plan were an assignment
    np.testing.assert_array_equal(
        trained.expert_of_choice[..., 0],
        np.asarray(plan(scores, jnp.ones((1, T), bool), 0.3, 200)).argmax(-1),
    )
    for routing in (plain, trained):
        want = np.take_along_axis(p, np.asarray(routing.expert_of_choice), -1)
        np.testing.assert_allclose(routing.gate, want, rtol=1e-5)
    ids = np.asarray(routed('sinkhorn', scores, gate='sigmoid').expert_of_choice)
    gate = routed('sinkhorn', scores, gate='sigmoid').gate
    s = np.take_along_axis(np.asarray(scores), ids, -1)
    np.testing.assert_allclose(gate, 1 / (1 + np.exp(-s)), rtol=1e-5)


def greedy(scores):
    """Pairs in the order of their scores, as long as token and expert have room."""
    room, done = [T // E] * E, {}
    for i in np.argsort(-scores.ravel(), kind='stable'):
        t, e = divmod(int(i), E)
        if t not in done and room[e]:
            done[t], room[e] = e, room[e] - 1
    return sum(scores[t, e] for t, e in done.items())


def test_base_assigns_as_many_to_each_and_nearly_as_well_as_an_exact_solver():
    shortfall = []
    for seed in range(5):
        scores = normal(seed, 1, T, E) + jnp.asarray([2.0, 0.0, -1.0])
        routing = routed('base', scores)
        assert loads(routing).tolist() == [T // E] * E
        s, ids = np.asarray(scores[0]), np.asarray(routing.expert_of_choice)[0]
        ours = np.take_along_axis(s, ids, -1).sum()
        rows, columns = linear_sum_assignment(-np.repeat(s, T // E, 1))
        best = s[rows, columns // (T // E)].sum()
        assert greedy(s) - 1e-4 <= ours <= best + 1e-4
        shortfall.append((best - ours) / np.abs(s).sum())
    assert np.mean(shortfall) < 0.01, shortfall
    np.testing.assert_allclose(  # the gate is sigmoid(h w)
        routing.gate[0], 1 / (1 + np.exp(-np.take_along_axis(s, ids, -1))), rtol=1e-5
    )
    plain = routed('base', scores, train=False)  # each takes its best
    np.testing.assert_array_equal(plain.expert_of_choice[..., 0], scores.argmax(-1))


def test_base_by_hand_and_with_padding():
    # Both tokens want expert 0; token 1 loses less by going to expert 1. Token 2 is padding.
    scores = jnp.asarray([[[5.0, 0.0], [4.0, 3.0], [9.0, 9.0]]])
    valid = jnp.asarray([[True, True, False]])
    taken = jit(lambda s: assign(log_plan(s, valid, 0.1, 50), valid, 1))(scores)
    np.testing.assert_array_equal(taken[0], [[True, False], [False, True], [False, False]])


def test_a_token_asks_on_until_it_has_its_experts():
    # Three tokens, four experts with two places each. Tokens 1 and 2 fill expert 1, so token
    # 0 takes expert 2 besides expert 0, which it has, although it likes that one best.
    scores = jnp.asarray([[[9.0, 5, 0, -1], [-1, 9, 8, 0], [-1, 9, 0, 8]]])
    taken = jit(lambda s: assign(s, jnp.ones((1, 3), bool), 2))(scores)
    np.testing.assert_array_equal(taken[0], [[1, 0, 1, 0], [0, 1, 1, 0], [0, 1, 0, 1]])
    # two tokens and three experts: one place each, though 2 / 3 is less than one
    taken = jit(lambda s: assign(s, jnp.asarray([[True, True, False]]), 1))(scores[..., :3])
    np.testing.assert_array_equal(taken[0], [[1, 0, 0], [0, 1, 0], [0, 0, 0]])


def test_base_gives_two_different_experts_where_k_is_2():
    routing = routed('base', SKEWED[:1], k=2)
    ids = np.asarray(routing.expert_of_choice)[0]
    assert (ids[:, 0] != ids[:, 1]).all() and loads(routing).max() == 2 * T // E
    assert np.asarray(routing.active).sum() >= 2 * T - 1  # one may find no second expert


def test_ssr_is_top_k_unless_a_step_is_balanced():
    scores = SKEWED[:1]
    plain = routed('top_k', scores, k=2)
    for routing in (
        routed('ssr', scores, k=2, probability=0.0),
        routed('ssr', scores, 2, False, probability=1.0),
    ):
        for name in ('expert_of_choice', 'gate', 'probs'):
            np.testing.assert_array_equal(getattr(routing, name), getattr(plain, name))
    p = np.asarray(plan(plain.probs, jnp.ones((1, T), bool), 0.05, 20))
    for key in range(2):  # every step
        balanced = routed('ssr', scores, k=2, key=key, probability=1.0)
        ids = np.argsort(-p, -1, kind='stable')[..., :2]
        np.testing.assert_array_equal(balanced.expert_of_choice, ids)
        mass = np.take_along_axis(p, ids, -1)
        np.testing.assert_allclose(balanced.gate, mass / mass.sum(-1, keepdims=True), rtol=1e-4)
    linear = routed('ssr', scores, k=2, probability=1.0, cost='linear', xi=0.5)
    p = np.asarray(plan(plain.logits, jnp.ones((1, T), bool), 0.5, 20))
    np.testing.assert_array_equal(linear.expert_of_choice, np.argsort(-p, -1)[..., :2])
    first = [
        np.bincount(np.asarray(r.expert_of_choice)[0, :, 0], minlength=E) for r in (balanced, plain)
    ]
    assert first[0].max() < first[1].max()  # second choices fall where mass is left


def test_ssr_draws_once_for_a_layer_and_step():
    plain = np.asarray(routed('top_k', SKEWED[:1], k=2).expert_of_choice)
    drawn = []
    for key in range(24):
        twice = [
            np.asarray(routed('ssr', SKEWED[:1], k=2, key=key, probability=0.5).expert_of_choice)
            for _ in range(2)
        ]
        np.testing.assert_array_equal(*twice)
        drawn.append((twice[0] != plain).any())
    assert 6 < sum(drawn) < 18


def test_ssr_teaches_the_router_where_k_is_1():
    """The plan's own gate would be 1."""
    scores = SKEWED[:1]
    routing = routed('ssr', scores, probability=1.0)
    p = np.asarray(routing.probs)
    np.testing.assert_allclose(
        routing.gate, np.take_along_axis(p, np.asarray(routing.expert_of_choice), -1), rtol=1e-6
    )


def test_a_probability_is_one():
    with pytest.raises(UserError, match='probability is 1.5'):
        SsrArgs(probability=1.5)
