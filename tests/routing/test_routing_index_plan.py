"""The index plan against one-hot einsums, written independently, and against hand-made cases."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from routing_cases import PRIORITIES, D, E, F, equations, experts, jit, normal, one_hot_oracle

from moe_vision.routing.plan import index_plan
from moe_vision.routing.types import Routing

G, T, N = 2, 9, E + 2  # the last two ids are null experts


def drawn(seed, k):
    """A routing as no router would make it: null ids, choices not made, gates of any sign."""
    rng = np.random.default_rng(seed)
    ids = jnp.asarray(rng.random((G, T, N)).argsort(-1)[..., :k], jnp.int32)
    active = jnp.asarray(rng.random((G, T, k)) < 0.85)
    gate = jnp.asarray(rng.normal(size=(G, T, k)), jnp.float32)
    gate = gate.at[:, 1].set(gate[:, 0])  # a tie: the first of them goes first
    x, w, b = normal((seed, 1), G, T, D), normal((seed, 2), E, D, F), normal((seed, 3), E, 1, F)
    return ids, active, gate, x, (w, b)


def routing_of(ids, gate, active):
    none = jnp.zeros((*ids.shape[:2], N))
    return Routing(probs=none, logits=none, expert_of_choice=ids, gate=gate, active=active)


def keys(groups=G):
    return jax.random.split(jax.random.key(7), groups)


@functools.partial(jit, static_argnums=(2, 3, 4))
def plan_of(ids, gate, num_experts, capacity, priority='token'):
    """The plan of these choices, all made."""
    ids = jnp.asarray(ids, jnp.int32)
    routing = routing_of(ids, jnp.broadcast_to(jnp.asarray(gate), ids.shape), ids >= 0)
    return index_plan(routing, num_experts, capacity, priority, keys(ids.shape[0]))


def ranks(priority, gate, active):
    """Whose turn it is, [G, T], told without the plan's own ordering."""
    place = np.broadcast_to(np.arange(T), (G, T))
    if priority == 'token':
        return place
    if priority == 'gate':
        best = np.where(active, gate, -np.inf).max(-1)
        ahead = (best[:, None] > best[:, :, None]) | (
            (best[:, None] == best[:, :, None]) & (place[:, None] < place[:, :, None])
        )
        return ahead.sum(-1)
    # At random: where everybody wants expert 0 and there is room, slots tell the order.
    return np.asarray(plan_of(np.zeros((G, T, 1)), gate[..., :1], E, T, 'random').slot[..., 0] % T)


def ours(priority, capacity, gate, x, weights, ids, active):
    plan = index_plan(routing_of(ids, gate, active), E, capacity, priority, keys())
    y = plan.apply(x, experts(weights))
    return jnp.sum(jnp.sin(y)), (y, plan)


def theirs(capacity, gate, x, weights, ids, active, rank):
    y, dispatch = jax.vmap(lambda *a: one_hot_oracle(a[0], weights, *a[1:], capacity))(
        x, ids, gate, active, rank
    )
    return jnp.sum(jnp.sin(y)), (y, dispatch)


@functools.cache
def gradients(which, *static):
    return jit(jax.value_and_grad(functools.partial(which, *static), (0, 1, 2), has_aux=True))


@pytest.mark.parametrize(
    'k, capacity, priority',
    [
        (1, 2, 'token'),
        (1, 2, 'gate'),
        *((2, 3, p) for p in PRIORITIES),
        (4, 4, 'token'),
        (4, 4, 'random'),
    ],
)
def test_equals_one_hot_einsums_forward_and_backward(k, capacity, priority):
    for seed in range(3):
        ids, active, gate, x, weights = drawn(seed, k)
        (_, (y, plan)), grads = gradients(ours, priority, capacity)(gate, x, weights, ids, active)
        rank = jnp.asarray(ranks(priority, gate, active))
        (_, (want, dispatch)), want_grads = gradients(theirs, capacity)(
            gate, x, weights, ids, active, rank
        )
        chex.assert_shape(y, (G, T, F))
        np.testing.assert_array_equal(plan.filled, dispatch.any(1).swapaxes(0, 1))
        chex.assert_trees_all_close(y, want, atol=1e-5)
        chex.assert_trees_all_close(grads, want_grads, atol=2e-5)
        assert bool((plan.wants & ~plan.keep).any())  # else nothing was at stake


def test_vmap_over_seeds_agrees():
    many = jax.tree.map(lambda *a: jnp.stack(a), *[drawn(seed, 2) for seed in range(3)])
    run = jax.value_and_grad(functools.partial(ours, 'gate', 3), (0, 1, 2), has_aux=True)
    together = jit(jax.vmap(run))(*(many[i] for i in (2, 3, 4, 0, 1)))
    for seed in range(3):
        ids, active, gate, x, weights = drawn(seed, 2)
        alone = gradients(ours, 'gate', 3)(gate, x, weights, ids, active)
        chex.assert_trees_all_close(
            jax.tree.map(lambda a, s=seed: a[s], together), alone, atol=1e-5
        )


def test_permuting_experts_changes_nothing():
    perm = np.array([2, 0, 3, 1])  # new expert j is old expert perm[j]
    new_id = jnp.asarray([*np.argsort(perm), 4, 5])
    ids, active, gate, x, weights = drawn(0, 2)
    run = gradients(ours, 'token', 3)
    (_, (y, plan)), grads = run(gate, x, weights, ids, active)
    moved = jax.tree.map(lambda w: w[perm], weights)
    (_, (y2, plan2)), grads2 = run(gate, x, moved, new_id[ids], active)
    chex.assert_trees_all_close(y2, y, atol=1e-6)
    np.testing.assert_array_equal(plan2.keep, plan.keep)
    chex.assert_trees_all_close(grads2[2], jax.tree.map(lambda w: w[perm], grads[2]), atol=1e-6)


FOUR = {'ids': [0, 0, 0, 1], 'gate': [0.2, 0.9, 0.5, 0.7]}


@pytest.mark.parametrize(
    'priority, kept',
    [
        ('token', [True, True, False, True]),  # expert 0 has two slots: tokens 0 and 1 come first
        ('gate', [False, True, True, True]),
    ],
)  # ... 0.9 and 0.5 come before 0.2
def test_four_tokens_two_experts(priority, kept):
    ids, gate = (np.array(FOUR[name])[None, :, None] for name in ('ids', 'gate'))
    plan = plan_of(ids, gate, 2, 2, priority)
    np.testing.assert_array_equal(plan.keep[0, :, 0], kept)
    x = jnp.asarray([1.0, 2.0, 4.0, 8.0]).reshape(1, 4, 1)
    y = jit(
        lambda plan, x: plan.apply(
            x, lambda slots: slots * jnp.asarray([10.0, 100.0])[:, None, None] + 1
        )
    )(plan, x)
    # gate * (10 x + 1) for expert 0, gate * (100 x + 1) for expert 1, zero where dropped
    full = np.array([0.2 * 11, 0.9 * 21, 0.5 * 41, 0.7 * 801])
    np.testing.assert_allclose(y[0, :, 0], full * kept, rtol=1e-6)
    assert plan.capacity == 2 and plan.filled.sum() == 3


def test_all_first_choices_come_before_all_second_ones():
    # Token 0's second choice and token 3's first one want the last slot of expert 1.
    ids = np.array([[[0, 1], [2, 0], [1, 2], [1, 0]]])
    plan = plan_of(ids, 0.5, 3, 2)
    # First choices: 0 -> e0, 1 -> e2, 2 -> e1, 3 -> e1: all fit. Second ones: 0 -> e1 full;
    # 1 -> e0 takes its last slot; 2 -> e2 takes its last slot; 3 -> e0 full.
    np.testing.assert_array_equal(
        plan.keep[0], [[True, False], [True, True], [True, True], [True, False]]
    )
    np.testing.assert_array_equal(plan.expert_of_choice, ids)  # a dropped choice knows its expert


def test_priority_by_gate_drops_the_least_certain():
    rng = np.random.default_rng(0)
    ids, gate = rng.integers(0, E, (G, T, 1)), rng.random((G, T, 1), np.float32)
    keep = np.asarray(plan_of(ids, gate, E, 1, 'gate').keep)
    assert not keep.all()
    for g in range(G):
        for e in range(E):
            kept, lost = (ids[g] == e) & keep[g], (ids[g] == e) & ~keep[g]
            if lost.any():
                assert gate[g][kept].min() >= gate[g][lost].max()


def test_random_priority_is_fair_and_follows_its_keys():
    ids = jnp.zeros((64, T, 1), jnp.int32)
    routing = routing_of(ids, jnp.ones(ids.shape), ids == 0)
    run = jit(lambda key: index_plan(routing, E, 3, 'random', jax.random.split(key, 64)).keep)
    kept = run(jax.random.key(0))
    np.testing.assert_array_equal(kept, run(jax.random.key(0)))
    assert (kept != run(jax.random.key(1))).any()
    # 3 slots for 9 tokens: each is kept in a third of 64 groups, 21.3 +- 3.8 (sd); 5 sd allowed.
    np.testing.assert_allclose(kept.sum((0, 2)), 64 / 3, atol=5 * 3.8)


def test_dropped_choices_contribute_exactly_zero_even_if_not_finite():
    plan = plan_of(np.zeros((1, 4, 1)), np.array([[[1.0], [1.0], [np.nan], [np.inf]]]), 1, 2)
    x = jnp.asarray([1.0, 2.0, jnp.nan, jnp.inf]).reshape(1, 4, 1)

    @jit
    def both(plan, x):
        y, vjp = jax.vjp(lambda x: plan.apply(x, lambda s: 3 * s), x)
        return y[0, :, 0], vjp(jnp.ones_like(y))[0][0, :, 0]

    np.testing.assert_array_equal(both(plan, x), [[3, 6, 0, 0], [3, 3, 0, 0]])


def test_payload_may_be_a_map_and_may_change_shape():
    ids, _, gate, *_ = drawn(0, 2)
    plan, maps = plan_of(ids, gate, E, 3), normal(4, G, T, 2, 3, D)
    y = jit(lambda plan, x: plan.apply(x, lambda s: s[:, :, 0] * 2))(plan, maps)
    chex.assert_shape(y, (G, T, 3, D))
    first = maps[..., 0, :, :].reshape(G, T, -1)
    flat = jit(lambda plan, x: plan.apply(x, lambda s: s * 2))(plan, first)
    chex.assert_trees_all_close(y.reshape(G, T, -1), flat)


def test_building_costs_no_product_of_tokens_experts_and_slots():
    t, e, c = 256, 32, 64
    ids = jnp.zeros((1, t, 2), jnp.int32)
    for priority in PRIORITIES:
        built = jax.make_jaxpr(
            lambda gate, p=priority: index_plan(
                routing_of(ids, gate, ids == 0), e, c, p, jax.random.split(jax.random.key(0), 1)
            )
        )
        largest = max(
            v.aval.size for eqn in equations(built(jnp.ones(ids.shape)).jaxpr) for v in eqn.outvars
        )
        # The tables are [E, C] = 2,048 and [T, K] = 512 (bounds: E + 1 rows); T E C is 524,288.
        assert largest <= 2 * max(e * c, t * 2)


def test_refuses_what_it_cannot_number():
    ids = jax.ShapeDtypeStruct((1, 2**28, 2), jnp.int32)  # (7 + 1) * 2 * 2**28 = 2**32
    with pytest.raises(ValueError, match='too large'):
        jax.eval_shape(lambda i: index_plan(routing_of(i, i, i == 0), 7, 4), ids)
    small = jnp.zeros((1, 2, 1), jnp.int32)
    with pytest.raises(ValueError, match='keys'):
        index_plan(routing_of(small, small, small == 0), 2, 1, 'random')
    with pytest.raises(ValueError, match='fifo'):
        index_plan(routing_of(small, small, small == 0), 2, 1, 'fifo')


def test_the_parts_of_experts_add_up_to_the_plan():
    ids, active, gate, x, (w, b) = drawn(5, 2)

    @jit
    def both(gate, x, w, b):
        def whole(gate, x, w, b):
            plan = index_plan(routing_of(ids, gate, active), E, 2)
            return plan.apply(x, experts((w, b)))

        def parts(gate, x, w, b):
            plan = index_plan(routing_of(ids, gate, active), E, 2)
            return sum(
                plan.for_experts(jnp.int32(first), E // 2).apply(
                    x, experts((w[first : first + E // 2], b[first : first + E // 2]))
                )
                for first in (0, E // 2)
            )

        return [
            jax.value_and_grad(
                lambda *args, run=run: jnp.sum(jnp.sin(run(*args))), argnums=(0, 1, 2, 3)
            )(gate, x, w, b)
            for run in (whole, parts)
        ]

    want, found = both(gate, x, w, b)
    assert float(jnp.abs(want[1][1]).sum()) > 0
    chex.assert_trees_all_close(found, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('k, room', [(1, 2), (2, 2), (3, 2), (3, 100)])
def test_choices_one_by_one_give_what_buffers_give(k, room):
    """With room for all no slot is looked up."""
    ids, active, gate, x, weights = drawn(k, k)
    kernel, bias = weights

    def each(e, row):
        return jnp.tanh(row @ kernel[e]) + bias[e]

    def plan(ids, active, gate):
        return index_plan(routing_of(ids, gate, active), E, room)

    buffers, keep = jit(lambda *a: (plan(*a).apply(x, experts(weights)), plan(*a).keep))(
        ids, active, gate
    )
    wanted = (active & (ids < E)).sum()
    assert keep.sum() == wanted if room > 2 else 0 < keep.sum() < wanted
    one_by_one = jit(lambda *a: plan(*a).apply_each(x, each)).lower(ids, active, gate).compile()
    chex.assert_trees_all_close(one_by_one(ids, active, gate), buffers, atol=1e-6)
    assert ('sort' in one_by_one.as_text()) == (room == 2)
