"""Stochastic depth, and blocks that are computed again. Axes: B images, D width."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from model_cases import CLASSES, TRAIN, B, build, config, filled, images, jit, paths
from slow import except_for

from moe_vision import models
from moe_vision.config import registry
from moe_vision.layers import Step
from moe_vision.models.parts import drop_path

every_backbone = pytest.mark.parametrize('name', except_for(('conv', 'vit'), registry.BACKBONES))
ONES = jnp.ones((4000, 2))


def dropped(block, start=0, count=4000, key=5, branch=0, rate=0.4, blocks=5):
    step = dataclasses.replace(TRAIN, key=jax.random.key(key), start=start)
    return np.asarray(drop_path(ONES[:count], step, rate, block, blocks, branch))


@pytest.mark.parametrize('block, p', [(0, 0.0), (1, 0.1), (2, 0.2), (4, 0.4)])
def test_the_rate_rises_linearly_and_the_mean_stays(block, p):
    y = dropped(block)
    assert set(np.unique(y)) == ({np.float32(1 / (1 - p)), np.float32(0)} if p else {1})
    assert (y[:, 0] == y[:, 1]).all()  # the whole image
    # p has a standard deviation of 0.008 at most over 4,000 images
    assert abs((y == 0).mean() - p) <= 0.03 and abs(y.mean() - 1) <= 0.06
    assert (dropped(0, rate=0.4, blocks=1) == 0).any()  # a single block is the last


def test_an_image_has_its_own_draw_whatever_batch_it_stands_in():
    whole = dropped(4)
    parts = [dropped(4, start, 1000) for start in range(0, 4000, 1000)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    for other in (dropped(4, key=6), dropped(4, branch=1), dropped(3, rate=0.4 * 4 / 3)):
        assert 0.4 < ((other == 0) == (whole == 0)).mean() < 0.65  # independent: 0.52


def test_nothing_is_dropped_in_evaluation_and_no_draw_goes_without_a_key():
    assert (drop_path(ONES, Step(), 0.9, 1, 2) == 1).all()
    with pytest.raises(ValueError, match='give the step a key'):
        drop_path(ONES, Step(train=True), 0.9, 1, 2)
    bad = jnp.full((50, 2), jnp.nan)
    y = np.asarray(drop_path(bad, TRAIN, 0.9, 1, 2))
    assert {float(v) for v in y[~np.isnan(y)]} == {0.0}  # whatever the branch holds


@every_backbone
def test_a_branch_that_is_left_out_gives_nothing_but_is_routed(name):
    """All images lose the last block; routing, capacity and losses do not notice."""

    nets = {
        rate: build(name, 'last_1', args={'drop_path': rate}, capacity_factor=0.5)
        for rate in (1 - 1e-7, 0.0)
    }
    variables = filled(nets[0.0])
    params = variables['params']
    twice = {**params, 'block_1': jax.tree.map(lambda a: 2 * a, params['block_1'])}
    other = {**variables, 'params': twice}

    def run(rate):
        net = nets[rate]
        apply = jit(lambda v: net.apply(v, images(), TRAIN, mutable=['batch_stats'])[0])
        return [jax.device_get(apply(v)) for v in (variables, other)]

    (left_out, infos), (same, _) = run(1 - 1e-7)
    (there, infos_there), (differs, _) = run(0.0)
    np.testing.assert_array_equal(left_out, same)
    assert np.abs(there - differs).max() > 1e-3
    if name not in ('vit', 'resnet'):  # there other branches are left out before the router
        chex.assert_trees_all_close(infos, infos_there, atol=1e-6)
    assert infos['block_1']['telemetry']['dropped'] > 0


def gradient(net, variables):
    def loss(params):
        (logits, infos), stats = net.apply(
            {**variables, 'params': params}, images(), TRAIN, mutable=['batch_stats']
        )
        aux = sum(sum(i['losses'].values()) for i in infos.values())
        return jnp.sum(jnp.sin(logits)) + aux, (logits, infos, stats)

    return jax.value_and_grad(loss, has_aux=True)(variables['params'])


@every_backbone
def test_each_block_is_computed_again_and_nothing_else(name):
    model = config(name, 'last_1')
    nets = [models.build(dataclasses.replace(model, remat=r), CLASSES) for r in (False, True)]
    variables = [
        jax.eval_shape(lambda x, n=n: n.init(jax.random.key(0), x, TRAIN), images()) for n in nets
    ]
    chex.assert_trees_all_equal_shapes(*variables)
    counts = [
        str(jax.make_jaxpr(lambda v, n=n: gradient(n, v))(variables[0])).count(
            'differentiated=True'
        )
        for n in nets
    ]
    blocks = 3 if name == 'resnet' else 2  # one that projects
    assert counts == [0, blocks]


DEEP = {
    'conv': {'widths': (8,), 'depth': 4},
    'depthwise': {'widths': (8,), 'depth': 4},
    'resnet': {'widths': (32,), 'depths': (4,)},
    'convnext': {'widths': (16,), 'depths': (4,)},
    'vit': {'width': 16, 'depth': 4},
}


@every_backbone
def test_little_is_kept_for_the_backward_pass(name):
    """Bytes that the forward pass leaves to it, weights not counted: an input for each block.

    What a compiler makes of this differs: for a CPU XLA merges what is computed twice.
    """

    model = config(name, 'last_1', args=DEEP[name], group_size=64)
    nets = {r: models.build(dataclasses.replace(model, remat=r), CLASSES) for r in (False, True)}
    x = jax.ShapeDtypeStruct((64, 16, 16, 3), jnp.float32)
    variables = jax.eval_shape(lambda x: nets[False].init(jax.random.key(0), x, TRAIN), x)

    def kept(remat):
        net = nets[remat]

        def forward(params, rest, x):
            def run(params):
                return net.apply({'params': params, **rest}, x, TRAIN, mutable=['batch_stats'])[0][
                    0
                ]

            return jax.vjp(run, params)[1]

        rest = {n: v for n, v in variables.items() if n != 'params'}
        residuals = jax.eval_shape(forward, variables['params'], rest, x)
        return sum(
            a.size * a.dtype.itemsize
            for a in jax.tree.leaves(residuals)
            if a.ndim > 1 and a.shape[0] >= 64
        )

    assert kept(True) < 0.5 * kept(False)


@pytest.mark.parametrize('name', ['conv', 'vit'])
def test_remat_gives_the_same_numbers(name):
    model = config(name, 'last_1', args={'drop_path': 0.3})
    nets = [models.build(dataclasses.replace(model, remat=r), CLASSES) for r in (False, True)]
    variables = filled(nets[0])
    plain, again = (jit(functools.partial(gradient, net))(variables) for net in nets)
    assert paths(plain[1]).keys() == paths(again[1]).keys()
    chex.assert_trees_all_close(again, plain, rtol=1e-5, atol=1e-5)


@pytest.mark.tables
@pytest.mark.parametrize('name', ['resnet', 'convnext'])
def test_a_small_one_trains_in_bfloat16_with_all_of_it(name):
    model = config(name, 'every_2', dtype='bfloat16', args={'drop_path': 0.2})
    net = models.build(dataclasses.replace(model, remat=True), CLASSES)
    variables, labels = filled(net), jnp.arange(B) % CLASSES

    @jit
    def step(params):
        def loss(params):
            (logits, infos), _ = net.apply(
                {**variables, 'params': params}, images(), TRAIN, mutable=['batch_stats']
            )
            chosen = jax.nn.log_softmax(logits)[jnp.arange(B), labels]
            return -chosen.mean() + sum(infos['block_1']['losses'].values())

        value, grads = jax.value_and_grad(loss)(params)
        return value, jax.tree.map(lambda p, g: p - 0.02 * g, params, grads)

    params, values = variables['params'], []
    for _ in range(4):
        value, params = step(params)
        values.append(float(value))
    assert np.isfinite(values).all() and values[-1] < values[0]
    chex.assert_tree_all_finite(params)
