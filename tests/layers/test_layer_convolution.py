"""Our convolution is jax's, in value, gradient and FLOPs, also under vmap and in loops."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from layer_cases import made_for

from moe_vision.common import flops, platform
from moe_vision.layers.convolution import convolution, in_flax

SHAPES = {  # images, kernel, stride, groups
    '3x3': ((3, 6, 5, 4), (3, 3, 4, 6), 1, 1),
    'stride 2, even': ((2, 8, 6, 3), (3, 3, 3, 4), 2, 1),
    'stride 2, odd': ((2, 7, 5, 3), (3, 3, 3, 4), 2, 1),
    '1x1, stride 2': ((2, 7, 8, 3), (1, 1, 3, 4), 2, 1),
    '5x3': ((2, 6, 6, 2), (5, 3, 2, 3), 1, 1),
    '2x2': ((2, 5, 5, 2), (2, 2, 2, 3), 1, 1),
    'depthwise': ((2, 6, 6, 4), (3, 3, 1, 4), 1, 4),
    'depthwise, two out': ((2, 6, 6, 4), (3, 3, 1, 8), 2, 4),
    'grouped': ((2, 6, 6, 4), (3, 3, 2, 6), 2, 2),
}


def native(x, kernel, stride=1, groups=1):
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        'SAME',
        feature_group_count=groups,
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    )


def drawn(shape, lead=()):
    images, kernel, *_ = shape
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=(*lead, *s)), jnp.float32) for s in (images, kernel)]


def both(conv, stride, groups):
    """(value, gradient of both operands) of a function in which every element counts."""

    def loss(x, kernel):
        return jnp.sum(jnp.sin(conv(x, kernel, stride, groups)))

    return jax.value_and_grad(loss, argnums=(0, 1))


def close(ours, theirs):
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=3e-6 * float(jnp.abs(b).max()) + 1e-7)


@pytest.mark.parametrize('name', SHAPES)
def test_values_and_gradients_are_those_of_jax(name):
    stride, groups = SHAPES[name][2:]
    x, kernel = drawn(SHAPES[name])
    ours, theirs = (
        jax.jit(lambda x, k, c=c: (c(x, k, stride, groups), both(c, stride, groups)(x, k)))
        for c in (convolution, native)
    )
    (y, ours), (want, theirs) = ours(x, kernel), theirs(x, kernel)
    np.testing.assert_array_equal(y, want)
    close(ours, theirs)


@pytest.mark.parametrize('kind', ['cpu', 'gpu'])
@pytest.mark.parametrize('axes', [(0, 0), (0, None), (None, 0)], ids=str)
@pytest.mark.parametrize('name', ['3x3', 'stride 2, odd', 'depthwise, two out'])
def test_a_batch_of_either_is_one_after_another(name, axes, kind):
    stride, groups = SHAPES[name][2:]
    x, kernel = (
        a if axis == 0 else a[0] for a, axis in zip(drawn(SHAPES[name], (3,)), axes, strict=True)
    )
    with made_for(kind):
        ours, theirs = (
            jax.jit(jax.vmap(both(c, stride, groups), axes))(x, kernel)
            for c in (convolution, native)
        )
    close(ours, theirs)


@pytest.mark.parametrize('kind', ['cpu', 'gpu'])
def test_seeds_of_experts_and_loops(kind):
    x, kernel = drawn(SHAPES['3x3'], (2, 3))
    fn = made_for(kind)(both(convolution, 1, 1))
    want = jax.jit(jax.vmap(jax.vmap(both(native, 1, 1))))(x, kernel)
    close(jax.jit(jax.vmap(jax.vmap(fn)))(x, kernel), want)
    close(jax.jit(lambda a, b: lax.map(lambda c: jax.vmap(fn)(*c), (a, b)))(x, kernel), want)
    got, want = (
        jax.jit(jax.grad(lambda k, fn=fn: jnp.sum(jax.vmap(fn)(x[0], k) ** 2)))(kernel[0])
        for fn in (convolution, native)
    )
    close(got, want)


def test_a_batch_of_kernels_is_no_grouped_convolution():
    x, kernel = drawn(SHAPES['3x3'], (3,))

    def compiled(fn, *args):
        return jax.jit(fn).lower(*args).compile().as_text()

    text = compiled(jax.vmap(both(convolution, 1, 1)), x, kernel)
    assert text.count(' convolution(') == 3 * 3 and '_group_count=' not in text
    assert '_group_count=3' in compiled(jax.vmap(both(native, 1, 1)), x, kernel)
    # the same kernel for all is one convolution of all images, forward and to the input
    text = compiled(jax.vmap(convolution, (0, None)), x, kernel[0])
    assert text.count(' convolution(') == 1


@pytest.mark.parametrize('name', SHAPES)
@pytest.mark.parametrize('kind', ['cpu', 'gpu'])
def test_flops_are_those_of_jax(name, kind):
    """Of the gradient, too: three times those of the value, holes left out."""
    stride, groups = SHAPES[name][2:]
    args = drawn(SHAPES[name])

    def count(fn):
        return flops.total(flops.count(made_for(kind)(fn), *args))

    assert count(lambda x, k: convolution(x, k, stride, groups)) == count(
        lambda x, k: native(x, k, stride, groups)
    )
    assert count(both(convolution, stride, groups)) == count(both(native, stride, groups))


def test_half_precision_stays():
    x, kernel = (a.astype(jnp.bfloat16) for a in drawn(SHAPES['3x3']))
    (_, (dx, dk)) = jax.eval_shape(both(convolution, 1, 1), x, kernel)
    y = jax.eval_shape(convolution, x, kernel)
    assert dx.dtype == dk.dtype == y.dtype == jnp.bfloat16


def test_in_flax():
    x = drawn(SHAPES['stride 2, odd'])[0]
    conv = functools.partial(nn.Conv, 4, (3, 3), (2, 2))
    variables = conv().init(jax.random.key(0), x)
    np.testing.assert_array_equal(
        conv(conv_general_dilated=in_flax).apply(variables, x), conv().apply(variables, x)
    )
    with pytest.raises(ValueError, match='VALID'):
        conv(conv_general_dilated=in_flax, padding='VALID').apply(variables, x)


@pytest.mark.parametrize('kind', ['cpu', 'tpu'])
def test_the_form_is_that_of_the_devices_it_is_traced_for(kind):
    """Not that of this process's own, which are CPUs here; in the gradient, too."""
    traced = made_for(kind)(jax.make_jaxpr(both(convolution, 1, 1)))
    ours = 'optimization_barrier' in str(traced(*drawn(SHAPES['3x3'])))
    assert ours == (kind == 'cpu') and platform.target() == 'cpu'


@pytest.mark.parametrize('kind', ['cpu', 'gpu'])
@pytest.mark.parametrize(
    'space, taps, stride, zeros',
    [((8, 7), 3, 2, 1), ((9, 8), 7, 2, 3), ((7, 6), 2, 2, 0), ((6, 6), 1, 2, 0)],
)
def test_given_padding_is_jaxs_too(space, taps, stride, zeros, kind):
    """As in networks of torch: alike on both sides, so that the last pixels may see no tap."""
    pads = ((zeros, zeros),) * 2
    x, kernel = drawn(((2, *space, 3), (taps, taps, 3, 4)))

    def theirs(x, kernel, stride, groups):
        numbers = ('NHWC', 'HWIO', 'NHWC')
        return lax.conv_general_dilated(
            x, kernel, (stride,) * 2, pads, dimension_numbers=numbers, feature_group_count=groups
        )

    ours = functools.partial(convolution, pads=pads)
    with made_for(kind):
        found = jax.jit(both(ours, stride, 1))(x, kernel)
    close(found, jax.jit(both(theirs, stride, 1))(x, kernel))
    layer = nn.Conv(4, (taps,) * 2, (stride,) * 2, pads, conv_general_dilated=in_flax)
    plain = nn.Conv(4, (taps,) * 2, (stride,) * 2, pads)
    params = {'params': {'kernel': kernel, 'bias': jnp.ones(4)}}
    np.testing.assert_allclose(layer.apply(params, x), plain.apply(params, x), rtol=1e-5, atol=1e-5)
