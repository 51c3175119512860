"""The layer with experts of a user's own, and what it refuses. Axes: B tokens, D width."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from layer_cases import TRAIN, init, jit, moe, normal

from moe_vision.common.errors import UserError
from moe_vision.common.place import Place
from moe_vision.config import registry
from moe_vision.layers import DenseBlock, DroppingBlock, MoE, Step
from moe_vision.layers.moe import make_expert, make_router
from moe_vision.layers.route import loss_key

D = 8
OWN = ['Doubled', 'Scaled', 'StackedOnly']


@pytest.mark.parametrize('expert', OWN)
def test_one_token_at_a_time_is_all_of_them_together(expert):
    """A few tokens take the chosen experts' weights, many fill buffers; both run one expert."""
    x = normal(0, 8, D)
    layers = {n: moe(group_size=n, expert=f'own_methods:{expert}') for n in (1, 8)}
    variables = init(layers[1], x)
    at_rest = Step()
    together = jit(
        lambda x: moe(
            group_size=8, expert=f'own_methods:{expert}', eval_capacity_factor=float('inf')
        ).apply(variables, x, at_rest)[0]
    )(x)
    one = jit(lambda x: layers[1].apply(variables, x, at_rest)[0])
    chex.assert_trees_all_close(
        jnp.concatenate([one(x[i : i + 1]) for i in range(8)]), together, atol=1e-5
    )
    assert float(jnp.abs(together).max()) > 0.01


@pytest.mark.parametrize('expert', OWN)
def test_a_twin_and_a_bank_of_one_run_the_same_expert(expert):
    x, name = normal(0, 8, D), f'own_methods:{expert}'
    block = DenseBlock(make_expert(name, None, D, 16))
    params = jit(block.init)(jax.random.key(0), x)['params']
    routed = moe(1, 1, 8, expert=name, capacity_factor=float('inf'))
    variables = {'params': {'experts': jax.tree.map(lambda a: a[None], params)}}
    variables['params']['router'] = jit(routed.init)(jax.random.key(0), x)['params']['router']
    same_drops = DroppingBlock(
        block.expert, 2, 1, 8, capacity_factor=float('inf'), eval_capacity_factor=float('inf')
    )

    @jit
    def all_three(variables, params):
        dense = block.apply({'params': params}, x)
        return [
            dense,
            routed.apply(variables, x, TRAIN)[0],
            same_drops.apply({'params': params}, x, TRAIN)[0],
        ]

    dense, *others = all_three(variables, params)
    for y in others:
        chex.assert_trees_all_close(dense, y, atol=1e-5)


def test_what_an_expert_returns_is_checked():
    with pytest.raises(UserError, match=r'WrongWidth.apply is float32\[.*, 7\]; expected .* 8\]'):
        layer = moe(expert='own_methods:WrongWidth')
        jax.eval_shape(lambda x: layer.init(jax.random.key(0), x, TRAIN), normal(0, 8, D))


@pytest.mark.parametrize(
    'shape, kwargs, parts',
    [
        ((2, 4, 64, 32), {}, ['[2, 4, 64, 32]', "'mlp' takes tokens [B, D] or", 'to [-1, 32]']),
        ((4, 8, 8), {'tokens_per_image': 4}, ['tokens_per_image is 4', '8 in a row']),
        ((8, 4, 8), {'expert': 'conv'}, ["'conv' takes tokens [B, H, W, D]"]),
        ((4, 6, 6, 8), {}, ['[4, 6, 6, 8]', '[B, D]', 'reshape']),
        ((8,), {}, ['[8]', '[B, D]']),
        ((), {}, ['[]', '[B, D]']),
        ((8, 8), {'expert': 'conv'}, ["'conv' takes tokens [B, H, W, D]"]),
        ((8, 8), {'k': 5}, ['k is 5 but num_experts is 4', '1 to 4']),
        ((8, 8), {'k': 0}, ['k is 0', 'at least 1']),
        ((8, 8), {'num_experts': 0}, ['num_experts is 0']),
        ((8, 8), {'group_size': 0}, ['group_size is 0']),
        ((8, 8), {'hidden': 0}, ['hidden is 0']),
        ((8, 8), {'capacity_multiple': 0}, ['capacity_multiple is 0']),
        ((8, 6, 5, 6), {'expert': 'conv'}, ['norm_groups is 4', '6 channels']),
    ],
    ids=str,
)
def test_sizes_that_do_not_fit_are_one_line(shape, kwargs, parts):
    layer = moe(**kwargs)
    with pytest.raises(ValueError) as error:
        jax.eval_shape(lambda x: layer.init(jax.random.key(0), x, TRAIN), jnp.zeros(shape))
    assert '\n' not in str(error.value)
    for part in parts:
        assert part in str(error.value), error.value


@pytest.mark.parametrize('dtype', ['int32', 'uint8', 'bool'])
def test_tokens_are_floats(dtype):
    with pytest.raises(ValueError, match=f'x is {dtype}.*give floats'):
        jax.eval_shape(lambda x: moe().init(jax.random.key(0), x), jnp.zeros((8, D), dtype))


def test_null_experts_count_as_ids_and_soft_routing_has_no_k():
    x = normal(0, 8, D)
    for kwargs in ({'router': 'null_experts', 'k': 6}, {'router': 'soft', 'k': 9}):
        jax.eval_shape(lambda x, kw=kwargs: moe(**kw).init(jax.random.key(0), x, TRAIN), x)


@pytest.mark.parametrize(
    'make, parts',
    [
        (
            lambda: make_router('top_k', {'nose': 'gaussian'}, Place(4, 2)),
            ['router_args.nose', "'noise'"],
        ),
        (lambda: make_router('top_k', {'noise': 'gausian'}, Place(4, 2)), ['noise', "'gaussian'"]),
        (
            lambda: make_router('top_k', {'gate_scale': 'x'}, Place(4, 2)),
            ['gate_scale', 'a number'],
        ),
        (
            lambda: make_router('top_k', {'gate_scale': -1.0}, Place(4, 2)),
            ['gate_scale', 'positive'],
        ),
        (lambda: make_router('soft', registry.TopKArgs(), Place(4, 2)), ['TopKArgs', 'SoftArgs']),
        (lambda: make_expert('conv', {'kernle': 3}, 8, 8), ['expert_args.kernle', "'kernel'"]),
    ],
)
def test_arguments_are_checked_as_in_a_config(make, parts):
    with pytest.raises(UserError) as error:
        make()
    for part in parts:
        assert part in str(error.value), error.value


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', 'float16'])
def test_the_result_has_the_type_of_the_tokens(dtype):
    x = normal(0, 8, D).astype(dtype)
    variables = jax.eval_shape(lambda x: moe().init(jax.random.key(0), x, TRAIN), x)
    y, info = jax.eval_shape(lambda v, x: moe().apply(v, x, TRAIN), variables, x)
    assert y.dtype == dtype
    assert {a.dtype for a in jax.tree.leaves(variables)} == {np.dtype('float32')}
    assert info['choices']['gate'].dtype == 'float32'
    assert "None takes x's type" in MoE.__doc__


def test_experts_without_parameters_copy_their_tokens():
    """All by themselves, and beside others, on many tokens and on few."""
    x = normal(0, 8, D)
    alone = moe(group_size=8, expert='own_methods:Nothing', capacity_factor=float('inf'))
    variables = init(alone, x)
    assert 'experts' not in variables['params']
    y, info = jit(lambda x: alone.apply(variables, x, TRAIN))(x)
    chex.assert_trees_all_close(y, info['choices']['gate'].sum(1)[:, None] * x, atol=1e-5)
    kinds = ({'count': 2}, {'count': 2, 'expert': 'own_methods:Nothing'})
    for size in (8, 1):
        mixed = moe(group_size=size, expert='mlp', kinds=kinds, eval_capacity_factor=float('inf'))
        variables = init(mixed, x)
        y, info = jit(lambda x: mixed.apply(variables, x, Step()))(x)  # noqa: B023
        chosen = np.asarray(info['choices']['expert'])
        copies = (chosen % 2 == 1).all(1)  # ids are dealt out in turn
        assert copies.any() and not copies.all()
        gates = info['choices']['gate'].sum(1)[:, None]
        chex.assert_trees_all_close(y[copies], (gates * x)[copies], atol=1e-5)
        assert float(jnp.abs(y - gates * x)[~copies].max()) > 1e-3


def test_a_router_may_read_the_experts_and_teach_them():
    """Its gates come from the first matrices, which they therefore train."""
    x = normal(0, 8, D)
    layer = moe(group_size=8, router='own_methods:ReadsExperts', capacity_factor=float('inf'))
    variables = init(layer, x)
    kernel = np.asarray(variables['params']['experts']['in_kernel'])
    found = np.linalg.norm(np.einsum('bd,edf->bef', np.asarray(x), kernel), axis=-1)
    _, info = jit(lambda x: layer.apply(variables, x, TRAIN))(x)
    np.testing.assert_array_equal(info['choices']['expert'], np.argsort(-found, -1)[:, :2])

    def gates(bank):
        params = variables['params'] | {'experts': bank}
        _, info = layer.apply(variables | {'params': params}, x, TRAIN)
        return info['choices']['gate'].sum()

    gradient = jit(jax.grad(gates))(variables['params']['experts'])
    assert float(jnp.abs(gradient['in_kernel']).max()) > 1e-3
    assert float(jnp.abs(gradient['out_kernel']).max()) == 0


def test_a_loss_draws_for_itself():
    """Neither what its router draws, nor what another loss does."""
    key = jax.random.key(3)
    keys = [loss_key(key, name) for name in ('a', 'b')]
    drawn = [float(jax.random.uniform(k)) for k in (key, *keys)]
    assert len(set(drawn)) == 3 and loss_key(None, 'a') is None
    x = normal(0, 8, D)
    losses = {'own_methods:draws': 1.0, 'own_methods:l1': 1.0}
    layer = moe(group_size=8, losses=losses)
    _, info = jit(lambda x: layer.apply(init(layer, x), x, TRAIN))(x)
    own = loss_key(jax.random.fold_in(TRAIN.key, layer.layer), 'own_methods:draws')
    noise = jax.random.uniform(jax.random.fold_in(jax.random.fold_in(own, 0), 0))
    drew, plain = info['losses'].values()
    chex.assert_trees_all_close(drew, plain * noise, rtol=1e-5)
