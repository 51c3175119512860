"""Experts that differ: how ids are dealt out, what a layer of them computes, on any mesh.

Axes: B tokens, E experts, D width, F hidden width.
"""

import types
from fractions import Fraction

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from layer_cases import TRAIN, init, jit, moe, normal

from moe_vision.common.errors import UserError
from moe_vision.common.place import Place
from moe_vision.config.kinds import Kind, kind_of_id, skips
from moe_vision.layers import Step
from moe_vision.layers.exchange import run_plan
from moe_vision.layers.moe import make_router
from moe_vision.routing.interventions import ABLATE, Intervention
from moe_vision.routing.plan import index_plan
from moe_vision.routing.types import Context, Routing

D, F = 8, 16
KINDS = ({'count': 4}, {'count': 2, 'divide': 4}, {'expert': 'skip', 'count': 2})
ROOM = {'capacity_factor': float('inf'), 'eval_capacity_factor': float('inf')}


def layer(**kwargs):
    return moe(6, hidden=F, kinds=KINDS, **kwargs)


@pytest.mark.parametrize(
    'counts, ids',
    [
        ((4, 2), (0, 0, 1, 0, 0, 1)),  # two blocks
        ((2, 4), (0, 1, 1, 0, 1, 1)),
        ((1, 1), (0, 1)),
        ((3, 2), (0, 0, 0, 1, 1)),  # one block: no number but 1 divides both
        ((3,), (0, 0, 0)),
        ((2, 2, 2), (0, 1, 2, 0, 1, 2)),
    ],
)
def test_ids_are_dealt_out_in_blocks(counts, ids):
    """A device of n gets E / n consecutive ids, and its share of every kind."""
    kinds = [Kind(count=c) for c in counts]
    assert kind_of_id([*kinds, Kind('skip', count=3)]) == ids
    assert skips([*kinds, Kind('skip', count=3)]) == 3 and skips(kinds) == 0
    for n in (n for n in (1, 2, 3, 4) if all(c % n == 0 for c in counts)):
        for part in np.split(np.asarray(ids), n):
            assert [int((part == k).sum()) for k in range(len(counts))] == [c // n for c in counts]


def by_hand(variables, made, x):
    """The output of each id, skips included: [N, B, D]."""
    bank, each, seen = variables['params']['experts'], [], [0, 0]
    for kind in made.place.kinds:
        w = {n: bank[f'kind_{kind}_{n}'][seen[kind]] for n in ('in_kernel', 'in_bias')}
        out = {n: bank[f'kind_{kind}_{n}'][seen[kind]] for n in ('out_kernel', 'out_bias')}
        seen[kind] += 1
        h = jax.nn.gelu(x @ w['in_kernel'] + w['in_bias'])
        each.append(h @ out['out_kernel'] + out['out_bias'])
    return jnp.stack(each + [jnp.zeros_like(x)] * made.place.skips)


@pytest.fixture(scope='module')
def given():
    x = normal(0, 16, D)
    return init(layer(**ROOM), x), x


def test_parameters_are_stacked_by_kind_and_the_router_has_a_column_for_each_id(given):
    params = given[0]['params']
    shapes = {n: w.shape for n, w in params['experts'].items() if n.endswith('kernel')}
    assert shapes == {
        'kind_0_in_kernel': (4, D, F),
        'kind_0_out_kernel': (4, F, D),
        'kind_1_in_kernel': (2, D, F // 4),
        'kind_1_out_kernel': (2, F // 4, D),
    }
    assert params['router']['kernel'].shape == (D, 8)
    begun = jit(lambda x: layer().init(jax.random.key(0), x, TRAIN))(given[1])
    bank = begun['params']['experts']
    flat = np.asarray(bank['kind_0_in_kernel']).reshape(4, -1)  # drawn independently
    assert abs(np.corrcoef(flat) - np.eye(4)).max() < 0.4  # 128 values: 0.09 (sd)


def test_the_layer_is_the_gated_sum_over_experts_that_differ(given):
    variables, x = given

    @jit
    def both(variables, x):
        y, info = layer(**ROOM).apply(variables, x, TRAIN)
        choices = info['choices']
        each = by_hand(variables, layer(), x)[choices['expert'], jnp.arange(16)[:, None]]
        return y, (choices['gate'][..., None] * each).sum(1), info

    y, want, info = both(variables, x)
    chex.assert_trees_all_close(y, want, atol=1e-5)
    ids = np.asarray(info['choices']['expert'])
    assert set(ids.ravel()) >= {0, 2, 6}  # of every kind, and a null one
    np.testing.assert_array_equal(info['choices']['kept'], ids < 6)
    sums = info['telemetry']
    np.testing.assert_array_equal(sums['chosen'], np.bincount(ids.ravel(), minlength=8))
    np.testing.assert_array_equal(sums['kept'], sums['chosen'][:6])
    assert sums['dropped'] == 0 and sums['choices'] == (ids < 6).sum()


def test_one_token_at_a_time_runs_the_experts_that_it_chose(given):
    variables, x = given
    together = jit(lambda x: layer(**ROOM).apply(variables, x, Step())[0])(x)
    alone = jit(lambda row: layer(**ROOM | {'group_size': 1}).apply(variables, row, Step())[0])
    rows = jnp.concatenate([alone(x[i : i + 1]) for i in range(16)])
    chex.assert_trees_all_close(rows, together, atol=1e-5)


def test_an_intervention_takes_one_of_them_away(given):
    variables, x = given
    step = Step(key=jax.random.key(0), intervention=Intervention(ABLATE, 0, 2))
    made = layer(**ROOM)
    info = jit(lambda x: made.apply(variables, x, step)[1])(x)
    ids, kept = (np.asarray(info['choices'][n]) for n in ('expert', 'kept'))
    assert (ids == 2).any() and not kept[ids == 2].any() and kept[(ids < 6) & (ids != 2)].all()


def test_each_device_runs_its_share_of_every_kind(given):
    """The exchange on two devices of the expert axis, which a vmap with a name stands for."""
    variables, x = given
    made, bank = layer(), variables['params']['experts']
    experts = made.make_experts(D)
    ids = jnp.asarray(np.random.default_rng(1).integers(0, 8, (2, 1, 8, 2)), jnp.int32)
    gate, tokens = jnp.abs(normal(3, 2, 1, 8, 2)), x.reshape(2, 1, 8, D)
    mesh = types.SimpleNamespace(shape={'data': 1, 'expert': 2})

    def on_device(bank, ids, gate, x):
        routing = Routing(None, None, ids, gate, jnp.ones(ids.shape, bool))
        plan = index_plan(routing, 6, 16)
        y = run_plan(plan, x, experts, bank, 6, mesh, False, True)
        whole = run_plan(
            plan, x, experts, bank, 6, mesh, True, True
        )  # as if groups spanned devices
        return y, whole, plan.expert_of_choice

    halves = jax.tree.map(lambda w: w.reshape(2, -1, *w.shape[1:]), bank)
    y, parts, _ = jit(jax.vmap(on_device, axis_name='expert'))(halves, ids, gate, tokens)
    each = by_hand(variables, made, x).reshape(8, 2, 8, D)
    want = jnp.stack(
        [
            (gate[d, 0, ..., None] * each[ids[d, 0], d, jnp.arange(8)[:, None]]).sum(1)
            for d in range(2)
        ]
    )
    chex.assert_trees_all_close(y[:, 0], want, atol=1e-5)
    own = np.asarray(ids[:, 0] // 3 == np.arange(2)[:, None, None])  # ids 0 to 2, ids 3 to 5
    mine = jnp.stack(
        [
            ((gate[d, 0] * own[d])[..., None] * each[ids[d, 0], d, jnp.arange(8)[:, None]]).sum(1)
            for d in range(2)
        ]
    )
    chex.assert_trees_all_close(parts[:, 0], mine, atol=1e-5)


def test_seeds_together(given):
    x = given[1]
    seeds = [init(layer(**ROOM), x, seed=seed) for seed in range(2)]
    few = layer(**ROOM | {'group_size': 1})

    def run(variables):
        many = layer(**ROOM).apply(variables, x, TRAIN)[0]
        return many, few.apply(variables, x[:1], Step())[0]

    together = jit(jax.vmap(run))(jax.tree.map(lambda *a: jnp.stack(a), *seeds))
    alone = jit(run)
    for n, variables in enumerate(seeds):
        chex.assert_trees_all_close(
            jax.tree.map(lambda a, n=n: a[n], together), alone(variables), atol=1e-5
        )


@pytest.mark.parametrize(
    'router, args, choices',
    [
        ('top_k', {}, Fraction(8, 5)),
        ('remoe', {}, Fraction(8, 5)),
        ('dynmole', {}, Fraction(3, 2)),  # what finds room
        ('dynamoe', {'rule': 'percentile', 'level': 0.4}, Fraction(12, 5)),  # 5 - 1 - 1 of 5 ids
        ('dynamoe', {'rule': 'quantile', 'level': 0.5}, Fraction(2)),
        ('dynamoe', {'rule': 'top_p', 'level': 0.7}, Fraction(3, 2)),
    ],
)
def test_choices_of_true_experts_where_one_of_five_ids_is_a_null_expert(router, args, choices):
    """Balanced choices take true experts four times of five. There is room for 3 of 8 tokens."""
    made = make_router(router, args, Place(4, 2, 8, skips=1))
    assert made.num_ids == 5 and made.choices(3) == choices and made.room(3) == Fraction(3, 2)


def test_no_class_is_taught_to_a_null_expert():
    made = make_router('supervised', {}, Place(4, 2, 4, skips=1))
    context = Context(
        valid=jnp.ones((1, 4), bool),
        key=None,
        group=jnp.zeros(1, jnp.int32),
        labels=jnp.asarray([[0, 3, 4, 9]]),
        train=True,
    )
    routing = made({'kernel': jnp.zeros((2, 5))}, {}, jnp.zeros((1, 4, 2)), context)
    assert routing.superclass.tolist() == [[0, 3, 0, 1]]


def test_a_loss_that_reads_first_matrices_is_told_that_experts_differ():
    with pytest.raises(UserError, match='kinds differ, so they have no first_matrix in common'):
        layer().make_experts(D).first_matrix({})


def test_gradients_reach_every_kind(given):
    variables, x = given
    grads = jit(jax.grad(lambda v: jnp.sin(layer(**ROOM).apply(v, x, TRAIN)[0]).sum()))(variables)
    assert all((np.asarray(g) != 0).any() for g in jax.tree.leaves(grads))


def test_a_width_is_divided_and_rounded_up_to_what_fits():
    kinds = ({'count': 1}, {'divide': 3}, {'hidden': 8, 'args': {'norm_groups': 2, 'kernel': 1}})
    made = moe(3, expert='conv', hidden=F, kinds=kinds).make_experts(D)
    assert [e.hidden for e, _ in made.kinds] == [16, 8, 8]  # 16 / 3 is 5.3; norms of 4 groups
    assert made.kinds[2][0].shapes()['conv1'][0] == (1, 1, D, 8)
    assert made.reference is made.kinds[0][0]


@pytest.mark.parametrize(
    'kinds, error, part',
    [
        (({'count': 2},), ValueError, 'num_experts is 3, but kinds has 2 true experts'),
        (({'count': 3, 'wide': 2},), UserError, "'kinds.wide'"),
        (({'count': 2}, {'expert': 'mpl'}), UserError, "'mlp'"),
        (({'count': 2}, {'expert': 'film'}), UserError, 'mixes Mlp and Film'),
        (({'count': 0}, {'count': 3}), UserError, 'count is 0'),
        (({'count': 3}, {'expert': 'skip', 'hidden': 2}), UserError, 'hidden is set to 2'),
    ],
)
def test_kinds_that_cannot_be(kinds, error, part):
    with pytest.raises(error, match=part.replace('(', r'\(')) as told:
        jax.eval_shape(lambda x: moe(3, kinds=kinds).init(jax.random.key(0), x), normal(0, 8, D))
    assert '\n' not in str(told.value)
