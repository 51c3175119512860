"""Initial values keep every bit of what a network's own `init` draws, but compile in loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import train_cases
from routing_cases import equations
from slow import except_for

from moe_vision import leverage
from moe_vision.common import quick
from moe_vision.common.streams import SeedStream
from moe_vision.layers import Step
from moe_vision.training import step
from moe_vision.training.draws import in_loops
from moe_vision.training.setup import Setup

CONFIGS = {
    'conv': {'train.optimizer': 'sgd'},  # with router state, batch norm and a moving average
    'resnet': train_cases.TOP_K
    | {
        'model.name': 'resnet',
        'model.args': {'widths': (32, 64), 'depths': (2, 3)},
        'model.moe.placement': 'last_2',
        'model.moe.expert': 'bottleneck',
    },
    'vit': train_cases.VIT
    | {
        'model.moe.placement': 'every_1',
        'model.moe.bank': '2',
        'train.transforms': {'freeze_experts': {'experts': (1,)}},
    },
}


@pytest.fixture(autouse=True)
def rounding(monkeypatch):
    train_cases.round_as_users_do(monkeypatch)


@pytest.mark.parametrize('name', except_for([*CONFIGS][:1], CONFIGS))
def test_the_bits_are_those_of_the_networks_own_init(name, data_dir):
    config = train_cases.make(data_dir, CONFIGS[name])
    setup = Setup(config)
    images = leverage.trace_images(config, leverage.tokens_per_image(config, setup.info))

    def plainly(key):
        example = jnp.zeros((images, *setup.info.image_shape)), Step.example(images)
        own = jax.random.fold_in(key, SeedStream.INITIAL_VALUES)
        variables = setup.network.init(own, *example)
        return step.init_state(variables, key, setup.tx, bool(config.train.ema_decay))

    train_cases.assert_same_bits(setup.fresh_state(3), quick.jit(plainly)(jax.random.key(3)))


TABLE = np.arange(4.0, dtype=np.float32)


def drawn(key):
    """Values that look alike but are not, beside values that are."""
    keys = [jax.random.fold_in(jax.random.fold_in(key, 7), n) for n in (1, 2**32 - 1, 3)]
    first = [jax.random.normal(k, (4,)) for k in keys]
    return {
        'alike': first,
        'scaled': [2.0 * jax.random.normal(keys[0], (4,)), 3.0 * jax.random.normal(keys[0], (4,))],
        'added': [x + jnp.array(t) for x, t in zip(first, (TABLE, TABLE + 1), strict=False)],
        'of two keys': [jax.random.normal(k, (4,)) * jax.random.uniform(keys[2]) for k in keys],
        'split': [jax.random.normal(k, (4,)) for k in jax.random.split(keys[0])],
        'of the draw before': jnp.sin(first[0]),
        'zeros': [jnp.zeros(3), jnp.zeros(3), -jnp.zeros(3)],
        'key': jax.random.key_data(key),
        'given': jnp.array(TABLE),
    }


def test_equal_draws_stand_in_one_loop_and_others_are_kept_apart():
    key, short = jax.random.key(5), in_loops(lambda key: {'alike': drawn(key)['alike']})
    draws = [
        [e for e in equations(jax.make_jaxpr(f)(key).jaxpr) if e.primitive.name == 'random_bits']
        for f in (drawn, short)
    ]
    assert [len(d) for d in draws] == [13, 1]
    train_cases.assert_same_bits(*(quick.jit(f)(key) for f in (in_loops(drawn), drawn)))


def test_seeds_together_draw_what_each_draws_alone():
    keys = jax.vmap(jax.random.key)(jnp.arange(3))
    together = quick.jit(jax.vmap(in_loops(drawn)))(keys)
    for i in range(3):
        alone = quick.jit(drawn)(keys[i])
        train_cases.assert_same_bits(jax.tree.map(lambda x, i=i: x[i], together), alone)
