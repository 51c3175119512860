"""`train.trainable`: what is frozen stands still, whatever it is made of."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import train_cases

from moe_vision.common.paths import path_name
from moe_vision.layers import Step
from moe_vision.models.parts import normalize_images
from moe_vision.training import mesh
from moe_vision.training.frozen import Frozen
from moe_vision.training.setup import Setup

SMALL = {'model.args': {'widths': (8,), 'depth': 1}}
ROUTED = SMALL | {'train.weight_decay': 0.1, 'train.warmup_steps': 0}
DENSE = SMALL | {'model.moe.placement': 'none', 'train.batch_size': 32}


def take(setup, state):
    """(state, metrics) after one step on a batch of noise."""
    rng = np.random.default_rng(int(state.step))
    batch = {
        'image': rng.integers(0, 256, (32, 8, 8, 1)).astype(np.uint8),
        'label': rng.integers(0, 10, 32).astype(np.int32),
        'valid': np.ones(32, bool),
    }
    arrays = mesh.to_devices(batch, setup.mesh, setup.config.train.micro_batches)
    state, metrics = setup.step(jax.device_put(state, setup.shardings), arrays)
    return jax.device_get(state), jax.device_get(metrics), batch


@pytest.mark.parametrize(
    'pattern, moves, micro_batches',
    [
        ('^classifier', lambda name: name.startswith('classifier'), 1),
        ('/router/', lambda name: '/router/' in name, 1),
        ('norm/scale', lambda name: name.endswith(('norm/scale', 'norm/mean', 'norm/var')), 2),
    ],
)
def test_what_is_frozen_keeps_its_bits_and_the_rest_moves(data_dir, pattern, moves, micro_batches):
    changes = {'train.trainable': pattern, 'train.micro_batches': micro_batches}
    setup = Setup(train_cases.make(data_dir, ROUTED | changes))
    first = state = jax.device_get(setup.fresh_state())
    for _ in range(2):
        state, _, _ = take(setup, state)
    kinds = ('params', 'ema', 'batch_stats', 'router_state')
    names = set()
    for kind in kinds:
        before = jax.tree_util.tree_leaves_with_path(getattr(first, kind))
        for (path, a), b in zip(before, jax.tree.leaves(getattr(state, kind)), strict=True):
            names.add(name := path_name(path))
            assert (a.tobytes() != b.tobytes()) == moves(name), (kind, name)
    assert {n.rpartition('/')[2] for n in names} >= {'kernel', 'scale', 'mean', 'var', 'bias'}
    assert jax.tree.leaves(first.router_state)


def test_a_frozen_norm_normalises_in_training_as_in_evaluation(data_dir):
    """So a frozen backbone gives the classifier the features with which it will be scored."""
    frozen, free = (
        Setup(train_cases.make(data_dir, {'train.trainable': pattern}, start=DENSE))
        for pattern in ('^classifier', '.*')
    )
    state = frozen.fresh_state()
    stats = jax.tree.map(lambda x: x * 1.5 + 0.2, state.batch_stats)
    state = jax.device_get(dataclasses.replace(state, batch_stats=stats))
    _, metrics, batch = take(frozen, state)
    images = normalize_images(jnp.asarray(batch['image']), *mean_std(frozen))
    logits, _ = frozen.network.apply(state.variables(), images, Step())
    logp = np.asarray(jax.nn.log_softmax(logits))
    want = -np.take_along_axis(logp, batch['label'][:, None], 1).mean()
    np.testing.assert_allclose(metrics['task_loss'], want, rtol=1e-5)
    state = dataclasses.replace(state, opt_state=jax.device_get(free.fresh_state().opt_state))
    assert abs(take(free, state)[1]['task_loss'] - want) > 0.01


def mean_std(setup):
    import input_pipeline

    return input_pipeline.mean_std(setup.config.dataset)


class Net(nn.Module):
    """Two norms, told in the two ways that Flax has; `own` is a module of one's own without any
    parameter."""

    at_call: bool
    train: bool = True

    @nn.compact
    def __call__(self, x):
        for name in ('one', 'two'):
            still = not self.train
            norm = nn.BatchNorm(None if self.at_call else still, name=name)
            x = norm(x, use_running_average=still) if self.at_call else norm(x)
        return x


@pytest.mark.parametrize('at_call', [True, False])
def test_norms_of_a_network_of_ones_own_stand_still_one_by_one(at_call):
    x = jax.random.normal(jax.random.key(0), (16, 3)) * 2 + 1
    net = Net(at_call)
    variables = net.init(jax.random.key(1), x)
    frozen = Frozen(variables['params'], '^two')
    assert not frozen.nothing and Frozen(variables['params'], '.').nothing
    with frozen.norms():
        _, updates = net.apply(variables, x, mutable=['batch_stats'])
    assert np.asarray(updates['batch_stats']['two']['mean']).any()
    train_cases.assert_same_bits(
        updates['batch_stats']['one'], variables['batch_stats']['one']
    )  # without `keep`


PARAMS = {
    'stem': {'kernel': 0},
    'block': {'conv': {'kernel': 0}, 'moe': {'router': {'kernel': 0}, 'experts': {'w': 0}}},
    'blocks': {'norm': {'scale': 0, 'bias': 0}},
    'classifier': {'bias': 0},
}


@pytest.mark.parametrize(
    'pattern, path, moves',
    [
        ('.*', 'anything', True),
        ('^stem', 'stem/kernel', True),
        ('^stem', 'blocks/norm/scale', False),
        ('bias', 'blocks/norm/mean', True),  # a part of the module is trained
        ('stem', 'blocks/norm/mean', False),
        ('experts', 'block/moe/router/bias', False),  # the router is frozen, its experts are not
        ('router', 'block/moe/router/bias', True),
        ('experts', 'block/moe/count', True),
        ('conv', 'block/norm/mean', True),  # no parameters: as the block around it
        ('router', 'block/conv/norm/mean', False),
        ('norm', 'block/conv/mean', False),  # 'blocks' is another one
        ('stem', 'mean', True),  # of the whole network
        ('stem', 'other/norm/mean', True),
    ],
)
def test_what_is_no_parameter_moves_with_its_module(pattern, path, moves):
    assert Frozen(PARAMS, pattern).moves(path) == moves
