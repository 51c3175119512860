"""Every backbone, dense and routed at every kind of place."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from layer_cases import made_for
from model_cases import (
    CLASSES,
    TRAIN,
    B,
    abstract,
    build,
    filled,
    images,
    jit,
    paths,
)
from slow import except_for

from moe_vision.common import flops
from moe_vision.common.errors import UserError
from moe_vision.config import registry
from moe_vision.layers import Step
from moe_vision.models import vit
from moe_vision.models.parts import BATCH_NORM_MOMENTUM, Norm

every_backbone = pytest.mark.parametrize('name', registry.BACKBONES)
UNIT = {name: entry.unit for name, entry in registry.BACKBONES.items()}


@pytest.mark.parametrize('updates', [1, 15, 50])
def test_running_averages_of_batch_norm_hold_a_share_of_their_initial_values(updates):
    """Batches of 2 and 6: mean 4, variance 4; the averages start at 0 and 1."""
    norm, x = Norm('batch', 'float32'), jnp.asarray([2.0, 6.0])[:, None]
    variables = norm.init(jax.random.key(0), x, Step())
    for _ in range(updates):
        _, changed = norm.apply(variables, x, Step(train=True), mutable=['batch_stats'])
        variables |= changed
    stats, share = variables['batch_stats']['norm'], BATCH_NORM_MOMENTUM**updates
    np.testing.assert_allclose(stats['mean'], 4 * (1 - share), rtol=1e-5)
    np.testing.assert_allclose(stats['var'], 4 * (1 - share) + share, rtol=1e-5)


def forward_and_gradient(net):
    def loss(params, rest, x):
        (logits, infos), _ = net.apply(
            {'params': params, **rest}, x, TRAIN, mutable=['batch_stats']
        )
        aux = sum(sum(i['losses'].values()) for i in infos.values())
        return jnp.sum(jnp.sin(logits)) + aux, (logits, infos)

    def run(variables, x):
        rest = {n: v for n, v in variables.items() if n != 'params'}
        return jax.grad(loss, has_aux=True)(variables['params'], rest, x)

    return run


@pytest.mark.parametrize(
    'name, placement, layers',
    [
        *(
            pytest.param(name, '0,1', ['block_0', 'block_1'], marks=marks)
            for name in registry.BACKBONES
            for marks in [() if name in ('conv', 'vit') else pytest.mark.tables]
        ),
        *((name, 'head', ['head']) for name in ('conv', 'vit')),  # the same module in all
    ],
)
def test_runs_and_learns_at_every_place(name, placement, layers):
    net = build(name, placement)
    grads, (logits, infos) = jit(forward_and_gradient(net))(filled(net), images())
    chex.assert_shape(logits, (B, CLASSES))
    chex.assert_type(logits, jnp.float32)
    chex.assert_tree_all_finite((grads, logits))
    assert list(infos) == layers
    silent = [path for path, g in paths(grads).items() if not (np.asarray(g) != 0).any()]
    # Adding one number to all keys changes no attention.
    assert all(path.endswith('key/bias') for path in silent), silent
    for layer, info in infos.items():
        assert paths(grads)[f'{layer}/router/kernel'].shape[1] == 3
        tokens = B * (4 if UNIT[name] == 'patch' and layer != 'head' else 1)
        assert info['telemetry']['tokens'] == tokens
        chex.assert_shape(info['choices']['expert'], (tokens, 2))


@every_backbone
def test_places_are_those_of_the_spelling(name):
    trees = {p: abstract(build(name, p)) for p in ('last_1', 'every_2', '1', 'none', 'head')}
    chex.assert_trees_all_equal_shapes(trees['every_2'], trees['last_1'], trees['1'])
    routed = {
        placement: {path.split('/')[0] for path in paths(tree['params']) if '/router/' in path}
        for placement, tree in trees.items()
    }
    assert routed['1'] == {'block_1'} and routed['head'] == {'head'} and not routed['none']
    for placement in ('2', 'last_3', 'every_3'):
        with pytest.raises(UserError, match='2 blocks'):
            abstract(build(name, placement))


@pytest.mark.parametrize('name', except_for(('conv', 'vit'), registry.BACKBONES))
def test_soft_routing_and_padding_leave_valid_images_alone(name):
    """Whatever an unreadable image holds, logits, losses and gradients of the others stay."""
    net = build(
        name,
        'last_1',
        router='soft',
        router_args=registry.SoftArgs(axis='batch'),
        group_size=16 if UNIT[name] == 'patch' else B,
    )
    valid = jnp.asarray([True, True, False, True])

    variables = filled(net)
    params = variables.pop('params')

    @jit
    def run(x):
        def loss(params):
            step = Step(valid=valid, train=True)
            (logits, infos), _ = net.apply(
                {'params': params, **variables}, x, step, mutable=['batch_stats']
            )
            aux = infos['block_1']['losses']['importance']
            return jnp.sum(jnp.where(valid[:, None], jnp.sin(logits), 0)) + aux, logits

        grads, logits = jax.grad(loss, has_aux=True)(params)
        return grads, logits[valid.nonzero(size=3)]

    clean, dirty = run(images()), run(images().at[2].set(-7.0))
    chex.assert_trees_all_close(dirty, clean, atol=1e-5)


@every_backbone
def test_bfloat16_compute_keeps_parameters_float32(name):
    net = build(name, '0,1', dtype='bfloat16')
    variables = abstract(net)
    program, (grads, (logits, infos)) = jax.make_jaxpr(
        forward_and_gradient(net), return_shape=True
    )(variables, images())
    chex.assert_type(jax.tree.leaves(variables['params']), jnp.float32)
    chex.assert_type([logits, *jax.tree.leaves(grads)], jnp.float32)
    for info in infos.values():
        chex.assert_type(jax.tree.leaves((info['losses'], info['telemetry'])), jnp.float32)
    text = str(program)
    assert 'bf16' in text  # and it does compute in bfloat16


@every_backbone
def test_groups_must_divide(name):
    with pytest.raises(ValueError, match='groups of 7'):
        abstract(build(name, group_size=7))


def count(net):
    """Its parameters."""
    return sum(a.size for a in jax.tree.leaves(abstract(net)['params']))


@pytest.mark.parametrize('pool', ['mean', 'token'])
def test_vit_parameters_by_hand(pool):
    # width 16, patch 4, 8x8x3 images: 4 patches; 2 heads; hidden 64; 5 classes
    stem = 4 * 4 * 3 * 16 + 16  # 784
    position = (4 + (pool == 'token')) * 16
    attention = 2 * 16 + 4 * (16 * 16 + 16)  # norm, and q, k, v, out: 1,120
    mlp = 16 * 64 + 64 + 64 * 16 + 16  # 2,128
    block = attention + 2 * 16 + mlp  # 3,280
    head = 2 * 16 + 16 * 5 + 5  # final norm, classifier: 117
    dense = stem + position + 2 * block + head + 16 * (pool == 'token')
    args, group = {'pool': pool}, 4 * (4 + (pool == 'token'))
    assert count(build('vit', 'none', args=args)) == dense
    # One block routed over 3 experts: two more MLPs and a router [16, 3].
    assert count(build('vit', args=args, group_size=group)) == dense + 2 * mlp + 16 * 3
    # A routed head beside all blocks: three MLPs and a router.
    assert count(build('vit', 'head', args=args)) == dense + 3 * mlp + 16 * 3


def test_attention_for_a_gpu_is_the_kernel_of_cudnn(monkeypatch):
    """The plain form stands in for the kernel: odd lengths are padded, which changes nothing."""
    patches = 5
    plain, seen = jax.nn.dot_product_attention, []

    def kernel(query, *args, implementation, **kwargs):
        seen.append((implementation, query.shape[1]))
        return plain(query, *args, **kwargs)

    monkeypatch.setattr(jax.nn, 'dot_product_attention', kernel)
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.normal(size=(3, patches, 2, 8)), jnp.bfloat16) for _ in range(3))
    want = vit._attention(q, k, v)
    for target in (('gpu', '7.0'), ('tpu',)):
        with made_for(*target):
            jax.eval_shape(vit._attention, q, k, v)
    with made_for('gpu', '9.0'):
        jax.eval_shape(vit._attention, *(x.astype(jnp.float32) for x in (q, k, v)))
        jax.eval_shape(vit._attention, *(x[..., :5] for x in (q, k, v)))  # width 5
        assert not seen
        got = vit._attention(q, k, v)
        assert seen == [('cudnn', patches + 1)]
        jax.eval_shape(vit._attention, *(x[:, 1:] for x in (q, k, v)))
        assert seen[1:] == [('cudnn', patches - 1)]
        count = flops.total(flops.count(vit._attention, q, k, v))  # in the plain form
    assert len(seen) == 2 and count == 2 * 2 * 3 * 2 * patches * patches * 8
    chex.assert_trees_all_close(*(x.astype(jnp.float32) for x in (got, want)), atol=0.02)


def test_conv_parameters_by_hand():
    # widths 8, 16; one block each, norm-conv-norm-conv; batch norm has scale and bias
    stem, down = 9 * 3 * 8, 2 * 8 + 9 * 8 * 16
    first, second = (2 * d + 9 * d * d + 2 * d + 9 * d * d for d in (8, 16))
    end = 2 * 16 + 16 * 5 + 5
    dense = stem + down + first + second + end
    assert count(build('conv', 'none')) == dense
    assert count(build('conv')) == dense + 2 * second + 16 * 3
