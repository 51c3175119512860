"""A run that starts from the weights of another: what it takes, what is new, what it refuses."""

import dataclasses

import jax
import numpy as np
import pytest
import train_cases

from moe_vision.common.errors import UserError
from moe_vision.run_folder import checkpoints, record
from moe_vision.surgery.init_from import init_from
from moe_vision.training.setup import Setup

SMALL = {'model.moe.placement': 'head', 'model.args': {'widths': (8,), 'depth': 1}}
OTHERS = tuple('abcdefghij')


def moved(tree, by):
    return jax.tree.map(lambda x: x + by, tree)


@pytest.fixture(scope='module')
def setup(data_dir):
    return Setup(train_cases.make(data_dir, SMALL))


@pytest.fixture(scope='module')
def fresh(setup):
    return setup.fresh_state()


def source(setup, folder, **changes):
    """A run's folder with one checkpoint, of arrays that differ from the fresh ones and from each
    other, without training."""
    record.write_config(str(folder), setup.config, 'mine.py', setup.info, setup.cost, 0)
    state = setup.fresh_state()
    state = dataclasses.replace(
        state,
        step=state.step + 6,
        **{
            'params': moved(state.params, 1.0),
            'ema': moved(state.params, 2.0),
            'batch_stats': moved(state.batch_stats, 3.0),
            'router_state': moved(state.router_state, 4.0),
            **changes,
        },
    )
    with checkpoints.Checkpoints(str(folder), 1) as saves:
        saves.save(6, state)
    return jax.device_get(state)


@pytest.fixture(scope='module')
def workdir(setup, tmp_path_factory):
    folder = tmp_path_factory.mktemp('run')
    source(setup, folder)
    return folder


def start(setup, workdir, state, names=None):
    return init_from(state, str(workdir), names or setup.info.class_names, setup.shardings)


@pytest.mark.parametrize('averaged', [True, False])
def test_it_takes_what_was_scored_and_all_that_the_network_keeps(
    setup, fresh, tmp_path, averaged, caplog
):
    with caplog.at_level('INFO'):
        theirs = source(setup, tmp_path, **({} if averaged else {'ema': {}}))
        state = start(setup, tmp_path, fresh)
    train_cases.assert_same_bits(state.params, theirs.ema if averaged else theirs.params)
    train_cases.assert_same_bits(state.ema, state.params)
    assert jax.tree.leaves(state.batch_stats) and jax.tree.leaves(state.router_state)
    for name in ('batch_stats', 'router_state'):
        train_cases.assert_same_bits(getattr(state, name), getattr(theirs, name))
    train_cases.assert_same_bits(state.opt_state, fresh.opt_state)
    assert int(state.step) == 0
    (line,) = [r.getMessage() for r in caplog.records if r.getMessage().startswith('init_from')]
    weights = 'its averaged weights' if averaged else 'its weights'
    assert line == (
        f"init_from: '{tmp_path}', step 6: took {weights}, batch_stats, router_state; "
        'new: nothing; left there: the optimizer state'
    )


@pytest.mark.parametrize(
    'names', [OTHERS, tuple('9876543210'), OTHERS[:7]], ids=['other', 'order', 'fewer']
)
def test_classes_of_other_names_get_a_new_classifier(setup, fresh, workdir, names, caplog):
    head = {'kernel': np.full((8, len(names)), 9.0), 'bias': np.full(len(names), 9.0)}
    params = {**fresh.params, 'classifier': {n: x.astype(np.float32) for n, x in head.items()}}
    fresh = dataclasses.replace(fresh, params=params, ema=params)
    with caplog.at_level('INFO'):
        state = start(setup, workdir, fresh, names)
    taken = checkpoints.load_raw(str(workdir))['ema']
    train_cases.assert_same_bits(
        jax.device_get(state.params), {**taken, 'classifier': params['classifier']}
    )
    assert 'new: the classifier, because the classes there are others' in caplog.text


def test_state_that_the_other_run_lacks_is_new_and_what_this_lacks_is_left(
    setup, fresh, workdir, caplog
):
    own = {**fresh.router_state, 'mine': {'router': {'count': np.zeros(3, np.float32)}}}
    state = dataclasses.replace(fresh, router_state=own, batch_stats={})
    shardings = dataclasses.replace(
        setup.shardings, router_state=setup.shardings.step, batch_stats={}
    )
    with caplog.at_level('INFO'):
        state = init_from(state, str(workdir), setup.info.class_names, shardings)
    assert not np.asarray(state.router_state['mine']['router']['count']).any()
    assert np.asarray(state.router_state['head']['router']['bias']).all()  # 4 of the other run
    assert 'new: router_state/mine/router/count; left there: the optimizer' in caplog.text
    assert ', batch_stats/' in caplog.text


def test_other_classes_need_a_layer_that_can_start_anew(setup, fresh, tmp_path):
    """As of a backbone of one's own that gives its last layer another name."""

    def renamed(params):
        return {('last' if n == 'classifier' else n): x for n, x in params.items()}

    source(setup, tmp_path, params=renamed(fresh.params), ema=renamed(fresh.params))
    state = dataclasses.replace(fresh, params=renamed(fresh.params))
    with pytest.raises(UserError, match="no parameter 'classifier' that could start anew"):
        start(setup, tmp_path, state, OTHERS)


@pytest.mark.parametrize(
    'change, message',
    [
        (
            lambda p: {**p, 'stem': {'kernel': np.ones((3, 3, 1, 4), np.float32)}},
            r"'stem/kernel' is float32 \(3, 3, 1, 8\) in .* and float32 \(3, 3, 1, 4\) here",
        ),
        (
            lambda p: {**p, 'stem': {'kernel': np.ones((3, 3, 1, 8), np.int32)}},
            r"'stem/kernel' is float32 .* and int32 \(3, 3, 1, 8\) here",
        ),
        # a classifier is new only if the classes differ, and all of it
        (
            lambda p: {
                **p,
                'classifier': {
                    'kernel': np.ones((9, 10), np.float32),
                    'bias': p['classifier']['bias'],
                },
            },
            "'classifier/kernel' is",
        ),
        (
            lambda p: {
                **p,
                'classifier': {
                    'kernel': p['classifier']['kernel'],
                    'bias': np.ones(11, np.float32),
                },
            },
            "'classifier/bias' is",
        ),
        (
            lambda p: {**p, 'heat': p['head']},
            "no parameter 'heat/experts/in_bias'. Did you mean 'head/experts/in_bias'",
        ),
        (
            lambda p: {n: x for n, x in p.items() if n != 'block_0'},
            "has a parameter 'block_0/.*' that this network lacks",
        ),
    ],
)
def test_another_network_is_refused_by_the_parameter(setup, fresh, workdir, change, message):
    fresh = dataclasses.replace(fresh, params=change(fresh.params))
    with pytest.raises(UserError, match=message) as e:
        start(setup, workdir, fresh)
    assert '\n' not in str(e.value)


def test_weights_from_a_folder_without_a_checkpoint(setup, fresh, tmp_path):
    with pytest.raises(UserError, match='there is no checkpoint'):
        start(setup, tmp_path, fresh)


def test_a_checkpoint_without_its_record_does_not_say_its_classes(setup, fresh, tmp_path):
    source(setup, tmp_path)
    (tmp_path / 'config.json').unlink()
    with pytest.raises(UserError, match="config.json' is missing; copy the whole folder"):
        start(setup, tmp_path, fresh)
