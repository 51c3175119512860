"""Experts against flax modules and plain formulas. Axes: E experts, N tokens, D width, F hidden."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from layer_cases import expert_args, jit, made_for, normal, tokens

from moe_vision.config import registry
from moe_vision.layers.moe import make_expert
from moe_vision.layers.parts import group_norm

D, F = 8, 16


def drawn(expert, seed=0, stacked=()):
    """Parameters of one expert, or of as many as `stacked` says, none at its initial value."""
    made = make_expert(expert, expert_args(expert), D, F)
    return made, {
        n: 0.3 * normal((seed, i), *stacked, *shape) + (0.7 if 'scale' in n else 0)
        for i, (n, (shape, _)) in enumerate(made.shapes().items())
    }


def test_mlp_is_two_products():
    made, p = drawn('mlp')
    x = normal(1, 5, D)
    h = x @ p['in_kernel'] + p['in_bias']
    gelu = 0.5 * h * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))
    chex.assert_trees_all_close(made.apply(p, x), gelu @ p['out_kernel'] + p['out_bias'], atol=1e-5)
    relu = make_expert('mlp', {'activation': 'relu'}, D, F)
    want = np.maximum(h, 0) @ p['out_kernel'] + p['out_bias']
    chex.assert_trees_all_close(relu.apply(p, x), want, atol=1e-5)


@pytest.mark.parametrize('kind', ['gpu', 'cpu'])
def test_for_a_gpu_the_backward_pass_of_an_mlp_takes_its_activation_again(kind):
    """So tanh is there twice, and only what the first product wrote is kept."""
    made, p = drawn('mlp')
    x = normal(1, 5, D)
    with made_for(kind):
        gradient = jax.make_jaxpr(jax.grad(lambda p, x: made.apply(p, x).sum()))(p, x)
    assert str(gradient).count(' tanh ') == (2 if kind == 'gpu' else 1)


def flax_norm(p, name, groups=4):
    params = {'params': {'scale': p[f'{name}_scale'], 'bias': p[f'{name}_bias']}}
    return lambda x: nn.GroupNorm(groups, epsilon=1e-5).apply(params, x)


def flax_conv(kernel, groups=1):
    layer = nn.Conv(kernel.shape[-1], kernel.shape[:2], use_bias=False, feature_group_count=groups)
    return lambda x: layer.apply({'params': {'kernel': kernel}}, x)


def test_conv_is_the_preactivation_branch():
    made, p = drawn('conv')

    @jit
    def both(x):
        y = flax_conv(p['conv1'])(nn.relu(flax_norm(p, 'norm1')(x)))
        return made.apply(p, x), flax_conv(p['conv2'])(nn.relu(flax_norm(p, 'norm2')(y)))

    chex.assert_trees_all_close(*both(tokens('conv', 3)), atol=1e-4)


def test_depthwise_conv_is_depthwise_then_two_products():
    made, p = drawn('depthwise_conv')

    @jit
    def both(x):
        y = flax_norm(p, 'norm')(flax_conv(p['depthwise'], D)(x))
        y = nn.gelu(y @ p['in_kernel'] + p['in_bias']) @ p['out_kernel'] + p['out_bias']
        return made.apply(p, x), y

    chex.assert_trees_all_close(*both(tokens('depthwise_conv', 3)), atol=1e-4)


@pytest.mark.parametrize('expert', registry.EXPERTS)
def test_stacked_experts_are_each_expert_by_itself(expert):
    made, p = drawn(expert, stacked=(3,))
    x = jnp.stack([tokens(expert, 4) + i for i in range(3)])

    @jit
    def both(x):
        each = [made.apply({n: w[e] for n, w in p.items()}, x[e]) for e in range(3)]
        return made.apply_stacked(p, x), jnp.stack(each)

    got, want = both(x)
    chex.assert_equal_shape([got, x])
    chex.assert_trees_all_close(got, want, atol=1e-5)


@pytest.mark.parametrize('expert', registry.EXPERTS)
def test_stacked_experts_for_a_gpu_are_those_for_a_cpu(expert):
    """Values and gradients, whichever form each takes; a CPU runs both here."""
    made, p = drawn(expert, stacked=(3,))
    x = jnp.stack([tokens(expert, 4) + i for i in range(3)])

    def loss(p, x):
        return jnp.sum(jnp.sin(made.apply_stacked(p, x)))

    gradients = jax.value_and_grad(loss, argnums=(0, 1))
    got, want = (made_for(kind)(jit(lambda p, x: gradients(p, x)))(p, x) for kind in ('gpu', 'cpu'))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * float(jnp.abs(b).max()))


def test_for_a_gpu_only_the_3x3_convolutions_are_unrolled_over_experts():
    made, p = drawn('bottleneck', stacked=(3,))
    x = jnp.stack([tokens('bottleneck', 4)] * 3)
    with made_for('gpu'):
        gradient = jax.grad(lambda p, x: made.apply_stacked(p, x).sum(), argnums=(0, 1))
        lines = jit(gradient).lower(p, x).as_text().splitlines()
    convolutions = [line for line in lines if 'stablehlo.convolution' in line]
    assert len(convolutions) == 3 * 3  # each forward, to its input and to its kernel
    assert all(
        'feature_group_count = 1 ' in c and 'batch_group_count = 1 ' in c for c in convolutions
    )
    products = [line for line in lines if 'stablehlo.dot_general' in line]
    assert len(products) == 2 * 3 and all('batching_dims = [0] x [0]' in d for d in products)


@pytest.mark.parametrize('expert', registry.EXPERTS)
def test_tokens_do_not_see_each_other(expert):
    made, p = drawn(expert)
    run = jit(made.apply)
    x = tokens(expert, 3)
    np.testing.assert_array_equal(run(p, x)[:2], run(p, x.at[2].set(7.0))[:2])


@pytest.mark.parametrize('expert', registry.EXPERTS)
def test_compute_type_is_that_of_the_tokens(expert):
    made, p = drawn(expert)
    x = tokens(expert, 2).astype(jnp.bfloat16)
    assert jax.eval_shape(made.apply, p, x).dtype == jnp.bfloat16
    program = jax.make_jaxpr(made.apply)(p, x)
    for eqn in program.jaxpr.eqns:
        if eqn.primitive.name in ('dot_general', 'conv_general_dilated'):
            assert all(v.aval.dtype == jnp.bfloat16 for v in eqn.invars)


def test_group_norm_is_float32_per_image():
    x = 100 + normal(0, 2, 4, 4, D)
    y = np.asarray(jit(lambda x: group_norm(x, jnp.ones(D), jnp.zeros(D), 2))(x), np.float64)
    parts = y.reshape(2, 16, 2, 4)  # image, space, group, channel of the group
    np.testing.assert_allclose(parts.mean((1, 3)), 0, atol=1e-4)
    np.testing.assert_allclose(parts.std((1, 3)), 1, atol=1e-3)
