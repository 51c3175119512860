"""Changes to routes after they are made.

Axes: G groups, T tokens, K choices, E experts, D width.
"""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from routing_cases import CASES, D, E, G, case_id, context, inputs, jit, make, normal
from slow import except_for

from moe_vision.layers import MoE, Step
from moe_vision.routing import interventions
from moe_vision.routing.interventions import ABLATE, DRAW, NONE, SHUFFLE, Intervention
from moe_vision.routing.types import SoftRouting

VALID = np.array([[1, 0, 1, 1, 0, 1, 1, 1], [0, 1, 1, 1, 1, 1, 0, 1]], bool)
CTX = context(VALID, train=False)
# One router of each form of routes: k choices, ids of null experts, choices of experts, a number of
# choices that varies, weights of all experts.
KINDS = ('top_k', 'null_experts', 'expert_choice', 'dynmole', 'soft')
CASES = [case for case in CASES if not case[1] or case[0] == 'soft']
every_router = pytest.mark.parametrize(
    'case', except_for([case for case in CASES if case[0] in KINDS], CASES), ids=case_id
)


@jit
def changed(routing, kind, expert):
    return Intervention(kind, 0, expert)(routing, CTX, 0, E)


def routed(case):
    """A routing, and all interventions on it, by one compiled program for routings alike."""
    router, given = make(case), inputs(case)
    routing = jit(router)(given['params'], given['state'], given['features'], CTX)

    def change(kind, expert=0):
        return jax.device_get(changed(routing, kind, expert))

    return jax.device_get(routing), change


def weights(routing):
    return routing.combine if isinstance(routing, SoftRouting) else routing.gate


@every_router
def test_every_router_can_be_intervened_upon(case):
    routing, change = routed(case)
    soft = isinstance(routing, SoftRouting)
    chex.assert_trees_all_equal(change(NONE), routing)
    for kind in (ABLATE, SHUFFLE, DRAW):
        new = change(kind, 1)
        np.testing.assert_array_equal(new.probs, routing.probs)
        chex.assert_trees_all_equal_shapes_and_dtypes(new, change(NONE))
        if not soft:
            assert not new.active[~VALID].any()

    ablated = change(ABLATE, 1)
    if soft:
        want = routing.combine.copy()
        want[:, :, 1] = 0
        np.testing.assert_array_equal(ablated.combine, want)
    else:
        np.testing.assert_array_equal(ablated.gate, routing.gate)  # nothing is renormalised
        np.testing.assert_array_equal(
            ablated.active, routing.active & (routing.expert_of_choice != 1)
        )

    shuffled, drawn = change(SHUFFLE), change(DRAW)
    for g in range(G):  # each row of a group is found once
        old, new = weights(routing)[g][VALID[g]], weights(shuffled)[g][VALID[g]]
        assert sorted(new.reshape(len(new), -1).tolist()) == sorted(
            old.reshape(len(old), -1).tolist()
        )
    if soft:
        np.testing.assert_allclose(
            np.sort(drawn.combine.sum(-1)), np.sort(routing.combine.sum(-1)), rtol=1e-6
        )
        np.testing.assert_array_equal(drawn.dispatch, routing.dispatch)
    else:
        ids = drawn.expert_of_choice
        np.testing.assert_array_equal(drawn.gate, routing.gate)
        np.testing.assert_array_equal(drawn.active, routing.active)
        null = routing.expert_of_choice >= E
        np.testing.assert_array_equal(ids[null], routing.expert_of_choice[null])
        assert ((ids < E) == ~null).all() and (np.diff(np.sort(ids, -1), axis=-1) > 0).all()


def test_drawn_routes_are_uniform():
    router, x = make(('top_k', ())), jnp.broadcast_to(normal(0, 1, 1, D), (1, 4000, D))
    ctx = context(groups=1, tokens=4000)
    routing = router({'kernel': normal(1, D, E)}, {}, x, ctx)
    assert len(np.unique(routing.expert_of_choice)) == 2  # all the same two
    ids = np.asarray(jit(lambda r: interventions.draw(r, ctx, E))(routing).expert_of_choice[0])
    pairs = np.bincount(ids[:, 0] * E + ids[:, 1], minlength=E * E).reshape(E, E) / 4000
    np.testing.assert_allclose(pairs, (1 - np.eye(E)) / 12, atol=0.02)  # sd 0.0044


def test_drawing_more_choices_than_experts_keeps_null_ones():
    router = make(('null_experts', (('null_experts', 6),)), num_experts=3, k=7)
    ctx = context(tokens=8)
    routing = router({'kernel': normal(1, D, 9)}, {}, normal(0, G, 8, D), ctx)
    ids = np.asarray(interventions.draw(routing, ctx, 3).expert_of_choice)
    assert (np.diff(np.sort(ids, -1), axis=-1) > 0).all()  # distinct still
    np.testing.assert_array_equal(np.sort(ids)[..., 3:], np.sort(routing.expert_of_choice)[..., 3:])


def test_a_shuffle_stays_within_its_group_and_draws_from_its_number():
    routing, _ = routed(('top_k', ()))
    shuffled = jit(lambda r, ctx: interventions.shuffle(r, ctx))
    both = shuffled(routing, CTX)

    def swap(tree):
        return jax.tree.map(lambda a: a[::-1] if jnp.ndim(a) else a, tree)

    ctx = dataclasses.replace(CTX, valid=CTX.valid[::-1], group=CTX.group[::-1])
    chex.assert_trees_all_equal(swap(shuffled(swap(routing), ctx)), both)


X = normal(3, 16, D)


class Network:
    """One routed layer of 8 images per group, all of which an intervention may meet."""

    def __init__(self, **given):
        self.layer = MoE(E, 2, 8, 6, eval_capacity_factor=0.75, **given)
        shapes = jax.eval_shape(lambda x: self.layer.init(jax.random.key(0), x), X)
        self.variables = jax.tree_util.tree_map_with_path(
            lambda path, a: normal(len(str(path)), *a.shape), shapes
        )
        self.run = jit(
            lambda intervention: self.layer.apply(
                self.variables, X, Step(key=jax.random.key(1), intervention=intervention)
            )
        )


@pytest.fixture(scope='module')
def network():
    return Network(layer=1)


def of(kind, layer=-1, expert=0):
    return Intervention(jnp.int32(kind), jnp.int32(layer), jnp.int32(expert))


def test_a_layer_without_its_expert_lacks_what_that_expert_gave(network):
    y, info = network.run(of(NONE))
    kept, ids = info['choices']['kept'], info['choices']['expert']
    gone = [network.run(of(ABLATE, 1, e)) for e in range(E)]
    for e in range(E):
        mine = np.asarray((kept & (ids == e)).any(-1))
        assert mine.any() and not mine.all()
        np.testing.assert_array_equal(gone[e][0][~mine], y[~mine])  # others keep their slots
        assert (gone[e][0][mine] != y[mine]).any(-1).all()
    # What the experts give adds up: without each in turn, E - 1 times everything.
    np.testing.assert_allclose(sum(g for g, _ in gone), (E - 1) * y, rtol=1e-4, atol=1e-5)


def test_only_the_layer_that_is_meant_is_changed(network):
    plain = network.run(of(NONE))
    for kind in (ABLATE, SHUFFLE, DRAW):
        chex.assert_trees_all_equal(network.run(of(kind, layer=0)), plain)
        for layer in (-1, 1):
            assert (network.run(of(kind, layer))[0] != plain[0]).any()
    assert network.run._cache_size() == 1  # one program for all of them


def test_without_an_intervention_the_program_is_what_it_was(network):
    """Nothing of it is left in the trace, and the bits are those of the neutral one."""

    def trace(step):
        return str(jax.make_jaxpr(lambda x: network.layer.apply(network.variables, x, step))(X))

    assert 'cond' not in trace(Step(key=jax.random.key(1)))
    assert 'cond' in trace(Step(key=jax.random.key(1), intervention=of(NONE)))
    same = {'rtol': 1e-6, 'atol': 1e-6}  # tests compile quickly, so sums round differently
    chex.assert_trees_all_close(network.run(None), network.run(of(NONE)), **same)
