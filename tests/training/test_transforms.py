"""`train.transforms`: what is held keeps its bits, alone, over several seeds, and after a stop."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import train_cases
from jax.sharding import PartitionSpec as P

from moe_vision.common.errors import UserError
from moe_vision.common.paths import path_name
from moe_vision.config import registry
from moe_vision.run_folder import checkpoints
from moe_vision.study.run.together import Program
from moe_vision.training import loop, mesh
from moe_vision.training.setup import Setup
from moe_vision.transforms.freeze_router import FreezeRouter

AT = 2  # steps, after which routers stand still
ARGS = {'freeze_router': {'at': 'step', 'step': AT}, 'freeze_experts': {'experts': (0, 3)}}
SMALL = {
    'model.moe.placement': 'head',
    'model.moe.group_size': 8,
    'model.args': {'widths': (8,), 'depth': 1},
    'train.batch_size': 16,
    'train.warmup_steps': 0,
    'train.weight_decay': 0.1,
    'train.mixup': 0.0,
}
TEACHES = {'model.moe.router_args': {'noise': 'learned'}, 'model.moe.losses': {'load': 0.1}}


def held(name: str, path: str, array: np.ndarray, step: int) -> np.ndarray:
    """Which parts of a parameter must stand still in step `step`, counted from 0."""
    if name == 'freeze_router':
        return np.full(array.shape, '/router/' in path and step >= AT)
    still = np.isin(np.arange(len(array)), (0, 3)) if '/experts/' in path else np.array([False])
    return np.broadcast_to(still.reshape(-1, *[1] * (array.ndim - 1)), array.shape)


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


def leaves(params) -> dict[str, np.ndarray]:
    return {path_name(p): x for p, x in jax.tree_util.tree_leaves_with_path(params)}


def assert_held(name, before, after, step):
    before, after = leaves(before), leaves(after)
    for path, a in before.items():
        still, b = held(name, path, a, step), after[path]
        assert a[still].tobytes() == b[still].tobytes(), (path, step)
        moves = not still.all() and 'bias' not in path  # of an expert that nobody chose
        assert not moves or (a[~still] != b[~still]).any(), (path, step)


@pytest.mark.parametrize('name', registry.TRANSFORMS)
@pytest.mark.parametrize('optimizer', ['adamw', 'sgd'])
def test_what_is_held_keeps_its_bits_and_the_rest_moves(data_dir, name, optimizer):
    """Weight decay and momentum move nothing either; in micro-batches and whole."""
    changes = {
        'train.transforms': {name: ARGS[name]},
        'train.optimizer': optimizer,
        'train.micro_batches': 2 if optimizer == 'sgd' else 1,
    }
    setup = Setup(train_cases.make(data_dir, SMALL | train_cases.TOP_K | TEACHES | changes))
    state, seen = jax.device_get(setup.fresh_state()), set()
    for step in range(4):
        before, (state, _) = state, take(setup, state, step)
        assert_held(name, before.params, state.params, step)
        seen |= {p for p, x in leaves(before.params).items() if held(name, p, x, step).any()}
    assert seen and all('/router/' in p or '/experts/' in p for p in seen)


@pytest.fixture(scope='module')
def both(data_dir):
    """Set up with all transforms of the table, on a router that has state."""
    return Setup(train_cases.make(data_dir, SMALL | {'train.transforms': ARGS}))


def test_frozen_routers_have_no_losses_and_keep_their_state(both):
    state, losses, kept = jax.device_get(both.fresh_state()), [], []
    for step in range(4):
        before, (state, out) = state, take(both, state, step)
        losses.append(float(out['losses']['switch']))
        pairs = zip(
            jax.tree.leaves(before.router_state), jax.tree.leaves(state.router_state), strict=True
        )
        kept.append(all(a.tobytes() == b.tobytes() for a, b in pairs))
        assert float(out['loss']) == pytest.approx(float(out['task_loss']) + losses[-1])
    assert kept == [False, False, True, True]
    assert all(losses[:AT]) and not any(losses[AT:])


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


def test_seeds_together_freeze_as_each_does_alone(both):
    seeds = (3, 4)
    program = Program(both, len(seeds), 1)
    singles = [jax.device_get(both.fresh_state(seed)) for seed in seeds]
    states = program.stack(singles)
    for step in range(4):
        before = jax.device_get(states)
        states, _ = program.step(states, program.batch([batch(step)] * len(seeds)))
        singles = [take(both, single, step)[0] for single in singles]
        for name in ARGS:
            for i in range(len(seeds)):
                assert_held(
                    name if name == 'freeze_router' else 'freeze_experts',
                    jax.tree.map(lambda x, i=i: x[i], before.params),
                    jax.tree.map(lambda x, i=i: x[i], jax.device_get(states).params),
                    step,
                )
    for i, single in enumerate(singles):
        for path, ours in leaves(jax.device_get(states).params).items():
            np.testing.assert_allclose(ours[i], leaves(single.params)[path], rtol=1e-3, atol=1e-5)
    assert leaves(states.opt_state)['transforms/freeze_router/frozen'].tolist() == [1, 1]


def test_a_run_that_stops_before_it_freezes_ends_as_an_uninterrupted_one(data_dir, tmp_path):
    """Stopped after step 3; routers stand still after step 4."""
    changes = {
        'train.steps': 6,
        'checkpoint.every_steps': 3,
        'eval.every_steps': 6,
        'train.transforms': ARGS | {'freeze_router': {'at': 'fraction', 'fraction': 0.67}},
    }
    config = train_cases.make(data_dir, SMALL | changes)
    setup = Setup(config)
    whole, parts = tmp_path / 'whole', tmp_path / 'parts'
    loop.train(config, str(whole), setup=setup, full_report=False)
    stopped = train_cases.StopAt(3)
    with pytest.raises(BaseException) as stop:
        loop.train(config, str(parts), setup=setup, full_report=False, stop=stopped)
    assert train_cases.steps(parts) == [3], stop.value
    before = checkpoints.load_raw(str(parts))['opt_state']['transforms']['freeze_router']
    loop.train(config, str(parts), setup=setup, full_report=False)
    train_cases.assert_same_runs(parts, whole)
    after = checkpoints.load_raw(str(parts))['opt_state']['transforms']['freeze_router']
    assert (int(before['frozen']), int(after['frozen'])) == (0, 1)


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


def test_what_is_held_stands_still_whatever_other_transforms_do(data_dir):
    """`own_methods:ZShakes` adds 0.1 to every update, after the others."""
    transforms = {'freeze_experts': ARGS['freeze_experts'], 'own_methods/ZShakes': {}}
    transforms = {
        n.replace('ZShakes', ':ZShakes').replace('/:', ':'): a for n, a in transforms.items()
    }
    setup = Setup(train_cases.make(data_dir, SMALL | {'train.transforms': transforms}))
    before = jax.device_get(setup.fresh_state())
    after, _ = take(setup, before, 0)
    assert_held('freeze_experts', before.params, after.params, 0)
    bias = leaves(after.params)['head/experts/in_bias']
    assert (bias[:, 0] > 0.05).tolist() == [False, True, True, False]


def test_a_dense_twin_trains_without_what_routed_places_need(data_dir):
    changes = {'train.transforms': ARGS, 'model.twin': 'same_width'}
    twin = Setup(train_cases.make(data_dir, SMALL | changes))
    plain = Setup(train_cases.make(data_dir, SMALL | changes | {'train.transforms': {}}))
    assert not twin.transforms and jax.tree.structure(twin.shapes) == jax.tree.structure(
        plain.shapes
    )


@pytest.mark.parametrize(
    'changes, parts',
    [
        ({'freeze_router': {'at': 'step', 'step': 12}}, ['step is 12', 'takes 12 steps']),
        ({'freeze_experts': {'experts': (4,)}}, ['names 4', 'head has 4 experts', '0 to 3']),
        (
            {'freeze_experts': {'experts': (0,), 'layers': 'block'}},
            ["layers 'block' matches no parameter", 'there are block_0/', 'classifier'],
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


def test_a_network_without_routers_has_none_to_freeze(data_dir):
    changes = {'model.moe.placement': 'none', 'train.transforms': {'freeze_router': {}}}
    start = {k: v for k, v in SMALL.items() if 'moe' not in k}
    with pytest.raises(UserError, match=r"freeze_router: '/router/' matches no parameter"):
        Setup(train_cases.make(data_dir, changes, start=start))


def test_what_a_transform_keeps_of_a_bank_is_split_as_the_bank_is():
    class Eight:
        shape = {'data': 2, 'expert': 4}

    array = jax.ShapeDtypeStruct
    state = train_state = {
        'optimizer': {'mu': {'experts': {'w': array((8, 3), 'float32')}}},
        'transforms': {
            'mine': {'experts': {'w': array((8,), 'float32'), 'count': array((), 'int32')}}
        },
    }
    del state
    specs = {}

    def named(mesh_, spec):
        return spec

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mesh, 'NamedSharding', named)
        specs = leaves(mesh.state_shardings(Eight, Holder(train_state)))
    assert specs == {
        'opt_state/optimizer/mu/experts/w': P('expert'),
        'opt_state/transforms/mine/experts/w': P('expert'),
        'opt_state/transforms/mine/experts/count': P(),
    }


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Holder:
    opt_state: dict
