"""FLOP counts against arithmetic done by hand: 2 per multiply-accumulate."""

import os
import pathlib
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, Mesh, PartitionSpec

from moe_vision.common.errors import UserError
from moe_vision.common.flops import count, total
from moe_vision.common.paths import ROOT


def f32(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def scoped(name, fn):
    def inner(*args):
        with jax.named_scope(name):
            return fn(*args)

    return inner


def linen(module, x, **kwargs):
    variables = jax.eval_shape(lambda x: module.init(jax.random.key(0), x, **kwargs), x)
    return count(module.apply, variables, x, **kwargs)


def matmul(x, w):
    return x @ w


SQUARE = 2 * 3**3  # one 3×3 matmul: 54


def square(x):
    return x @ x


# dot_general, ragged_dot


def test_dense():
    # 5 rows, 7 → 11; the bias has no multiply-accumulate
    assert linen(nn.Dense(11), f32(5, 7)) == {('Dense',): 2 * 5 * 7 * 11}  # 770


def test_batched_dot_general():
    # batch 4, m 5, k 7, n 11
    assert (
        total(count(lambda a, b: jnp.einsum('bmk,bkn->bmn', a, b), f32(4, 5, 7), f32(4, 7, 11)))
        == 2 * 4 * 5 * 7 * 11
    )  # 3080
    # two contracted dimensions, 2·3, and two free ones on the right, 5·7
    assert total(
        count(lambda a, b: jnp.tensordot(a, b, 2), f32(4, 2, 3), f32(2, 3, 5, 7))
    ) == 2 * 4 * (2 * 3) * (5 * 7)  # 1680


def test_attention():
    batch, tokens, width, heads = 2, 5, 12, 3
    counts = linen(nn.MultiHeadDotProductAttention(num_heads=heads), f32(batch, tokens, width))
    projection = 2 * batch * tokens * width * width  # 2880, heads × head width = width
    scores = 2 * batch * heads * tokens * tokens * (width // heads)  # 1200; values: the same
    for name in ('query', 'key', 'value', 'out'):
        assert counts[('MultiHeadDotProductAttention', name)] == projection
    assert total(counts) == 4 * projection + 2 * scores  # 13920


def ragged(*args):
    return lax.ragged_dot(*args)


RAGGED = f32(6, 3), f32(2, 3, 4), jax.ShapeDtypeStruct((2,), jnp.int32)  # m 6, k 3, n 4, 2 groups


def test_ragged_dot_needs_each_row_once():
    forward = 2 * 6 * 3 * 4  # 144, not multiplied by the groups
    assert total(count(ragged, *RAGGED)) == forward
    batched = jax.tree.map(lambda a: jax.ShapeDtypeStruct((5, *a.shape), a.dtype), RAGGED)
    assert total(count(jax.vmap(ragged), *batched)) == 5 * forward
    grad = jax.grad(lambda *args: ragged(*args).sum(), (0, 1))  # also contracts over ragged rows
    assert total(count(grad, *RAGGED)) == 3 * forward


# convolutions: 2 · out elements · kernel positions · Cin / groups, on 2 images of 8×8×6


@pytest.mark.parametrize(
    'options, flops',
    [
        (dict(), 2 * (2 * 8 * 8 * 4) * 9 * 6),  # SAME: borders count in full, 55296
        (dict(strides=2), 2 * (2 * 4 * 4 * 4) * 9 * 6),  # 13824
        (dict(padding='VALID'), 2 * (2 * 6 * 6 * 4) * 9 * 6),  # 8 - 3 + 1 = 6: 31104
        (dict(padding='VALID', strides=2), 2 * (2 * 3 * 3 * 4) * 9 * 6),  # ceil(6 / 2) = 3: 7776
        (dict(features=6, feature_group_count=6), 2 * (2 * 8 * 8 * 6) * 9 * 1),  # depthwise, 13824
        (dict(features=12, feature_group_count=6), 2 * (2 * 8 * 8 * 12) * 9 * 1),  # multiplier 2
        (dict(feature_group_count=2), 2 * (2 * 8 * 8 * 4) * 9 * 3),  # 27648
        (dict(kernel_dilation=2), 2 * (2 * 8 * 8 * 4) * 9 * 6),  # nine positions, further apart
        (dict(kernel_dilation=2, padding='VALID'), 2 * (2 * 4 * 4 * 4) * 9 * 6),  # 8 - 5 + 1 = 4
        (dict(kernel_size=(1, 1)), 2 * (2 * 8 * 8 * 4) * 1 * 6),  # 6144
        (dict(kernel_size=(3, 5), strides=(2, 1)), 2 * (2 * 4 * 8 * 4) * 15 * 6),  # 46080
    ],
)
def test_convolution(options, flops):
    module = nn.Conv(**(dict(features=4, kernel_size=(3, 3)) | options))
    assert linen(module, f32(2, 8, 8, 6)) == {('Conv',): flops}


def test_convolution_batch_groups():
    def conv(x, w):
        return lax.conv_general_dilated(
            x, w, (1, 1), 'SAME', batch_group_count=2, dimension_numbers=('NHWC', 'HWIO', 'NHWC')
        )

    # 4 images in 2 groups, group i makes 5 of the 10 features: out [2, 8, 8, 10], each from 6·9
    assert total(count(conv, f32(4, 8, 8, 6), f32(3, 3, 6, 10))) == 2 * (2 * 8 * 8 * 10) * 9 * 6


def test_vmap_over_kernels_counts_a_convolution_for_each():
    def conv(x, w):
        return lax.conv_general_dilated(
            x, w, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
        )

    args = f32(5, 2, 8, 8, 6), f32(5, 3, 3, 6, 4)
    assert total(count(jax.vmap(conv), *args)) == 5 * 2 * (2 * 8 * 8 * 4) * 9 * 6


def test_transposed_convolution_does_not_count_holes():
    # 4×4 → 8×8, stride 2, kernel 3: of the 8·3 pairs per axis every second reads a hole, so 12
    # count; with its holes the convolution would have 2·(8·3)²·6·5 per image
    counts = linen(nn.ConvTranspose(5, (3, 3), strides=(2, 2)), f32(2, 4, 4, 6))
    assert total(counts) == 2 * 2 * 12**2 * 6 * 5  # 17280


@pytest.mark.parametrize(
    'module', [nn.Conv(4, (3, 3), strides=2), nn.ConvTranspose(4, (3, 3), strides=(2, 2))]
)
def test_the_gradient_of_a_strided_convolution_costs_two_more(module):
    x = f32(2, 8, 8, 6)
    variables = jax.eval_shape(module.init, jax.random.key(0), x)
    forward = total(count(module.apply, variables, x))
    both = jax.grad(lambda v, x: module.apply(v, x).sum(), (0, 1))
    assert total(count(both, variables, x)) == 3 * forward


# control flow


def test_scan_multiplies_by_its_length():
    def step(carry, _):
        return square(carry), None

    def scan(x, length):
        return lax.scan(step, x, None, length=length)[0]

    def nested(x):
        return lax.scan(lambda c, _: (scan(square(c), 7), None), x, None, 5)

    assert total(count(lambda x: scan(x, 7), f32(3, 3))) == 7 * SQUARE
    assert total(count(nested, f32(3, 3))) == 5 * (1 + 7) * SQUARE
    assert total(count(lambda x: scan(x, 0), f32(3, 3))) == 0


def test_fori_loop_with_static_bounds():
    assert (
        total(count(lambda x: lax.fori_loop(2, 6, lambda i, c: square(c), x), f32(3, 3)))
        == 4 * SQUARE
    )


def test_while_loop_of_unknown_length_is_refused_if_it_has_flops():
    def loop(body, cond=lambda x: x.sum() < 9):
        return scoped('outer', scoped('search', lambda x: lax.while_loop(cond, body, x)))

    assert count(loop(lambda x: x + 1), f32(3, 3)) == {}
    for fn in (loop(square), loop(lambda x: x + 1, lambda x: square(x).sum() < 9)):
        with pytest.raises(UserError, match="scope 'outer/search' inside a while") as error:
            count(fn, f32(3, 3))
        assert '\n' not in str(error.value)


def test_primitive_with_unknown_repetitions_is_refused():
    def solve(x):
        return lax.custom_linear_solve(lambda y: x @ y, x, solve=lambda _, b: x @ b)

    with pytest.raises(UserError, match="scope 'a' inside 'custom_linear_solve'"):
        count(scoped('a', solve), f32(3, 3))


def test_cond_and_switch_count_their_largest_branch_under_its_scope():
    branches = [lambda x: x, scoped('two', lambda x: square(square(x))), scoped('one', square)]
    switch = scoped('router', lambda i, x: lax.switch(i, branches, x))
    index = jax.ShapeDtypeStruct((), jnp.int32)
    assert count(switch, index, f32(3, 3)) == {('router', 'two'): 2 * SQUARE}


# calls


@jax.custom_vjp
def with_vjp(x):
    return scoped('primal', square)(x)


with_vjp.defvjp(
    lambda x: (scoped('fwd', square)(x), x),
    lambda x, g: (scoped('bwd', lambda: (x @ g) @ (x @ g))(),),
)


@jax.custom_jvp
def with_jvp(x):
    return scoped('primal', square)(x)


@with_jvp.defjvp
def _(primals, tangents):
    return with_jvp(*primals), scoped('tangent', matmul)(primals[0], tangents[0])


@jax.custom_batching.custom_vmap
def with_vmap(x):
    return scoped('single', square)(x)


@with_vmap.def_vmap
def _(axis_size, in_batched, x):
    return scoped('batched', square)(x), True


@pytest.mark.parametrize(
    'call, inner',
    [
        (jax.jit(scoped('b', square)), 'b'),
        (jax.jit(jax.jit(scoped('b', square))), 'b'),
        (jax.checkpoint(scoped('b', square)), 'b'),
        (jax.vmap(scoped('b', lambda r: r @ r)), None),
        (with_vjp, 'primal'),
        (with_jvp, 'primal'),
        (with_vmap, 'single'),
    ],
)
def test_calls_count_once_under_the_scope_they_are_called_in(call, inner):
    if inner is None:  # vmap of 3 rows, each 2·3
        assert count(scoped('a', call), f32(3, 3)) == {('a', 'b'): 3 * 2 * 3}
    else:
        assert count(scoped('a', call), f32(3, 3)) == {('a', inner): SQUARE}


def test_custom_rules_count_what_they_run():
    grad = jax.grad(lambda x: scoped('a', with_vjp)(x).sum())
    # forward once; backward x@g twice (they are not merged) and their product
    assert count(grad, f32(3, 3)) == {('a', 'fwd'): SQUARE, ('a', 'bwd'): 3 * SQUARE}
    grad = jax.grad(lambda x: scoped('a', with_jvp)(x).sum())
    assert count(grad, f32(3, 3)) == {('a', 'primal'): SQUARE, ('a', 'tangent'): SQUARE}
    assert count(jax.vmap(with_vmap), f32(4, 3, 3)) == {('batched',): 4 * SQUARE}


def test_vmap_multiplies():
    assert total(count(jax.vmap(matmul, (0, None)), f32(4, 5, 7), f32(7, 11))) == 4 * 2 * 5 * 7 * 11


# gradients


def loss(w, x):
    return (scoped('dense', matmul)(x, w) ** 2).sum()


def test_gradient_of_dense():
    one = 2 * 5 * 7 * 11  # forward; the gradients xᵀg (weight) and gwᵀ (input) cost as much
    assert count(jax.grad(loss), f32(7, 11), f32(5, 7)) == {('dense',): 2 * one}
    assert count(jax.grad(loss, (0, 1)), f32(7, 11), f32(5, 7)) == {('dense',): 3 * one}


@pytest.mark.parametrize('inner', [lambda f: f, jax.jit], ids=['', 'jit'])
@pytest.mark.parametrize(
    'outer', [lambda f: f, jax.jit, lambda f: scoped('o', f)], ids=['', 'jit', 'scope']
)
def test_remat_adds_a_forward_to_the_same_scope(inner, outer):
    def body(w, x):
        return jnp.sin(scoped('dense', lambda x, w: jnp.sin(x @ w) @ w)(x, w))

    one = 2 * 5 * 7 * 7
    # 2 matmuls, with 2 each in the backward pass
    for call, times in ((body, 2 + 4), (jax.checkpoint(body), 2 + 2 + 4)):
        model = inner(scoped('a', scoped('b', call)))
        grad = outer(jax.grad(lambda w, x, model=model: model(w, x).sum(), (0, 1)))
        ((scope, flops),) = count(grad, f32(7, 7), f32(5, 7)).items()
        assert flops == times * one
        assert scope in [('a', 'b', 'dense'), ('o', 'a', 'b', 'dense')]


# scopes


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _=None):
        return nn.Dense(7, name='narrow')(nn.gelu(nn.Dense(11, name='wide')(x))), None


class Model(nn.Module):
    def setup(self):
        self.plain, self.remat = Block(), nn.remat(Block)()
        self.stack = nn.scan(
            Block, variable_axes={'params': 0}, split_rngs={'params': True}, length=3
        )()
        self.head = nn.Sequential([nn.Sequential([nn.Dense(13)])])

    def encode(self, x):
        return self.plain(self.remat(x)[0])[0]

    def __call__(self, x, *, train):
        assert isinstance(train, bool)  # reaches the model untraced
        return self.head(self.stack(self.encode(x), None)[0])


def test_linen_modules_own_their_flops():
    wide = 2 * 5 * 7 * 11  # 770; narrow costs as much
    names = [('Model', block, half) for block in ('plain', 'remat') for half in ('wide', 'narrow')]
    forward = dict.fromkeys(names, wide)
    forward |= {('Model', 'stack', half): 3 * wide for half in ('wide', 'narrow')}
    forward[('Model', 'head', 'layers_0', 'layers_0')] = 2 * 5 * 7 * 13
    counts = linen(Model(), f32(5, 7), train=True)
    assert counts == forward


def test_linen_gradients_land_on_the_forward_scopes():
    x, model = f32(5, 7), Model()
    variables = jax.eval_shape(lambda key, x: model.init(key, x, train=True), jax.random.key(0), x)
    forward = count(model.apply, variables, x, train=True)
    grad = jax.grad(lambda v, x: model.apply(v, x, train=True).sum(), (0, 1))
    again = {('Model', 'remat', 'wide'): 1}  # recomputed; the result of 'narrow' is not needed
    assert count(grad, variables, x) == {s: (3 + again.get(s, 0)) * n for s, n in forward.items()}


def test_names_are_taken_as_they_are():
    assert count(scoped('a/(b)', square), f32(3, 3)) == {('a/(b)',): SQUARE}
    assert count(scoped('a', scoped('a', square)), f32(3, 3)) == {('a', 'a'): SQUARE}
    with jax.named_scope('caller'):  # not part of the program
        assert count(square, f32(3, 3)) == {(): SQUARE}


def test_concrete_arguments_and_exact_large_ints():
    assert total(count(square, np.ones((3, 3), np.float32))) == SQUARE
    assert total(count(square, f32(3**13, 3**13))) == 2 * 3**39  # beyond a float's 53 bits


# shard_map


def sharded(devices):
    """Counts [8, 6] @ [6, 4], rows sharded over both axes; over 'data'; over 'expert' in 'data'."""
    mesh = Mesh(
        np.array(jax.devices()[:devices]).reshape(-1, min(devices, 2)),
        ('data', 'expert'),
        axis_types=(AxisType.Auto,) * 2,
    )
    both = PartitionSpec(('data', 'expert'))
    full = jax.shard_map(
        scoped('mm', matmul), mesh=mesh, in_specs=(both, PartitionSpec()), out_specs=both
    )
    some = jax.shard_map(
        scoped('mm', matmul),
        mesh=mesh,
        axis_names={'data'},
        in_specs=(PartitionSpec('data'), PartitionSpec()),
        out_specs=PartitionSpec('data'),
    )
    nested = jax.shard_map(
        lambda x, w: jax.shard_map(
            scoped('mm', matmul),
            axis_names={'expert'},
            in_specs=(PartitionSpec('expert'), PartitionSpec()),
            out_specs=PartitionSpec('expert'),
        )(x, w),
        mesh=mesh,
        axis_names={'data'},
        in_specs=(PartitionSpec('data'), PartitionSpec()),
        out_specs=PartitionSpec('data'),
    )
    return [count(scoped('a', jax.jit(fn)), f32(8, 6), f32(6, 4)) for fn in (full, some, nested)]


def check_shard_map(devices):
    # the same as without shard_map: axes that split the rows multiply
    assert sharded(devices) == [{('a', 'mm'): 2 * 8 * 6 * 4}] * 3  # 384


def test_shard_map_on_one_device():
    check_shard_map(1)


def test_shard_map_on_four_devices():
    here = pathlib.Path(__file__).parent
    path = os.pathsep.join([str(ROOT), str(here), os.environ.get('PYTHONPATH', '')])
    env = os.environ | {
        'JAX_PLATFORMS': 'cpu',
        'PYTHONPATH': path,
        'XLA_FLAGS': '--xla_force_host_platform_device_count=4',
    }
    done = subprocess.run(
        [sys.executable, '-c', 'import test_flops as t; t.check_shard_map(4)'],
        env=env,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_functions_whose_program_jax_keeps_back():
    """From jax 0.12 on `searchsorted` is one primitive, which must be asked for its program."""

    def f(x, w, edges):
        return (x @ w)[jnp.searchsorted(edges, 0.5)]

    assert total(count(f, f32(4, 8), f32(8, 16), f32(4))) == 2 * 4 * 8 * 16
