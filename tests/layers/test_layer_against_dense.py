"""One expert is the dense block, and all experts are the explicit sum. Axes: E experts, D width."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from layer_cases import TRAIN, expert_args, init, jit, moe, normal, tokens
from slow import except_for

from moe_vision.config import registry
from moe_vision.layers import DenseBlock, Step
from moe_vision.layers.moe import make_expert

USERS = {'xla_cpu_use_fusion_emitters': True} if jax.__version_info__ < (0, 11) else None

some_experts = pytest.mark.parametrize('expert', except_for(('mlp', 'conv'), registry.EXPERTS))


def norm(tree):
    return np.sqrt(sum(float(jnp.square(a).sum()) for a in jax.tree.leaves(tree)))


@some_experts
def test_one_expert_is_the_dense_block_to_the_bit(expert):
    x = tokens(expert)
    layer = moe(1, 1, 4, expert=expert, capacity_factor=1.0)
    dense = DenseBlock(make_expert(expert, expert_args(expert), 8, 16))
    routed = init(layer, x)
    params = {'params': jax.tree.map(lambda a: a[0], routed['params']['experts'])}
    weight = normal(2, *x.shape)

    def ours(v, x):
        return layer.apply(v, x, TRAIN)[0]

    # Compiled as users compile (conftest.py does not): the bits are of optimised programs.
    as_users = functools.partial(jax.jit, compiler_options=USERS)
    y, want = as_users(ours)(routed, x), as_users(dense.apply)(params, x)
    np.testing.assert_array_equal(np.asarray(y).view(np.int32), np.asarray(want).view(np.int32))
    assert float(jnp.abs(y).max()) > 0.1

    grads = jit(jax.grad(lambda v, x: jnp.sum(ours(v, x) * weight), (0, 1)))(routed, x)
    want = jit(jax.grad(lambda v, x: jnp.sum(dense.apply(v, x) * weight), (0, 1)))(params, x)
    ours_params = jax.tree.map(lambda a: a[0], grads[0]['params']['experts'])
    pairs = [(ours_params[n], g) for n, g in want[0]['params'].items()] + [(grads[1], want[1])]
    for got, expected in pairs:
        assert norm(got - expected) <= 1e-6 * norm(expected)
    assert norm(grads[0]['params']['router']) == 0  # a softmax over one expert cannot learn


@some_experts
def test_all_experts_without_bound_are_the_explicit_sum(expert):
    x = tokens(expert)
    layer = moe(3, 3, 4, expert=expert, capacity_factor=float('inf'))
    variables = init(layer, x)

    @jit
    def both(variables, x):
        y = layer.apply(variables, x, Step(train=True))[0]
        v = x.reshape(8, -1, 8).mean(1)  # a token is routed by its mean over space
        v = (v - v.mean(-1, keepdims=True)) / jnp.sqrt(v.var(-1, keepdims=True) + 1e-6)
        gates = jax.nn.softmax(v @ variables['params']['router']['kernel'])
        one = make_expert(expert, expert_args(expert), 8, 16)
        bank = variables['params']['experts']
        want = sum(
            gates[:, e].reshape(8, *(1,) * (x.ndim - 1))
            * one.apply({n: w[e] for n, w in bank.items()}, x)
            for e in range(3)
        )
        return y, want

    chex.assert_trees_all_close(*both(variables, x), atol=2e-5)
