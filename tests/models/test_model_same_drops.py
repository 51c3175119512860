"""The twin with a routed layer's drops. Axes: B images, E experts, K choices, D width."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from model_cases import B, build, filled, images, jit, paths

from moe_vision.common import flops
from moe_vision.config import registry
from moe_vision.layers import DenseBlock, DroppingBlock, Step
from moe_vision.layers.moe import make_expert
from moe_vision.routing import telemetry

N, D = 240, 4


def block(**given):
    expert = make_expert('mlp', None, D, 8)
    return DroppingBlock(
        expert,
        **{
            'num_experts': 4,
            'k': 2,
            'group_size': 60,
            'capacity_factor': 0.5,
            'eval_capacity_factor': 0.75,
        }
        | given,
    )


X = jnp.asarray(np.random.default_rng(0).normal(size=(N, D)), jnp.float32)
VALID = np.random.default_rng(1).random(N) < 0.8
PARAMS = {
    'params': {
        n: jnp.asarray(np.random.default_rng(2).normal(size=shape), jnp.float32)
        for n, (shape, _) in make_expert('mlp', None, D, 8).shapes().items()
    }
}
DENSE = DenseBlock(make_expert('mlp', None, D, 8)).apply(PARAMS, X)


def run(step, x=X, **given):
    return jax.device_get(jit(lambda x: block(**given).apply(PARAMS, x, step))(x))


@pytest.mark.parametrize('train', [True, False])
@pytest.mark.parametrize('k', [1, 2])
def test_the_output_is_the_dense_blocks_times_the_share_of_choices_with_a_slot(train, k):
    step = Step(valid=jnp.asarray(VALID), key=jax.random.key(3), train=train)
    y, info = run(step, k=k)
    found = info['choices']['kept'].any(-1)
    share = info['choices']['kept'].mean(-1, keepdims=True)
    np.testing.assert_allclose(y[found], (share * DENSE)[found], rtol=1e-5, atol=1e-6)
    assert set(np.unique(share)) == {i / k for i in range(k + 1)}
    assert (y[~found] == 0).all() and not found[~VALID].any()
    # C = ceil(0.5 * k * 60 / 4), or of 0.75, of each of 4 experts in each of 4 groups; by hand:
    slots = {(True, 1): 8, (True, 2): 15, (False, 1): 12, (False, 2): 23}[train, k]
    held = np.zeros((4, 4), int)
    np.add.at(
        held,
        (
            np.arange(N)[:, None].repeat(k, 1)[info['choices']['kept']] // 60,
            info['choices']['expert'][info['choices']['kept']],
        ),
        1,
    )
    wanted = np.zeros((4, 4), int)
    np.add.at(
        wanted,
        (np.arange(N)[VALID][:, None].repeat(k, 1) // 60, info['choices']['expert'][VALID]),
        1,
    )
    np.testing.assert_array_equal(held, np.minimum(wanted, slots))
    rates = telemetry.summarize(info['telemetry'])
    assert rates['drop_rate'] == pytest.approx(1 - held.sum() / (k * VALID.sum()))
    assert rates['orphan_rate'] == pytest.approx(1 - found.sum() / VALID.sum())
    assert rates['drop_rate'] > 0.05


def test_where_nothing_can_be_dropped_it_is_the_dense_block():
    y, info = run(Step(key=jax.random.key(3)), eval_capacity_factor=float('inf'))
    np.testing.assert_allclose(y, DENSE, rtol=1e-5, atol=1e-6)
    assert info['telemetry']['dropped'] == 0


def test_what_is_dropped_depends_on_the_key_and_on_nothing_in_the_tokens():
    def kept(key, x):
        return run(Step(key=jax.random.key(key)), x)[1]['choices']['kept']

    np.testing.assert_array_equal(kept(0, X), kept(0, -X))
    assert (kept(0, X) != kept(1, X)).any()
    with pytest.raises(ValueError, match='give the step a key'):
        block().apply(PARAMS, X, Step())


def test_results_do_not_depend_on_the_batch_size():
    part = jit(
        lambda x, start: block(k=1, eval_capacity_factor=0.5).apply(
            PARAMS, x, Step(key=jax.random.key(3), start=start)
        )[0]
    )
    parts = [part(X[i : i + 60], i) for i in range(0, N, 60)]
    chex.assert_trees_all_close(jnp.concatenate(parts), part(X, 0), atol=1e-6)
    assert not np.allclose(part(X[60:120], 0), parts[1])  # something is at stake


@pytest.mark.parametrize('fraction, expected', [(0.0, 0.8), (0.25, 0.6), (0.5, 0.4), (1.0, 0.2)])
def test_measured_drops_follow_training(fraction, expected):
    measured = (0.8, 0.4, 0.2, 0.1)  # at the first step, in the middle, at the last; evaluation
    step = Step(
        valid=jnp.asarray(VALID), key=jax.random.key(3), train=True, fraction=jnp.float32(fraction)
    )
    infinite = {'capacity_factor': float('inf'), 'eval_capacity_factor': float('inf')}
    y, info = run(step, measured=measured, **infinite)
    rate = telemetry.summarize(info['telemetry'])['drop_rate']
    # 384 choices of about 192 images: three standard deviations
    assert rate == pytest.approx(expected, abs=3 * (expected * (1 - expected) / 384) ** 0.5)
    share = info['choices']['kept'].mean(-1, keepdims=True)
    np.testing.assert_allclose(y, share * DENSE, rtol=1e-5, atol=1e-6)
    _, scored = run(Step(key=jax.random.key(3)), measured=measured, **infinite)
    assert telemetry.summarize(scored['telemetry'])['drop_rate'] == pytest.approx(0.1, abs=0.05)


def test_with_room_for_all_in_evaluation_nothing_is_dropped_there():
    given = {'twin': 'same_measured_drops', 'measured_drops': (0.9, 0.9)}
    for factor, drops in ((2.0, True), (float('inf'), False)):
        net = build('conv', eval_capacity_factor=factor, **given)
        step = Step(key=jax.random.key(1))
        infos = jit(lambda v, net=net, step=step: net.apply(v, images(), step)[1])(filled(net))
        assert bool(infos['block_1']['telemetry']['dropped'] > 0) == drops


@pytest.mark.parametrize('name', registry.BACKBONES)
@pytest.mark.parametrize('placement', ['every_2', 'head'])
def test_parameters_and_flops_are_those_of_same_width(name, placement):
    nets = [build(name, placement, twin=twin) for twin in ('same_width', 'same_drops')]
    plain, drops = (
        jax.eval_shape(lambda x, net=net: net.init(jax.random.key(0), x, Step()), images())
        for net in nets
    )
    chex.assert_trees_all_equal_shapes(plain, drops)
    assert paths(plain).keys() == paths(drops).keys()
    cost = [
        flops.total(
            flops.count(
                lambda v, x, net=net: net.apply(v, x, Step(key=jax.random.key(0)))[0],
                plain,
                images(),
            )
        )
        for net in nets
    ]
    assert cost[0] == cost[1] > 0


def test_in_a_network_it_reports_its_drops_and_passes_gradients():
    net = build('conv', twin='same_drops', k=1, capacity_factor=0.5, num_experts=2, group_size=4)
    step = Step(key=jax.random.key(0), train=True, labels=jnp.arange(B) % 5)

    @jit
    def run(variables):
        def loss(params):
            (logits, infos), _ = net.apply(
                {**variables, 'params': params}, images(), step, mutable=['batch_stats']
            )
            return jnp.sum(jnp.sin(logits)), infos

        return jax.grad(loss, has_aux=True)(variables['params'])

    grads, infos = jax.device_get(run(filled(net)))
    assert set(infos) == {'block_1'} and set(infos['block_1']) == {
        'losses',
        'telemetry',
        'observed',
        'choices',
        'changed',
        'place',
    }
    sums = infos['block_1']['telemetry']
    assert sums['tokens'] == B and sums['dropped'] >= 2  # 2 experts with 1 slot each, 4 images
    chex.assert_tree_all_finite(grads)
    assert (grads['block_1']['conv1'] != 0).any()
