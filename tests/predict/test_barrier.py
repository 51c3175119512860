"""The line between two networks: its ends, its height, and what the order of units adds to it."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import train_cases

from moe_vision.common.errors import UserError
from moe_vision.layers import Step
from moe_vision.predict import barrier
from moe_vision.predict.model import Model
from moe_vision.run_folder import checkpoints, record
from moe_vision.surgery.align import aligned
from moe_vision.surgery.state import leaves, replaced
from moe_vision.training.setup import Setup

VIT = {
    'model.name': 'vit',
    'model.args': {'width': 8, 'depth': 2, 'heads': 2, 'patch_size': 4},
    'model.moe.placement': 'last_1',
    'model.moe.router': 'bias_balanced',
    'model.moe.router_args': {'renormalize': True},
    'model.moe.num_experts': 4,
    'model.moe.k': 2,
    'model.moe.group_size': 4,
    'train.ema_decay': 0.0,
}
HIDDEN = 32


def reordered(arrays, state, seed):
    """The same network with hidden units, experts and router columns in another order."""
    rng, arrays, state = np.random.default_rng(seed), dict(arrays), dict(state)
    experts = rng.permutation(4)
    for path in arrays:
        if path.startswith('block_1/experts/'):
            arrays[path] = np.asarray(arrays[path])[experts]
    arrays['block_1/router/kernel'] = np.asarray(arrays['block_1/router/kernel'])[:, experts]
    state['block_1/router/bias'] = np.asarray(state['block_1/router/bias'])[experts]
    for prefix, count in (('block_0/', 1), ('block_1/experts/', 4)):
        orders = np.stack([rng.permutation(HIDDEN) for _ in range(count)])
        for name, axis in (('in_kernel', -1), ('in_bias', -1), ('out_kernel', -2)):
            x = np.asarray(arrays[f'{prefix}{name}'])
            each = x if count > 1 else x[None]
            moved = np.stack([np.take(a, o, axis) for a, o in zip(each, orders, strict=True)])
            arrays[f'{prefix}{name}'] = moved if count > 1 else moved[0]
    return arrays, state


@pytest.fixture(scope='module')
def runs(data_dir, tmp_path_factory):
    """Folders of a network, of the same in another order, and of another one; and their models."""
    setup = Setup(train_cases.make(data_dir, VIT))
    state = setup.fresh_state()
    rng = np.random.default_rng(1)
    away = lambda x: x + 0.1 * rng.normal(size=x.shape).astype(np.float32)  # noqa: E731
    first = dataclasses.replace(
        state,
        params=jax.tree.map(away, state.params),
        router_state=jax.tree.map(away, state.router_state),
    )
    moved = reordered(leaves(first.params), leaves(first.router_state), 3)
    same = dataclasses.replace(
        first,
        params=replaced(first.params, moved[0]),
        router_state=replaced(first.router_state, moved[1]),
    )
    other = dataclasses.replace(state, params=jax.tree.map(away, state.params))
    folders, models = [], []
    for name, each in (('first', first), ('same', same), ('other', other)):
        folder = str(tmp_path_factory.mktemp(name))
        record.write_config(folder, setup.config, 'mine.py', setup.info, setup.cost, 0)
        with checkpoints.Checkpoints(folder, 1) as saves:
            saves.save(0, each)
        folders.append(folder)
        models.append(Model(setup.config, setup.info, checkpoints.load_raw(folder, 'latest')))
    return folders, models


def test_the_barrier_by_hand():
    assert barrier.barrier([0, 0.5, 1], [1.0, 2.5, 2.0]) == 1.0
    assert barrier.barrier([0, 0.25, 1], [1.0, 2.0, 3.0]) == 0.5
    assert barrier.barrier([0, 0.5, 1], [1.0, 0.5, 2.0]) == 0


def test_networks_that_differ_in_order_alone_are_one_once_they_are_aligned(runs):
    first, same, _ = runs[1]
    here, there = jax.device_get((first.variables, same.variables))
    ours, theirs = leaves(here['params']), leaves(there['params'])
    assert any(np.abs(theirs[p] - ours[p]).max() > 1e-3 for p in ours)
    params, state = aligned(first.config, ours, theirs, leaves(there['router_state']))
    for path, x in ours.items():
        np.testing.assert_array_equal(params[path], x, err_msg=path)
    for path, x in leaves(here['router_state']).items():
        np.testing.assert_array_equal(state[path], x, err_msg=path)


NULL = {'model.moe.router': 'null_experts', 'model.moe.router_args': {'null_experts': 2}}


def test_another_order_of_experts_beside_null_experts_computes_the_same(data_dir):
    setup = Setup(train_cases.make(data_dir, VIT | NULL | {'model.moe.losses': {}}))
    one, two = (leaves(jax.device_get(setup.fresh_state(seed).params)) for seed in (0, 1))
    params, _ = aligned(setup.config, one, two, {})
    kernel = 'block_1/router/kernel'
    assert np.abs(params[kernel][:, :4] - two[kernel][:, :4]).max() > 0
    x = np.random.default_rng(0).normal(size=(8, *setup.info.image_shape)).astype(np.float32)
    shape = setup.fresh_state().params
    logits = [
        setup.network.apply({'params': replaced(shape, p)}, x, Step.example(8))[0]
        for p in (two, params)
    ]
    np.testing.assert_allclose(*logits, atol=1e-5)


@pytest.mark.parametrize(
    'changes, why',
    [
        ({'model.moe.router': 'hash', 'model.moe.router_args': {}}, "router 'hash' knows them by"),
        ({'model.moe.bank': '2', 'model.moe.placement': 'every_1'}, 'layers share them'),
    ],
)
def test_experts_whose_order_means_something_are_left_alone(data_dir, changes, why):
    setup = Setup(train_cases.make(data_dir, VIT | {'model.moe.losses': {}} | changes))
    state = setup.fresh_state()
    with pytest.raises(UserError, match=why):
        aligned(setup.config, leaves(state.params), leaves(state.params), {})


def test_the_ends_of_the_line_are_the_networks(runs):
    first, _, other = runs[1]
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (6, *first.info.image_shape)).astype(np.uint8)
    labels = rng.integers(0, 10, 6)
    variables = barrier.put_in_order(first, other)
    rows = barrier.along(first, variables, images, labels, [0.0, 0.5, 1.0])
    for row, model in ((rows[0], first), (rows[2], other)):
        p = model(images).probabilities
        loss = -np.log(p[range(6), labels]).mean()
        np.testing.assert_allclose(row['loss'], loss, rtol=1e-4)
        assert row['accuracy'] == pytest.approx((p.argmax(1) == labels).mean())


def test_the_command_says_how_high_it_is(runs, capsys):
    (first, same, _), _ = runs
    heights = []
    for flags in ([], ['--align']):
        told = [f'--workdirs={first},{same}', '--images=50', '--points=3', '--json', *flags]
        assert barrier.main(told) == 0
        found = json.loads(capsys.readouterr().out)
        assert found['images'] == 50 and found['aligned'] == bool(flags)
        assert found['barrier'] == barrier.barrier(
            [0, 0.5, 1], [p['loss'] for p in found['points']]
        )
        heights.append(found)
    plain, ordered = ([p['loss'] for p in h['points']] for h in heights)
    np.testing.assert_allclose(ordered, plain[0], rtol=1e-4)  # one network everywhere
    assert abs(plain[1] - plain[0]) > 1e-3


@pytest.mark.parametrize(
    'flags, hint',
    [
        (['--workdirs=a'], '--workdirs names 1 folders; give two: W1,W2.'),
        (['--workdirs=a,b', '--points=2'], '--points is 2; give 3 or more.'),
        (['--workdirs=a,b', '--images=0'], '--images is 0; it must be positive.'),
    ],
)
def test_a_mistake_is_one_line(flags, hint, capsys):
    assert barrier.main(flags) == 2
    assert capsys.readouterr().err.strip().endswith(hint)


def test_networks_of_other_forms_are_refused(runs):
    first, _, other = runs[1]
    less = dataclasses.replace(first.info, class_names=first.info.class_names[::-1])
    with pytest.raises(UserError, match='have other classes'):
        barrier._one_form(['a', 'b'], first, _with(other, info=less))
    kernel = {'params': {'stem': {'kernel': np.zeros(3)}}}
    with pytest.raises(UserError, match="is float64 .3,. in 'b'|is missing in 'b'|'a' and") as e:
        barrier._one_form(['a', 'b'], first, _with(other, variables=kernel))
    assert '\n' not in str(e.value)


def _with(model, **changes):
    other = object.__new__(Model)
    other.__dict__.update(model.__dict__, **changes)
    return other
