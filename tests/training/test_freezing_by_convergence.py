"""`freeze_router` with `at='convergence'`: what is counted, what is decided, what stands still.

`test_transforms` trains with it over seeds and after a stop, and `test_mesh` on meshes.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import train_cases

import input_pipeline
from moe_vision.check import transforms as check
from moe_vision.common.errors import UserError
from moe_vision.config.method_args import FreezeRouterArgs
from moe_vision.layers import MoE, Step
from moe_vision.models.parts import normalize_images
from moe_vision.training import mesh
from moe_vision.training.setup import Setup
from moe_vision.transforms.freeze_router import FreezeRouter

WINDOW = {'step': 1, 'window': 3, 'windows': 2, 'change': 0.25, 'least_load': 0.5}
ARGS = FreezeRouterArgs('convergence', **WINDOW)


def params(value=0.0):
    router = {'kernel': np.full((2, 2), value, np.float32)}
    return {'a': {'router': router, 'experts': {'w': np.ones((2, 1))}}, 'b': {'router': router}}


def routes(a, b, load=(4, 4)):
    """8 tokens of each layer, of which a and b changed their expert."""
    load = np.asarray(load, np.float32)
    return {
        layer: {'tokens': np.float32(8), 'load': load, 'changed': np.float32(n)}
        for layer, n in (('a', a), ('b', b))
    }


def observed(made, state, step, counts, value=0.0):
    return made.observe(counts, params(value), step=jnp.int32(step), state=state)


def test_two_calm_windows_in_a_row_freeze_a_layer_and_nothing_thaws_it():
    """Windows are the steps 1 to 3, 4 to 6, and so on. Layer a changes 2 of 8 tokens or 4 and 0,
    which is the bound of a quarter on average; b changes 5 in one step of the second window."""
    made, steps = FreezeRouter(ARGS, 20), {1: (8, 8), 2: (2, 0), 3: (2, 0), 5: (4, 5), 6: (0, 0)}
    state = made.init(params())
    for step in range(7):
        state = observed(made, state, step, routes(*steps.get(step, (8, 8))), value=step)
        if step == 3:
            np.testing.assert_allclose(state['changed'], [0.5, 0.0])
            assert state['calm'].tolist() == [1, 1] and state['frozen'].tolist() == [0, 0]
            np.testing.assert_array_equal(state['start']['a']['router']['kernel'], np.ones((2, 2)))
    assert state['calm'].tolist() == [2, 0] and state['frozen'].tolist() == [1, 0]
    for step in range(7, 10):
        state = observed(made, state, step, routes(8, 0))
    assert state['calm'].tolist() == [0, 1] and state['frozen'].tolist() == [1, 0]
    told = {'step': jnp.int32(10), 'state': state}
    assert {n: bool(s) for n, s in made.settled(**told).items()} == {'a': 1, 'b': 0, '': 0}
    moves = [made.moves(f'{n}/router/kernel', None, **told) for n in 'ab']
    assert [bool(m) for m in moves] == [False, True]
    assert made.moves('a/experts/w', None, **told) is True


@pytest.mark.parametrize('load, calm', [((2, 6), 1), ((1, 7), 0), ((0, 0), 0)], ids=str)
def test_a_window_is_not_calm_while_an_expert_gets_too_little(load, calm):
    """The mean load is 4, and the bound half of it."""
    made = FreezeRouter(ARGS, 20)
    state = made.init(params())
    for step in range(1, 4):
        state = observed(made, state, step, routes(0, 0, load))
    assert state['calm'].tolist() == [calm, calm]


def test_what_layers_share_is_frozen_by_their_mean():
    """Layer a changes all of its tokens, b none: half of them together. A layer is settled once its
    own parameters and the shared ones are."""
    arrays = {'router': {'gru': np.zeros(3, np.float32)}, **params()}
    for change, frozen in ((0.5, [1, 0, 1]), (0.4, [0, 0, 1])):
        made = FreezeRouter(dataclasses.replace(ARGS, change=change, windows=1), 20)
        state = made.init(arrays)
        for step in range(1, 4):
            told = {'step': jnp.int32(step), 'state': state}
            state = made.observe(routes(8, 0), arrays, **told)
        assert state['frozen'].tolist() == frozen  # '', a, b
        settled = made.settled(step=jnp.int32(4), state=state)
        assert bool(settled['b']) == (frozen[0] == 1)
        assert not settled['a'] and not settled['']


def test_a_layer_counts_the_tokens_that_other_parameters_send_elsewhere():
    """Four tokens of features (x, 0) and (0, x), of which one is padding. The router takes the
    larger feature; swapped columns send all elsewhere, a column of its own takes half of them."""
    layer = MoE(2, 1, 4, 3, router_args={'normalize_inputs': False}, losses={})
    x = jnp.asarray([[1.0, 0], [0, 1], [2, 0], [0, 2]])
    swapped, first = np.eye(2)[::-1], np.asarray([[1.0, 0], [1, 0]])
    given = {
        'swapped': {'': {'kernel': jnp.asarray(swapped, jnp.float32)}},
        'same': {},
        'first': {'': {'kernel': jnp.asarray(first, jnp.float32)}},
    }
    variables = jax.jit(layer.init)(jax.random.key(0), x)
    variables['params']['router']['kernel'] = jnp.eye(2)
    step = Step(valid=jnp.arange(4) < 3, compared=given, train=True)
    _, info = jax.jit(layer.apply)(variables, x, step)
    assert {n: float(v) for n, v in info['changed'].items()} == {
        'swapped': 3.0,
        'same': 0.0,
        'first': 1.0,
    }


SMALL = train_cases.VIT | {
    'model.moe.placement': 'every_1',
    'model.args': {'width': 8, 'depth': 2, 'heads': 2, 'patch_size': 4},
    'model.moe.group_size': 4,
    'train.batch_size': 16,
    'train.steps': 8,
    'train.warmup_steps': 0,
    'train.learning_rate': 0.1,
    'train.mixup': 0.0,
    'train.clip_norm': 0.0,
    'train.ema_decay': 0.0,
    'train.transforms': {
        'freeze_router': {'at': 'convergence'}
        | WINDOW
        | {'windows': 1, 'change': 0.9, 'least_load': 0.0}
    },
}


@pytest.fixture(scope='module')
def halves(data_dir):
    """Set up with two routed layers, routers that have state, and two micro-batches."""
    return Setup(train_cases.make(data_dir, SMALL | {'train.micro_batches': 2}))


def batch(step: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(step)
    return {
        'image': rng.integers(0, 256, (16, 8, 8, 1)).astype(np.uint8),
        'label': rng.integers(0, 10, 16).astype(np.int32),
        'valid': rng.random(16) > 0.1,
    }


def kept(state):
    """What the transform keeps."""
    return state.opt_state['transforms']['freeze_router']


def take(setup, state, number):
    """(state, metrics), on the host, after one step."""
    arrays = mesh.to_devices(batch(number), setup.mesh, setup.config.train.micro_batches)
    return jax.device_get(setup.step(jax.device_put(state, setup.shardings), arrays))


@pytest.fixture(scope='module')
def states(halves):
    """States before and after each of five steps, of seed 3."""
    found = [jax.device_get(halves.fresh_state(3))]
    for number in range(5):
        found.append(take(halves, found[-1], number)[0])
    return found


LAYERS = ('block_0', 'block_1')


def same_bits(before, after) -> dict[str, list[bool]]:
    """By layer, whether the router's kernel and its state kept their bits."""
    return {
        layer: [
            before.params[layer]['router']['kernel'].tobytes()
            == after.params[layer]['router']['kernel'].tobytes(),
            before.router_state[layer]['router']['bias'].tobytes()
            == after.router_state[layer]['router']['bias'].tobytes(),
        ]
        for layer in LAYERS
    }


def test_routes_are_compared_with_those_at_the_start_of_a_window(states):
    """The window of the steps 1 to 3 freezes both layers, so step 4 moves no router."""
    for layer in LAYERS:
        start = kept(states[4])['start'][layer]['router']['kernel']
        assert start.tobytes() == states[1].params[layer]['router']['kernel'].tobytes()
    assert [kept(s)['changed'].tolist() for s in states[:3]] == [[0, 0]] * 3
    assert (kept(states[4])['changed'] > 0).all()  # the learning rate is large
    assert [kept(s)['frozen'].tolist() for s in states[3:5]] == [[0, 0], [1, 1]]
    assert not any(sum(same_bits(*states[:2]).values(), []))
    assert all(sum(same_bits(*states[4:]).values(), []))


def test_a_layer_that_is_frozen_alone_has_neither_losses_nor_new_state(halves, states):
    """The loss of `block_1` is what is left of the sum over layers."""
    frozen = {'freeze_router': kept(states[2]) | {'frozen': np.asarray([1, 0], np.int32)}}
    outs = []
    for transforms in (states[2].opt_state['transforms'], frozen):
        state = dataclasses.replace(
            states[2], opt_state=states[2].opt_state | {'transforms': transforms}
        )
        after, out = take(halves, state, 2)
        outs.append((float(out['losses']['switch']), same_bits(state, after)))
    (both, bits), (one, bits_of_one) = outs
    assert 0.3 * both < one < 0.7 * both
    assert bits == {'block_0': [False, False], 'block_1': [False, False]}
    assert bits_of_one == {'block_0': [True, True], 'block_1': [False, False]}


def test_micro_batches_count_what_the_whole_batch_does(halves, states):
    """What step 3 adds to the sums of a window, against a pass over all of its images at once."""
    mean_std = input_pipeline.mean_std(halves.config.dataset)
    transforms = halves.transforms
    step = Step(
        valid=batch(3)['valid'],
        train=True,
        compared=transforms.compared(step=3, state=states[3].opt_state['transforms']),
    )

    @jax.jit
    def forward(variables, images):
        return halves.network.apply(variables, normalize_images(images, *mean_std), step)[1]

    infos = forward(states[3].variables(), batch(3)['image'])
    for n, layer in enumerate(LAYERS):
        share = infos[layer]['changed']['freeze_router'] / (4 * batch(3)['valid'].sum())
        added = kept(states[4])['changed'][n] - kept(states[3])['changed'][n]
        np.testing.assert_allclose(added, share, rtol=1e-5)
        load = infos[layer]['telemetry']['chosen']
        added = kept(states[4])['least'][n] - kept(states[3])['least'][n]
        np.testing.assert_allclose(added, load.min() / load.mean(), rtol=1e-5)


def test_the_check_of_transforms_runs_it():
    check.transform('freeze_router', {'at': 'convergence'} | WINDOW)


@pytest.mark.parametrize(
    'args, parts',
    [
        ({'at': 'convergence', 'window': 1}, ['window is 1', 'at least 2']),
        ({'at': 'convergence', 'change': 1.0}, ['change is 1.0']),
        ({'window': 5}, ['window', "at is 'fraction'"]),
        ({'at': 'convergence', 'fraction': 0.2}, ["at is 'convergence'"]),
    ],
    ids=str,
)
def test_arguments_that_do_not_fit_are_refused_in_one_line(args, parts):
    with pytest.raises(UserError) as e:
        FreezeRouterArgs(**args)
    assert all(part in str(e.value) for part in parts) and '\n' not in str(e.value)


def test_a_run_too_short_to_freeze_anything_is_refused():
    with pytest.raises(UserError, match=r'step \+ windows \* window is 7, but the run takes 7'):
        FreezeRouter(ARGS, 7)
