"""`train.transforms`: what is held keeps its bits, alone, over several seeds, and after a stop."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import train_cases
from jax.sharding import PartitionSpec as P
from own_methods import SeesLoads

import input_pipeline
from moe_vision.check.transforms import check
from moe_vision.common.errors import UserError
from moe_vision.common.paths import path_name
from moe_vision.config import registry
from moe_vision.processes.stop import Stopped
from moe_vision.run_folder import checkpoints
from moe_vision.study.run.together import Program
from moe_vision.training import loop, mesh, optimizer
from moe_vision.training.setup import Setup
from moe_vision.transforms.chain import Transforms
from moe_vision.transforms.freeze_router import FreezeRouter

STEPS, AT, EXPERTS = 6, 4, (0, 3)
# the steps 1 to 3 are a window, which is calm whatever they change
CONVERGED = {'at': 'convergence', 'step': 1, 'window': 3, 'windows': 1, 'change': 0.999}
CONVERGED |= {'least_load': 0.0}
ARGS = {
    'freeze_router': {'at': 'fraction', 'fraction': 0.67},  # of 6 steps: after the fourth
    'freeze_experts': {'experts': EXPERTS},
    'layer_decay': {},  # holds nothing
}
SMALL = {
    'model.moe.placement': 'head',
    'model.moe.group_size': 8,
    'model.args': {'widths': (8,), 'depth': 1},
    'train.batch_size': 16,
    'train.steps': STEPS,
    'train.warmup_steps': 0,
    'train.weight_decay': 0.1,
    'train.mixup': 0.0,
    'eval.every_steps': STEPS,
    'checkpoint.every_steps': 3,
}


def held(name: str, path: str, array: np.ndarray, step: int) -> np.ndarray:
    """Which parts of a parameter must stand still in step `step`, counted from 0."""
    if name == 'freeze_router':
        return np.full(array.shape, '/router/' in path and step >= AT)
    if name == 'layer_decay':
        return np.zeros(array.shape, bool)
    still = np.isin(np.arange(len(array)), EXPERTS) if '/experts/' in path else np.array([False])
    return np.broadcast_to(still.reshape(-1, *[1] * (array.ndim - 1)), array.shape)


def leaves(params) -> dict[str, np.ndarray]:
    return {path_name(p): np.asarray(x) for p, x in jax.tree_util.tree_leaves_with_path(params)}


def assert_held(names, before, after, step):
    """What one of these transforms holds has the same bits, and some of the rest has moved."""
    before, after = leaves(before), leaves(after)
    for path, a in before.items():
        still, b = np.any([held(n, path, a, step) for n in names], axis=0), after[path]
        assert a[still].tobytes() == b[still].tobytes(), (path, step)
        moves = path.endswith('kernel') and not still.all()
        assert not moves or (a[~still] != b[~still]).any(), (path, step)


def test_every_transform_of_the_table_is_tested_here():
    assert set(ARGS) == set(registry.TRANSFORMS)


PARAMS = {
    'stem': {'kernel': np.ones((3, 4), np.float32)},
    'block_1': {
        'router': {'kernel': np.ones((4, 5), np.float32)},
        'experts': {'in_kernel': np.full((5, 4, 2), -0.0, np.float32)},
    },
}


@pytest.mark.parametrize('core', ['adamw', 'sgd'])
@pytest.mark.parametrize('name', registry.TRANSFORMS)
def test_neither_decay_nor_momentum_nor_other_transforms_move_what_is_held(data_dir, name, core):
    """`own_methods:ZShakes` adds 0.1 to every update, after the others. The bank begins at
    -0.0, to which not even +0.0 may be added."""
    config = train_cases.make(
        data_dir,
        SMALL
        | {
            'train.optimizer': core,
            'train.transforms': {name: ARGS[name], 'own_methods:ZShakes': {}},
        },
    )
    transforms = Transforms(config, STEPS)
    made = optimizer.make(config.train, optax.constant_schedule(0.1), PARAMS)
    tx = optimizer.transformed(made, transforms)

    @jax.jit
    def take(params, state, step):
        grads = jax.tree.map(lambda p: jnp.cos(p + step), params)
        updates, state = tx.update(grads, state, params, step=step)
        return optax.apply_updates(params, updates), state

    params, state = PARAMS, tx.init(PARAMS)
    for step in range(STEPS):
        before, (params, state) = params, jax.device_get(take(params, state, step))
        assert_held([name], before, params, step)


def test_what_is_held_does_not_count_in_the_clipped_norm(data_dir):
    """Gradients are 2 everywhere. 12 of 12 + 20 + 40 entries are of the stem; frozen are the 20 of
    the router and, of the bank, 2 of 5 experts: 16 entries."""
    changes = {
        'train.optimizer': 'sgd',
        'train.optimizer_args': {'momentum': 0.0, 'nesterov': False},
        'train.weight_decay': 0.0,
        'train.clip_norm': 1.0,
        'train.transforms': {
            'freeze_router': {'at': 'step', 'step': 0},
            'freeze_experts': {'experts': EXPERTS},
        },
    }
    config = train_cases.make(data_dir, SMALL | changes)
    made = optimizer.make(config.train, optax.constant_schedule(1.0), PARAMS)
    tx = optimizer.transformed(made, Transforms(config, STEPS))
    grads = jax.tree.map(lambda p: jnp.full(p.shape, 2.0), PARAMS)
    updates, _ = tx.update(grads, tx.init(PARAMS), PARAMS, step=jnp.int32(0))
    np.testing.assert_allclose(updates['stem']['kernel'], -1 / np.sqrt(12 + 24), rtol=1e-6)
    assert not updates['block_1']['router']['kernel'].any()


def batch(step: int, rows: int = 16) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(step)
    return {
        'image': rng.integers(0, 256, (rows, 8, 8, 1)).astype(np.uint8),
        'label': rng.integers(0, 10, rows).astype(np.int32),
        'valid': np.ones(rows, bool),
    }


def take(setup, state, number):
    """(state, metrics), on the host, after one step on batch `number`."""
    arrays = mesh.to_devices(batch(number), setup.mesh, setup.config.train.micro_batches)
    return jax.device_get(setup.step(jax.device_put(state, setup.shardings), arrays))


@pytest.fixture(scope='module')
def everything(data_dir):
    """Set up with all transforms of the table, a router that has state, and micro-batches. Routers
    freeze by convergence, in the same step as by `ARGS`."""
    transforms = ARGS | {'freeze_router': CONVERGED}
    changes = {'train.transforms': transforms, 'train.micro_batches': 2}
    return Setup(train_cases.make(data_dir, SMALL | changes))


@pytest.fixture(scope='module')
def alone(everything):
    """States before and after each step, and the steps' metrics, of seed 3."""
    states, out = [jax.device_get(everything.fresh_state(3))], []
    for step in range(STEPS):
        state, metrics = take(everything, states[-1], step)
        states.append(state)
        out.append(metrics)
    return states, out


def test_in_training_what_is_held_keeps_its_bits_and_the_rest_moves(alone):
    states, _ = alone
    for step in range(STEPS):
        assert_held(ARGS, states[step].params, states[step + 1].params, step)


def test_frozen_routers_have_no_losses_and_keep_their_state(alone):
    states, out = alone
    losses = [float(o['losses']['switch']) for o in out]
    assert all(losses[:AT]) and not any(losses[AT:])
    for o, loss in zip(out, losses, strict=True):
        assert float(o['loss']) == pytest.approx(float(o['task_loss']) + loss)
    kept = [
        all(a.tobytes() == b.tobytes() for a, b in zip(*map(jax.tree.leaves, pair), strict=True))
        for pair in zip(
            [s.router_state for s in states[:-1]], [s.router_state for s in states[1:]], strict=True
        )
    ]
    assert all(kept[AT:]) and not all(kept[:AT])  # balanced choices move no bias


def test_seeds_together_freeze_as_each_does_alone(everything, alone):
    program = Program(everything, 2, 1)
    states = program.stack([jax.device_get(everything.fresh_state(seed)) for seed in (3, 8)])
    before = after = jax.device_get(states)
    counted = []
    for step in range(STEPS):
        states, _ = program.step(states, program.batch([batch(step)] * 2))
        before, after = after, jax.device_get(states)
        counted.append(after.opt_state['transforms']['freeze_router'])
        for i in range(2):
            of_one = [jax.tree.map(lambda x, i=i: x[i], s.params) for s in (before, after)]
            assert_held(ARGS, *of_one, step)
    for path, ours in leaves(after.params).items():
        np.testing.assert_allclose(ours[0], leaves(alone[0][-1].params)[path], 1e-3, 1e-4)
        assert 'kernel' not in path or (ours[0] != ours[1]).any()
    assert counted[-1]['frozen'].tolist() == [[1], [1]]
    for ours, state in zip(counted, alone[0][1:], strict=True):
        theirs = state.opt_state['transforms']['freeze_router']
        for name in ('changed', 'least', 'calm'):
            np.testing.assert_allclose(ours[name][0], theirs[name], rtol=1e-5, err_msg=name)


def test_a_run_that_stops_before_it_freezes_ends_as_an_uninterrupted_one(everything, tmp_path):
    """Stopped after step 3, within a window of convergence; routers stand still after step 4."""
    whole, parts, config = tmp_path / 'whole', tmp_path / 'parts', everything.config
    loop.train(config, str(whole), setup=everything, full_report=False)
    with pytest.raises(Stopped):
        loop.train(
            config,
            str(parts),
            setup=everything,
            full_report=False,
            stop=train_cases.StopAt(3),
        )
    assert train_cases.steps(parts) == [3]
    before = checkpoints.load_raw(str(parts))['opt_state']['transforms']['freeze_router']
    loop.train(config, str(parts), setup=everything, full_report=False)
    train_cases.assert_same_runs(parts, whole)
    after = checkpoints.load_raw(str(parts))['opt_state']['transforms']['freeze_router']
    assert (before['frozen'].tolist(), after['frozen'].tolist()) == ([0], [1])
    assert before['least'].any()


def test_a_router_frozen_from_the_start_is_one_that_is_not_trainable(data_dir):
    """It trains as a network does whose routers have neither noise nor losses and stand still by
    `train.trainable`: with the same clipped gradient, too."""
    frozen = {'train.transforms': {'freeze_router': {'at': 'step', 'step': 0}}}
    still = {
        'model.moe.router_args': {'noise': 'none'},
        'model.moe.losses': {},
        'train.trainable': '^(?!.*/router/)',
    }
    ends, first = [], None
    for changes in (frozen, still):
        setup = Setup(
            train_cases.make(
                data_dir, SMALL | train_cases.TOP_K | {'train.clip_norm': 0.1} | changes
            )
        )
        state = jax.device_get(setup.fresh_state())
        first = first or state
        state = dataclasses.replace(state, params=first.params)
        for step in range(2):
            state, _ = take(setup, state, step)
        ends.append(leaves(state.params))
    for path, ours in ends[0].items():
        np.testing.assert_allclose(ours, ends[1][path], rtol=1e-5, atol=1e-7, err_msg=path)
    moved = {p for p, x in leaves(first.params).items() if (x != ends[0][p]).any()}
    assert len(moved) > 5 and not any('/router/' in p for p in moved)


def test_a_run_that_gets_longer_does_not_thaw():
    args = registry.FreezeRouterArgs(fraction=0.5)
    state, step = {'frozen': jnp.int32(0)}, jnp.int32(4)
    short, long = FreezeRouter(args, 8), FreezeRouter(args, 80)
    assert not short.settled(step=step - 1, state=state)
    _, state = short.update({}, {}, step=step, state=state)
    assert long.settled(step=step + 1, state=state)
    assert not long.settled(step=step + 1, state={'frozen': jnp.int32(0)})
    assert FreezeRouter(registry.FreezeRouterArgs(fraction=0.99), 4).settled(
        step=jnp.int32(3), state={'frozen': jnp.int32(0)}
    )


def test_a_dense_twin_trains_without_what_routed_places_need(data_dir):
    routed = {name: args for name, args in ARGS.items() if name != 'layer_decay'}
    changes = {'train.transforms': routed, 'model.twin': 'same_width'}
    twin = Setup(train_cases.make(data_dir, SMALL | changes))
    plain = Setup(train_cases.make(data_dir, SMALL | changes | {'train.transforms': {}}))
    assert not twin.transforms and jax.tree.structure(twin.shapes) == jax.tree.structure(
        plain.shapes
    )


@pytest.mark.parametrize(
    'changes, parts',
    [
        ({'freeze_router': {'at': 'step', 'step': 6}}, ['step is 6', 'takes 6 steps']),
        ({'freeze_experts': {'experts': (4,)}}, ['names 4', 'head has 4 experts', '0 to 3']),
        (
            {'freeze_experts': {'experts': (0,), 'layers': 'block'}},
            ["layers 'block' matches no parameter", 'there are block_0/conv1/kernel, '],
        ),
        ({'own_methods:UpdatesOfWrongShape': {}}, ['own_methods:UpdatesOfWrongShape', 'float32[]']),
        ({'own_methods:BranchesOnTheStep': {}}, ['TracerBool', 'own_methods.py, line']),
    ],
    ids=str,
)
def test_what_does_not_fit_is_one_line_before_anything_is_compiled(data_dir, changes, parts):
    with pytest.raises(UserError) as e:
        Setup(train_cases.make(data_dir, SMALL | {'train.transforms': changes}))
    line = str(e.value)
    assert '\n' not in line and next(iter(changes)) in line
    for part in parts:
        assert part in line, line


@pytest.mark.parametrize(
    'changes, loads',
    [
        ({}, [('block_0', 4)]),
        (
            {
                'model.args': {'widths': (8, 8), 'depth': 1},
                'model.moe.placement': 'every_1',
                'model.moe.bank': '2',
            },
            [('block_0', 4), ('block_1', 4)],
        ),
        ({'model.moe.kinds': ({'count': 3}, {'count': 1, 'divide': 2})}, [('block_0', 4)]),
    ],
    ids=['own', 'pooled', 'kinds'],
)
def test_a_check_observes_the_layers_that_training_observes(data_dir, changes, loads):
    start = SMALL | {'model.moe.placement': 'last_1', 'model.moe.num_experts': 4}
    own = {'train.transforms': {'own_methods:SeesLoads': {}}}
    config = train_cases.make(data_dir, changes | own, start=start)
    SeesLoads.seen.clear()
    check(config, input_pipeline.info(config.dataset))
    assert SeesLoads.seen == loads


def test_a_network_without_routers_has_none_to_freeze(data_dir):
    changes = {'model.moe.placement': 'none', 'train.transforms': {'freeze_router': {}}}
    start = {k: v for k, v in SMALL.items() if 'moe' not in k}
    with pytest.raises(UserError, match=r"freeze_router: '/router/' matches no parameter"):
        Setup(train_cases.make(data_dir, changes, start=start))


def test_what_a_transform_keeps_of_a_bank_is_split_as_the_bank_is():
    class Mesh:
        shape = {'data': 2, 'expert': 4}

    def arrays(**shapes):
        return {'experts': {n: jax.ShapeDtypeStruct(s, 'float32') for n, s in shapes.items()}}

    opt_state = {'optimizer': arrays(w=(8, 3)), 'transforms': arrays(w=(8,), width=(3,), count=())}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mesh, 'NamedSharding', lambda _, spec: spec)
        found = mesh.state_shardings(Mesh, Holder(opt_state)).opt_state
    assert found == {
        'optimizer': {'experts': {'w': P('expert')}},
        'transforms': {'experts': {'w': P('expert'), 'width': P(), 'count': P()}},
    }


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Holder:
    opt_state: dict
