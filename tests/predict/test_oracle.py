"""The oracle of a network with large, small and null experts, against every fixed policy.

Axes: P paths, B images, L routed layers.
"""

import dataclasses
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import train_cases

from moe_vision.common.errors import UserError
from moe_vision.predict import oracle
from moe_vision.predict.model import Model
from moe_vision.predict.oracle import Paths
from moe_vision.run_folder import checkpoints, record
from moe_vision.training.setup import Setup

DUO = {
    'model.name': 'vit',
    'model.args': {'width': 8, 'depth': 2, 'heads': 2, 'patch_size': 4},
    'model.moe.placement': 'every_1',
    'model.moe.router': 'duo',
    'model.moe.router_args': {},
    'model.moe.losses': {'budget': 1.0},
    'model.moe.num_experts': 2,
    'model.moe.kinds': ({}, {'divide': 16}, {'expert': 'skip'}),
    'model.moe.k': 3,
    'model.moe.group_size': 4,
    'train.ema_decay': 0.0,
}


NULLS = DUO | {
    'model.moe.router': 'null_experts',
    'model.moe.router_args': {'null_experts': 2},
    'model.moe.losses': {},
    'model.moe.kinds': (),
    'model.moe.k': 2,
}


def saved(config, folder):
    """(folder, model) of a run of one checkpoint, whose weights are far from the initial ones."""
    setup = Setup(config)
    record.write_config(str(folder), setup.config, 'mine.py', setup.info, setup.cost, 0)
    state = setup.fresh_state()
    params = jax.tree.map(lambda x: 1.5 * x + 0.1, state.params)
    with checkpoints.Checkpoints(str(folder), 1) as saves:
        saves.save(0, dataclasses.replace(state, params=params))
    return folder, Model(setup.config, setup.info, checkpoints.load_raw(str(folder), 'latest'))


def drawn(model):
    """Images, labels, and what the oracle measures on them."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (12, *model.info.image_shape)).astype(np.uint8)
    labels = rng.integers(0, 10, 12)
    return images, labels, oracle.measure(model, images, labels)


@pytest.fixture(scope='module')
def run(data_dir, tmp_path_factory):
    return saved(train_cases.make(data_dir, DUO), tmp_path_factory.mktemp('duo'))


@pytest.fixture(scope='module')
def measured(run):
    return drawn(run[1])


def test_every_path_is_run_at_its_cost(run, measured):
    model, (images, labels, paths) = run[1], measured
    assert paths.ids.tolist() == [list(p) for p in itertools.product(range(3), repeat=2)]
    # hidden widths 32 and 2, and none: two products each
    price = np.array([32, 2, 0]) / 64
    np.testing.assert_allclose(paths.cost, price[paths.ids].sum(1))
    # without any expert the residual branch is zero: the network of attention alone
    nothing = jax.tree_util.tree_map_with_path(
        lambda path, x: jnp.zeros_like(x) if 'experts' in str(path) else x, model.variables
    )
    logits = jax.jit(lambda v: model.apply(v, images)[0])(nothing)
    want = -jax.nn.log_softmax(logits)[np.arange(12), labels]
    np.testing.assert_allclose(paths.loss[8], want, rtol=1e-4, atol=1e-5)
    assert not np.allclose(paths.loss[0], paths.loss[8], atol=1e-3)


def test_the_oracle_is_no_worse_than_any_policy_within_the_budget_and_falls_with_it(measured):
    paths = measured[2]
    last = np.inf
    for budget in (0.0, 0.1, 0.5, 0.6, 1.0):
        best = paths.loss[paths.oracle(budget), range(12)]
        allowed = paths.cost <= budget + 1e-9
        assert allowed.any() and (best <= paths.loss[allowed]).all()
        assert (paths.cost[paths.oracle(budget)] <= budget + 1e-9).all()
        assert best.mean() <= paths.loss[paths.fixed(budget)].mean() <= last + 1e-9
        last = paths.loss[paths.fixed(budget)].mean()
        assert (paths.difficulty(budget) >= -1e-9).all()
    assert (paths.difficulty(0.0) == 0).all()  # there the oracle has the cheapest path alone
    own = paths.own_cost.mean()
    regret = paths.own_loss.mean() - paths.loss[paths.oracle(own), range(12)].mean()
    assert paths.regret() == pytest.approx(regret)


def test_own_routes_cost_what_they_take(run, measured):
    """In evaluation each patch takes its likeliest module alone, at the cost of that module."""
    model, (images, _, paths) = run[1], measured
    layers = model(images).layers
    price = np.array([32, 2, 0]) / 64
    want = sum(
        (price[np.minimum(x['expert'], 2)] * x['kept']).sum(2).mean(1) for x in layers.values()
    )
    np.testing.assert_allclose(paths.own_cost, want, rtol=1e-6)
    assert all(x['kept'][..., 1:].sum() == 0 for x in layers.values())


def test_the_null_experts_of_a_router_are_ids_that_cost_nothing(data_dir, tmp_path):
    model = saved(train_cases.make(data_dir, NULLS), tmp_path)[1]
    images, _, paths = drawn(model)
    assert paths.ids.tolist() == [list(p) for p in itertools.product(range(4), repeat=2)]
    np.testing.assert_allclose(paths.cost, (paths.ids < 2).sum(1) / 2)
    of_null = (paths.ids >= 2).all(1)  # both null experts give nothing, in any order
    assert of_null.sum() == 4
    np.testing.assert_allclose(paths.loss[of_null], np.tile(paths.loss[15], (4, 1)), rtol=1e-5)
    layers = model(images).layers
    chosen = [(x['expert'] < 2).sum(2) for x in layers.values()]  # experts of a patch: 0 to 2
    assert {0, 1, 2} >= set(np.unique(chosen)) > {1}
    np.testing.assert_allclose(paths.own_cost, sum(n.mean(1) for n in chosen) / 2, rtol=1e-6)


def test_budgets_by_hand():
    loss = np.array([[4.0, 1.0], [2.0, 3.0], [1.0, 5.0]])
    paths = Paths(
        ids=np.array([[2], [1], [0]]),
        cost=np.array([0.0, 0.5, 1.0]),
        loss=loss,
        right=loss < 2,
        own_loss=np.array([2.0, 3.0]),
        own_right=np.array([False, False]),
        own_cost=np.array([0.5, 0.5]),
    )
    assert paths.oracle(1.0).tolist() == [2, 0] and paths.oracle(0.5).tolist() == [1, 0]
    assert paths.fixed(1.0) == 0  # mean losses are 2.5, 2.5 and 3
    assert paths.difficulty(1.0).tolist() == [3.0, 0.0]
    assert paths.regret() == 2.5 - 1.5
    (row,) = paths.rows([0.5])
    assert (row['oracle_loss'], row['oracle_accuracy'], row['oracle_cost']) == (1.5, 0.5, 0.25)
    assert row['difficulty'] == 1.0  # 4 - 2 of the first image, nothing of the second
    with pytest.raises(UserError, match='no path costs at most -1'):
        paths.oracle(-1)
    # Routes that cost less than any path are compared with the cheapest one.
    dear = dataclasses.replace(paths, cost=np.array([0.5, 0.75, 1.0]), own_cost=np.zeros(2))
    assert dear.regret() == 2.5 - (4.0 + 1.0) / 2


def test_where_all_paths_cost_the_same_the_usual_budgets_are_those_that_they_keep(
    run, measured, capsys, monkeypatch
):
    equal = dataclasses.replace(measured[2], cost=np.ones(9), own_cost=np.ones(12))
    monkeypatch.setattr(oracle, 'measure', lambda *_: equal)
    assert oracle.main([f'--workdir={run[0]}', '--images=6', '--json']) == 0
    assert [row['budget'] for row in json.loads(capsys.readouterr().out)['budgets']] == [1.0]


def test_a_budget_that_no_path_keeps_is_told_before_any_path_is_run(run, measured, monkeypatch):
    monkeypatch.setattr(Model, 'apply', None)
    with pytest.raises(UserError, match='no path costs at most -0.5; the cheapest costs 0 of'):
        oracle.measure(run[1], *measured[:2], [1.0, -0.5])


def test_the_command(run, measured, capsys, monkeypatch):
    workdir = f'--workdir={run[0]}'
    assert oracle.main([workdir, '--images=6', '--budgets=0,1', '--json']) == 0
    out = json.loads(capsys.readouterr().out)
    assert (out['images'], out['paths']) == (6, 9)
    first, last = out['budgets']
    assert first['fixed_path'] == [2, 2] and last['oracle_loss'] <= first['oracle_loss']
    monkeypatch.setattr(oracle, 'measure', lambda *_: measured[2])
    assert oracle.main([workdir, '--images=6']) == 0
    assert 'own routes: loss' in capsys.readouterr().out
    for wrong, part in (
        (['--images=0'], '--images is 0'),
        (['--budgets=a'], '--budgets'),
        (['--split=tes'], "eval.split is 'tes'"),
    ):
        assert oracle.main([workdir, *wrong]) == 2
        assert part in capsys.readouterr().err


def test_what_has_too_many_paths_or_none(data_dir):
    many = train_cases.make(
        data_dir, DUO | {'model.args': {'width': 8, 'depth': 11, 'heads': 2, 'patch_size': 4}}
    )
    with pytest.raises(UserError, match='11 routed layers of 3 ids have 177,147 paths'):
        oracle.count(many)
    with pytest.raises(UserError, match='routes nothing'):
        oracle.count(train_cases.make(data_dir, DUO | {'model.twin': 'same_width'}))


@pytest.mark.parametrize('router', ['expert_choice', 'pmoe'])
def test_experts_that_choose_tokens_have_no_paths(data_dir, router):
    """They have the capacity of training, so a path would drop most tokens of an image."""
    plain = {'model.moe.kinds': (), 'model.moe.losses': {}, 'model.moe.k': 1}
    config = train_cases.make(data_dir, DUO | plain | {'model.moe.router': router})
    with pytest.raises(UserError, match=f"router '{router}' choose tokens") as e:
        oracle.count(config)
    assert '\n' not in str(e.value)
