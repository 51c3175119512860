"""One optimizer step against numbers computed by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import train_cases

from moe_vision.common.errors import UserError
from moe_vision.common.paths import path_name
from moe_vision.config import check as config_lib
from moe_vision.layers import Step
from moe_vision.models.parts import normalize_images
from moe_vision.run_folder import metrics
from moe_vision.training import mesh, optimizer
from moe_vision.training.schedule import durations
from moe_vision.training.setup import Setup
from moe_vision.training.step import mixing_group

SMALL = {
    'model.moe.placement': 'head',
    'model.moe.group_size': 8,
    'train.ema_decay': 0.0,
    'model.args': {'widths': (8,), 'depth': 1, 'norm': 'group'},
    'train.mixup': 0.0,
    'train.label_smoothing': 0.0,
    'train.warmup_steps': 0,
    'train.learning_rate': 0.5,
    'train.optimizer': 'sgd',
    'train.optimizer_args': {'momentum': 0.0, 'nesterov': False},
    'train.weight_decay': 0.0,
    'train.clip_norm': 0.0,
    'train.steps': 10,
    'model.moe.capacity_factor': float('inf'),
}


def batch(rows=32, invalid=(3, 4, 20)) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    valid = np.ones(rows, bool)
    valid[list(invalid)] = False
    return {
        'image': rng.integers(0, 256, (rows, 8, 8, 1)).astype(np.uint8),
        'label': rng.integers(0, 10, rows).astype(np.int32),
        'valid': valid,
    }


class Run:
    """Trains a config for a few steps, all on the same batch."""

    def __init__(self, data_dir, changes=None, steps=1):
        self.config = train_cases.make(data_dir, {**SMALL, **(changes or {})})
        self.setup = Setup(self.config)
        self.step = self.setup.step
        self.states, self.out = [jax.device_get(self.setup.fresh_state())], []
        for _ in range(steps):
            state, out = self.take(batch(), self.states[-1])
            self.states.append(state)
            self.out.append(out)

    def take(self, rows, state=None):
        """(state, metrics) after one step on a batch, from `state` or from the fresh state."""
        state = jax.device_put(state or self.states[0], self.setup.shardings)
        arrays = mesh.to_devices(rows, self.setup.mesh, self.config.train.micro_batches)
        return jax.device_get(self.step(state, arrays))

    def moved(self, step=1):
        return jax.tree.map(
            lambda a, b: a - b, self.states[step].params, self.states[step - 1].params
        )


@pytest.fixture(scope='module')
def basic(data_dir):
    return Run(data_dir)


@pytest.fixture(scope='module')
def mixing(data_dir):
    return Run(data_dir, {'train.mixup': 1.0})


def close(ours, theirs, rtol=1e-5):
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(ours), jax.tree.leaves(theirs), strict=True
    ):
        near = max(rtol * np.abs(b).max(), 2e-7)
        np.testing.assert_allclose(a, b, rtol=rtol, atol=near, err_msg=path_name(path))


@pytest.mark.slow
def test_micro_batches_give_the_gradient_of_the_whole_batch(mixing, data_dir):
    """Also when they have different numbers of valid images (6, 8, 7 and 8) and mix images."""
    run = Run(data_dir, {'train.mixup': 1.0, 'train.micro_batches': 4})
    close(run.moved(), mixing.moved())
    for name in ('loss', 'task_loss', 'accuracy', 'grad_norm'):
        np.testing.assert_allclose(run.out[0][name], mixing.out[0][name], rtol=1e-5, err_msg=name)
    close(run.out[0]['losses'], mixing.out[0]['losses'])
    close(run.out[0]['layers'], mixing.out[0]['layers'])
    assert float(run.out[0]['layers']['head']['tokens']) == 29
    rows = metrics.Interval()
    for step in (1, 2):
        rows.add(step, run.out[0])
    assert rows.row(10.0)['bad_images'] == 6  # three in each step


def test_a_micro_batch_without_a_valid_image_changes_nothing(data_dir):
    """A batch norm over no image gave NaN, and the run ended at this step whenever it restarted."""
    run = Run(
        data_dir,
        {'model.args': {'widths': (8,), 'depth': 1, 'norm': 'batch'}, 'train.micro_batches': 2},
        steps=0,
    )
    fresh = run.states[0]
    state, out = run.take(batch(invalid=range(32)))
    assert out['loss'] == out['grad_norm'] == 0
    for name in ('params', 'batch_stats', 'router_state'):
        train_cases.assert_same_bits(getattr(state, name), getattr(fresh, name))
    half = batch(invalid=range(16, 32))
    others = half | {'image': half['image'].copy()}
    others['image'][16:] ^= 255
    states = [run.take(rows)[0] for rows in (half, others)]
    train_cases.assert_same_bits(*states)  # the images of the second half are never looked at
    train_cases.assert_same_bits(states[0].batch_stats, fresh.batch_stats)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(states[0]))
    moved = run.take(batch())[0].batch_stats
    pairs = zip(*map(jax.tree.leaves, (moved, fresh.batch_stats)), strict=True)
    assert all((new != old).any() for new, old in pairs)


def forward(run, images):
    params = {
        'params': run.states[0].params,
        'batch_stats': {},
        'router_state': run.states[0].router_state,
    }
    x = normalize_images(jnp.asarray(images), *mean_std(run))
    return jax.jit(run.setup.network.apply)(params, x, Step(valid=jnp.asarray(batch()['valid'])))


def mean_std(run):
    import input_pipeline

    return input_pipeline.mean_std(run.config.dataset)


def test_the_loss_is_the_mean_over_valid_images_and_the_gradient_is_its_own(basic):
    rows = batch()
    logits, infos = forward(basic, rows['image'])
    p = jax.nn.log_softmax(logits)
    each = -np.take_along_axis(np.asarray(p), rows['label'][:, None], 1)[:, 0]
    np.testing.assert_allclose(basic.out[0]['task_loss'], each[rows['valid']].mean(), rtol=1e-5)
    right = (np.argmax(logits, -1) == rows['label'])[rows['valid']]
    np.testing.assert_allclose(basic.out[0]['accuracy'], right.mean(), rtol=1e-6)
    np.testing.assert_allclose(
        basic.out[0]['loss'],
        basic.out[0]['task_loss'] + basic.out[0]['losses']['switch'],
        rtol=1e-6,
    )
    # with SGD without momentum the parameters move by learning rate times gradient
    norm = np.sqrt(sum(np.square(x).sum() for x in jax.tree.leaves(basic.moved()))) / 0.5
    np.testing.assert_allclose(basic.out[0]['grad_norm'], norm, rtol=1e-4)


def test_smoothing_clipping_and_averaging(basic, data_dir):
    run = Run(
        data_dir,
        {'train.label_smoothing': 0.2, 'train.clip_norm': 0.01, 'train.ema_decay': 0.75},
        steps=2,
    )
    rows = batch()
    p = np.asarray(jax.nn.log_softmax(forward(basic, rows['image'])[0]))
    # smoothing spreads a weight of 0.2 evenly over the ten classes
    targets = np.full((32, 10), 0.02) + 0.8 * np.eye(10)[rows['label']]
    np.testing.assert_allclose(
        run.out[0]['task_loss'], -(p * targets).sum(1)[rows['valid']].mean(), rtol=1e-5
    )
    assert run.out[0]['grad_norm'] > 0.01
    norm = np.sqrt(sum(np.square(x).sum() for x in jax.tree.leaves(run.moved())))
    np.testing.assert_allclose(norm, 0.5 * 0.01, rtol=1e-3)
    one, two = (state.params for state in run.states[1:])
    close(run.states[1].ema, one, 1e-6)  # without the initial values
    close(run.states[2].ema, jax.tree.map(lambda e, p: 0.1 * e + 0.9 * p, one, two), 1e-6)
    assert run.states[2].variables(averaged=True)['params'] is run.states[2].ema
    assert basic.states[1].variables(averaged=True)['params'] is basic.states[1].params


def test_each_step_draws_anew_and_the_same_step_the_same(mixing):
    later = dataclasses.replace(mixing.states[0], step=np.int32(1))
    losses = [
        float(mixing.take(batch(), s)[1]['task_loss'])
        for s in (mixing.states[0], mixing.states[0], later)
    ]
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize('kind', ['mixup', 'cutmix'])
def test_partners_of_a_mixture_lie_in_the_same_group(basic, mixing, data_dir, kind):
    """If all images of a group are the same, mixing changes nothing."""
    rows = batch(invalid=())
    for name in ('image', 'label'):
        rows[name] = np.repeat(rows[name][:4], 8, axis=0)
    run = mixing if kind == 'mixup' else Run(data_dir, {'train.cutmix': 1.0})
    mixed, same = (r.take(rows)[1]['task_loss'] for r in (run, basic))
    np.testing.assert_allclose(mixed, same, rtol=1e-6)
    # and if they differ, it does
    assert abs(run.out[0]['task_loss'] / basic.out[0]['task_loss'] - 1) > 3e-5


def test_parameters_that_are_not_trainable_keep_their_bits(data_dir):
    run = Run(
        data_dir,
        {
            'train.trainable': 'head/router|classifier',
            'train.optimizer': 'adamw',
            'train.optimizer_args': {},
            'train.weight_decay': 0.1,
        },
        steps=2,
    )
    first, last = run.states[0].params, run.states[2].params
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(first), jax.tree.leaves(last), strict=True
    ):
        trained = path_name(path).startswith(('head/router', 'classifier'))
        assert (a.tobytes() == b.tobytes()) == (not trained), path_name(path)
    moments = {
        path_name(p).split('/mu/')[1]
        for p, _ in jax.tree_util.tree_leaves_with_path(run.states[2].opt_state)
        if '/mu/' in path_name(p)
    }
    assert moments == {'head/router/kernel', 'classifier/kernel', 'classifier/bias'}


def test_bfloat16_keeps_parameters_and_router_in_float32(basic, data_dir):
    run = Run(data_dir, {'model.dtype': 'bfloat16'})
    assert run.out[0]['task_loss'] != basic.out[0]['task_loss']
    np.testing.assert_allclose(run.out[0]['task_loss'], basic.out[0]['task_loss'], rtol=0.03)
    assert {str(x.dtype) for x in jax.tree.leaves(run.states[1].params)} == {'float32'}
    assert run.out[0]['loss'].dtype == np.float32
    state = run.setup.shapes
    arrays = {n: jax.ShapeDtypeStruct((1, *x.shape), x.dtype) for n, x in batch().items()}
    program = str(jax.make_jaxpr(run.step)(state, arrays))
    lines = [x for x in program.splitlines() if 'conv_general_dilated[' in x or 'dot_general[' in x]
    kinds = {kind: sum(f':{kind}[' in x for x in lines) for kind in ('bf16', 'f32')}
    # three products of the router and one for the gradient of the gates
    assert kinds['f32'] == 4 and kinds['bf16'] >= 18, kinds


def test_an_expression_that_matches_nothing_is_refused_with_names(data_dir):
    with pytest.raises(UserError, match="'heads' matches no parameter; there are block_0/") as e:
        Run(data_dir, {'train.trainable': 'heads'})
    assert '\n' not in str(e.value)


PARAMS = {
    'block_0': {
        'conv1': {'kernel': jnp.ones((3, 3, 4, 4))},
        'norm': {'scale': jnp.ones(4)},
        'query': {'kernel': jnp.ones((4, 2, 2)), 'bias': jnp.ones((2, 2))},
    },
    'block_1': {
        'experts': {
            'in_kernel': jnp.ones((3, 4, 5)),
            'in_bias': jnp.ones((3, 5)),
            'conv1': jnp.ones((3, 3, 3, 4, 4)),
            'norm1_scale': jnp.ones((3, 4)),
        },
        'router': {'kernel': jnp.ones((4, 3))},
    },
    'position': jnp.ones((1, 16, 4)),
    'class_token': jnp.ones((1, 1, 4)),
}
DECAYED = {
    'block_0/conv1/kernel',
    'block_0/query/kernel',
    'block_1/experts/in_kernel',
    'block_1/experts/conv1',
}  # not the router: a frozen one must not change


@pytest.mark.parametrize('name', ['adamw', 'sgd'])
def test_only_matrices_and_filters_decay(data_dir, name):
    train = train_cases.make(
        data_dir, {'train.optimizer': name, 'train.weight_decay': 0.5, 'train.clip_norm': 0.0}
    ).train
    tx = optimizer.make(train, optax.constant_schedule(0.1), PARAMS)
    zero = jax.tree.map(jnp.zeros_like, PARAMS)
    updates = jax.jit(lambda g, p: tx.update(g, tx.init(p), p)[0])(zero, PARAMS)
    moved = {
        path_name(p): float(jnp.abs(x).max())
        for p, x in jax.tree_util.tree_leaves_with_path(updates)
    }
    assert {n for n, x in moved.items() if x} == DECAYED
    # adamw: lr * wd * w; sgd with Nesterov momentum 0.9: 1.9 times that in the first step
    want = 0.1 * 0.5 * (1.9 if name == 'sgd' else 1.0)
    np.testing.assert_allclose([moved[n] for n in DECAYED], want, rtol=1e-6)


def test_the_first_step_of_each_optimizer(data_dir):
    """adamw: lr g / (|g| + eps). sgd with Nesterov momentum m: lr (1 + m) g."""
    grads = {'kernel': jnp.array([[3.0, -0.5], [1e-3, 2.0]])}
    params = {'kernel': jnp.zeros((2, 2))}
    for name, args, want in [
        ('adamw', {'eps': 1e-3}, -0.1 * np.array([[3 / 3.001, -0.5 / 0.501], [0.5, 2 / 2.001]])),
        ('sgd', {'momentum': 0.8}, -0.18 * np.asarray(grads['kernel'])),
        ('sgd', {'momentum': 0.8, 'nesterov': False}, -0.1 * np.asarray(grads['kernel'])),
    ]:
        train = train_cases.make(
            data_dir,
            {'train.optimizer': name, 'train.optimizer_args': args, 'train.clip_norm': 0.0},
        ).train
        tx = optimizer.make(train, optax.constant_schedule(0.1), params)
        updates, _ = tx.update(grads, tx.init(params), params)
        np.testing.assert_allclose(updates['kernel'], want, rtol=1e-4)


def test_the_schedule_warms_up_in_a_line_and_ends_at_zero(data_dir):
    train = train_cases.make(data_dir, {'train.learning_rate': 0.8}).train
    rate = optimizer.schedule(train, total_steps=100, warmup_steps=20)
    np.testing.assert_allclose([rate(n) for n in (0, 5, 10, 20)], [0, 0.2, 0.4, 0.8], rtol=1e-6)
    np.testing.assert_allclose(rate(60), 0.4, rtol=1e-6)  # half way down the cosine
    np.testing.assert_allclose([rate(100), rate(150)], 0.0, atol=1e-8)
    cold = optimizer.schedule(train, total_steps=100, warmup_steps=0)
    np.testing.assert_allclose([cold(0), cold(50), cold(100)], [0.8, 0.4, 0.0], atol=1e-7)


def averages(decay: float, steps: int) -> np.ndarray:
    """The share of the initial values and of the weights after each step in the average, after each
    step: [steps + 1, steps + 1], in float64 but for the decay."""
    shares = np.eye(steps + 1)
    average = {'w': jnp.asarray(shares[0])}
    rows = [shares[0]]
    take = jax.jit(lambda before, share, t: optimizer.average(before, share, t, decay))
    for t in range(1, steps + 1):
        average = take(average, {'w': jnp.asarray(shares[t])}, jnp.int32(t))
        rows.append(np.asarray(average['w']))
    return np.asarray(rows)


@pytest.mark.parametrize('decay', [0.5, 0.99, 0.9999])
def test_the_average_is_of_trained_weights_alone_however_short_the_run(decay):
    shares = averages(decay, 270)[1:]
    np.testing.assert_allclose(shares.sum(1), 1, rtol=1e-5)
    assert not shares[:, 0].any()  # nothing of the initial values
    age = shares @ -np.arange(271) + np.arange(1, 271)  # of the weights averaged, in steps
    assert (age <= 0.1 * np.arange(1, 271) + 1e-3).all()
    assert (age <= decay / (1 - decay) + 1e-3).all()  # the age of the plain average


def test_the_average_becomes_the_plain_one():
    """decay 0.5: the plain average from step (8 * 0.5 + 1) / 0.5 = 10 on."""
    shares = averages(0.5, 40)
    assert not np.allclose(shares[9], 0.5 * shares[8] + 0.5 * np.eye(41)[9])
    for t in range(10, 41):
        np.testing.assert_allclose(shares[t], 0.5 * shares[t - 1] + 0.5 * np.eye(41)[t], rtol=1e-6)
    plain = 0.5 ** np.arange(1, 41)[::-1]
    np.testing.assert_allclose(shares[40, 11:], plain[10:], rtol=1e-6)


def test_weights_that_stand_still_are_their_average_bit_for_bit():
    weights = {'w': jax.random.normal(jax.random.key(0), (1000,))}
    average = weights
    for t in range(1, 30):
        average = optimizer.average(average, weights, jnp.int32(t), 0.999)
    train_cases.assert_same_bits(average, weights)


def times(data_dir, images=100, **changes):
    start = {'train.batch_size': 10, 'model.moe.group_size': 10, 'train.epochs': 3.0}
    keys = {k.replace('__', '.'): v for k, v in changes.items()}
    return durations(train_cases.make(data_dir, {**start, **keys}, start={}), images)


def test_durations_count_epochs_unless_steps_are_given(data_dir):
    t = times(
        data_dir,
        train__warmup_epochs=0.5,
        eval__every_epochs=1.0,
        checkpoint__every_epochs=2.0,
        log__every_steps=7,
    )
    assert (t.total, t.warmup, t.per_epoch) == (30, 5, 10.0)
    assert sorted(t.evaluations) == [10, 20, 30]
    assert sorted(t.checkpoints) == [20, 30]  # and at the end
    # 7 and 28 are too near to 10 and 30, and 21 to 20
    assert [n for n in range(1, 31) if t.row_ends(n)] == [10, 14, 20, 30]
    t = times(
        data_dir,
        train__steps=25,
        train__warmup_steps=3,
        eval__every_steps=10,
        checkpoint__every_steps=25,
    )
    assert (t.total, t.warmup) == (25, 3)
    assert sorted(t.evaluations) == [10, 20, 25] and sorted(t.checkpoints) == [25]


@pytest.mark.parametrize('logs', [1, 2, 7, 20, 50])
@pytest.mark.parametrize('per_epoch', [41, 100, 119, 121, 130, 1001])
def test_no_row_averages_a_few_steps_only(data_dir, per_epoch, logs):
    """An epoch of 41 steps, and a row every 20, gave one of a single step at its end."""
    t = times(data_dir, 10 * per_epoch, train__epochs=2.6, log__every_steps=logs)
    ends = [n for n in range(1, t.total + 1) if t.row_ends(n)]
    assert t.evaluations | t.checkpoints <= set(ends)
    lengths = np.diff([0, *ends])
    assert lengths.min() >= min(logs / 2, 0.6 * per_epoch) and lengths.max() < 2 * logs


def test_durations_do_not_drift_when_an_epoch_is_no_whole_number_of_steps(data_dir):
    t = times(
        data_dir,
        images=96,
        train__epochs=10.0,
        eval__every_epochs=1.0,
        checkpoint__every_epochs=0.25,
    )  # every 9.6 and 2.4 steps
    assert t.total == 96
    assert sorted(t.evaluations) == [10, 19, 29, 38, 48, 58, 67, 77, 86, 96]
    assert len(t.checkpoints) == 40
    t = times(data_dir, train__epochs=0.5, train__warmup_epochs=0.0, eval__every_epochs=1.0)
    assert (t.total, sorted(t.evaluations)) == (5, [5])  # shorter than an epoch: at the end


def test_a_config_is_the_same_after_json_and_back(data_dir):
    config = train_cases.make(data_dir, SMALL)
    assert config_lib.from_dict(config_lib.to_dict(config)) == config


@pytest.mark.parametrize(
    'group, images, want',
    [(64, 128, 4), (12, 48, 4), (7, 28, 7), (13, 26, 13), (9, 18, 3), (1, 32, 4), (1, 11, 11)],
)
def test_partners_are_few_neighbours_of_one_routing_group(group, images, want):
    assert mixing_group(group, images) == want


def test_a_router_that_needs_the_domain_gets_it(data_dir):
    """Through a training step: with four experts for four domains, loads are the domains' parts."""
    run = Run(
        data_dir,
        {
            'dataset.domains': 4,
            'model.moe.router': 'oracle',
            'model.moe.router_args': {},
            'model.moe.losses': {},
            'model.moe.k': 1,
            'model.moe.num_experts': 4,
        },
        steps=0,
    )
    rows = batch()
    rows['domain'] = np.arange(32, dtype=np.int32) % 3
    _, out = run.take(rows)
    expected = np.bincount(rows['domain'][rows['valid']], minlength=4)
    np.testing.assert_array_equal(out['layers']['head']['chosen'], expected)


def test_what_a_router_observes_reaches_its_state_once_a_step(data_dir):
    """Summed over micro-batches, without the padding; it is no metric."""
    own = {
        'model.moe.router': 'examples.unsure_router:Unsure',
        'model.moe.router_args': {'decay': 0.0},
        'model.moe.losses': {},
    }
    runs = [Run(data_dir, own | {'train.micro_batches': n}) for n in (1, 4)]
    means = [float(run.states[1].router_state['head']['router']['sure']) for run in runs]
    assert means[0] == pytest.approx(means[1], rel=1e-5) and 0.1 < means[0] < 1
    assert all('observed' not in run.out[0] for run in runs)


def test_labels_reach_a_loss_that_needs_them(data_dir):
    """With a router that reads none. The loss counts images of class 0 alone."""
    loss = 'own_methods:of_labels'
    run = Run(data_dir, {'model.moe.losses': {loss: 1.0}, 'model.moe.router_args': {}}, steps=0)
    rows = batch()
    for wrong, zero in ((rows['label'], False), (np.ones_like(rows['label']), True)):
        _, out = run.take(rows | {'label': wrong})
        assert (float(out['losses'][loss]) == 0) == zero
