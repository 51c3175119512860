"""The layer on vectors, sequences and maps, in a stated type, and through the bridge to nnx."""

from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.nnx import bridge
from layer_cases import TRAIN, init, jit, moe, normal, tokens
from slow import except_for

from moe_vision.layers import Step


def test_a_sequence_is_routed_as_its_tokens():
    x = normal(0, 3, 8, 8)
    layer = moe(losses={'importance': 1.0})
    variables = init(layer, x)
    valid = jnp.arange(24).reshape(3, 8) % 5 > 0
    as_sequence = jit(layer.apply)(variables, x, Step(train=True, key=TRAIN.key, valid=valid))
    flat = Step(train=True, key=TRAIN.key, valid=valid.reshape(-1))
    y, info = jit(layer.apply)(variables, x.reshape(24, 8), flat)
    np.testing.assert_array_equal(as_sequence[0], y.reshape(3, 8, 8))
    chex.assert_trees_all_equal(as_sequence[1]['telemetry'], info['telemetry'])
    chex.assert_trees_all_equal(as_sequence[1]['losses'], info['losses'])
    for name, choice in as_sequence[1]['choices'].items():
        assert choice.shape == (3, 8, 2)
        np.testing.assert_array_equal(choice.reshape(24, 2), info['choices'][name])


def test_a_router_is_told_how_long_sequences_are():
    x = normal(0, 2, 4, 8)
    _, info = jit(lambda x: moe(group_size=4).init_with_output(jax.random.key(0), x, TRAIN)[0])(x)
    assert info['place'].value.tokens_per_image == 4


@pytest.mark.parametrize('expert', ['mlp', 'conv'])
def test_a_stated_type_is_that_of_a_cast(expert):
    x = tokens(expert)
    stated = moe(expert=expert, dtype=jnp.bfloat16)
    variables = init(stated, x)
    assert {a.dtype for a in jax.tree.leaves(variables)} == {jnp.float32.dtype}
    y, info = jit(stated.apply)(variables, x, TRAIN)
    wanted, _ = jit(moe(expert=expert).apply)(variables, x.astype(jnp.bfloat16), TRAIN)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_array_equal(y, wanted)
    assert info['choices']['gate'].dtype == jnp.float32
    up, _ = jit(moe(expert=expert, dtype=jnp.float32).apply)(
        variables, x.astype(jnp.bfloat16), TRAIN
    )
    assert up.dtype == jnp.float32


@pytest.mark.parametrize('place', [1, 2])
def test_what_the_page_shows_runs(place):
    page = Path(__file__).parents[2] / 'docs' / 'layer.md'
    code = page.read_text().split('```python\n')[place].split('```')[0]
    names: dict = {}
    exec(code, names)
    if place == 1:
        x, step = normal(0, 2, 4, 8), Step()
        (y, _), _ = jax.eval_shape(
            lambda x: names['Block']().init_with_output(jax.random.key(0), x, step), x
        )
        assert y.shape == x.shape and y.dtype == x.dtype


def keys(path):
    return tuple(k.key for k in path)


def put(module, variables):
    """Gives a bridged module the variables of its Linen layer; their names are the same."""
    held = dict(nnx.to_flat_state(nnx.state(module, nnx.Not(nnx.RngState))))
    flat = {
        keys(p): v
        for collection in variables.values()
        for p, v in jax.tree_util.tree_leaves_with_path(collection)
    }
    assert flat.keys() == held.keys()
    for path, value in flat.items():
        held[path][...] = value


FORMS = {
    '[N, D]': ('mlp', (16, 8)),
    '[B, T, D]': ('mlp', (2, 8, 8)),
    'maps': ('conv', (8, 4, 4, 8)),
}


@pytest.mark.parametrize('form', except_for([*FORMS][:1], FORMS))
def test_the_bridge_gives_what_linen_gives(form):
    """Values, gradients by nnx's own transforms, and the router's state."""
    expert, shape = FORMS[form]
    layer = moe(expert=expert, router='bias_balanced', losses={'switch': 0.1}, dtype=jnp.float32)
    x = normal(0, *shape)
    module = nnx.jit(lambda x: bridge.ToNNX(layer, rngs=nnx.Rngs(0)).lazy_init(x, TRAIN))(x)
    variables = init(layer, x)
    assert set(variables) == {'params', 'router_state'}
    put(module, variables)
    y, info = nnx.jit(lambda m, x: m(x, TRAIN))(module, x)
    wanted, wanted_info = jit(layer.apply)(variables, x, TRAIN)
    np.testing.assert_allclose(y, wanted, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(info['choices']['expert'], wanted_info['choices']['expert'])

    def loss(y, info):
        return (y**2).mean() + sum(info['losses'].values())

    grads = nnx.jit(nnx.grad(lambda m: loss(*m(x, TRAIN))))(module)
    own = jit(jax.grad(lambda p: loss(*layer.apply({**variables, 'params': p}, x, TRAIN))))(
        variables['params']
    )
    ours = dict(nnx.to_flat_state(grads))
    for path, value in jax.tree_util.tree_leaves_with_path(own):
        np.testing.assert_allclose(ours[keys(path)][...], value, rtol=1e-5, atol=1e-6)
