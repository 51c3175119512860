"""The networks of ImageNet's size beside timm's, as shapes alone: nothing of this size runs here.

Axes: B images, HW space, D channels, N patches and the class token.
"""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from model_cases import config

from moe_vision import models
from moe_vision.common import flops
from moe_vision.common.errors import UserError
from moe_vision.config import registry
from moe_vision.config.placement import routed_blocks
from moe_vision.layers import Step

VIT = {'depth': 12, 'patch_size': 16, 'pool': 'token'}
TEXTBOOK = {  # network: (backbone, arguments, parameters as timm gives them)
    'resnet50': ('resnet', {}, 25_557_032),
    'convnext_tiny': ('convnext', {}, 28_589_128),
    'deit_small_patch16_224': ('vit', {**VIT, 'width': 384, 'heads': 6}, 22_050_664),
    'vit_base_patch16_224': ('vit', {**VIT, 'width': 768, 'heads': 12}, 86_567_656),
}
IMAGE = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
every_textbook = pytest.mark.parametrize('name', TEXTBOOK)


@functools.cache
def traced(name):
    """(variables, what each module returned, FLOPs) of a textbook network, as shapes."""
    backbone, args, _ = TEXTBOOK[name]
    model = dataclasses.replace(
        config(backbone, 'none'), args=registry.BACKBONES[backbone].args(**args)
    )
    net, shapes = models.build(model, 1000), {}

    def look(call, args, kwargs, context):
        out = call(*args, **kwargs)
        if context.method_name == '__call__' and hasattr(out, 'shape'):
            shapes['/'.join(context.module.path)] = out.shape
        return out

    variables = jax.eval_shape(lambda x: net.init(jax.random.key(0), x, Step()), IMAGE)
    with nn.intercept_methods(look):
        cost = flops.count(lambda v, x: net.apply(v, x, Step())[0], variables, IMAGE)
    return variables, shapes, cost


@every_textbook
def test_parameters_are_those_of_timm(name):
    params = traced(name)[0]['params']
    assert sum(a.size for a in jax.tree.leaves(params)) == TEXTBOOK[name][2]


def test_resnet_shapes_by_stage():
    shapes = traced('resnet50')[1]
    assert shapes['stem'] == (1, 112, 112, 64)
    sides = {0: (56, 256), 1: (28, 512), 2: (14, 1024), 3: (7, 2048)}
    stages = [0] * 2 + [1] * 3 + [2] * 5 + [3] * 2  # of the blocks that keep their shape
    blocks = {f'block_{n}': stage for n, stage in enumerate(stages)}
    for block, stage in {**blocks, **{f'down_{s}': s for s in sides}}.items():
        side, width = sides[stage]
        assert shapes[block] == (1, side, side, width), block
    assert shapes['down_1/conv1'] == (1, 56, 56, 128)  # the stride stands in the 3x3
    assert shapes['down_1/conv2'] == (1, 28, 28, 128)
    assert shapes['down_3_shortcut'] == (1, 7, 7, 2048)
    assert shapes['classifier'] == (1, 1000) and 'block_12' not in shapes


def test_convnext_shapes_by_stage():
    shapes = traced('convnext_tiny')[1]
    sides = {0: (56, 96), 1: (28, 192), 2: (14, 384), 3: (7, 768)}
    assert shapes['stem'] == (1, 56, 56, 96)
    for n, stage in enumerate([0] * 3 + [1] * 3 + [2] * 9 + [3] * 3):
        side, width = sides[stage]
        assert shapes[f'block_{n}'] == (1, side, side, width), n
        if stage:
            assert shapes[f'down_{stage}'] == (1, side, side, width)
    assert shapes['final_norm'] == (1, 768) and shapes['classifier'] == (1, 1000)


def test_vit_shapes():
    shapes = traced('deit_small_patch16_224')[1]
    assert shapes['stem'] == (1, 14, 14, 384)
    for n in range(12):
        assert shapes[f'block_{n}_attention'] == (1, 197, 384)
        assert shapes[f'block_{n}'] == (197, 384)  # tokens in one row: what is routed
    assert shapes['classifier'] == (1, 1000)


def test_what_published_vit_weights_need():
    """The arrays of timm's ViT, by what they are: a norm's epsilon is 1e-6 there and here."""
    shapes = {
        '/'.join(k.key for k in path): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(
            traced('deit_small_patch16_224')[0]['params']
        )
    }
    assert shapes['class_token'] == (1, 1, 384) and shapes['position'] == (1, 197, 384)
    for part in ('query', 'key', 'value'):
        assert shapes[f'block_0_attention/{part}/kernel'] == (384, 6, 64)
        assert shapes[f'block_0_attention/{part}/bias'] == (6, 64)
    assert shapes['block_0_attention/out/kernel'] == (6, 64, 384)
    assert nn.LayerNorm().epsilon == 1e-6


def resnet50():
    """Multiply-adds by hand; each stage's first block projects, and strides in its 3x3."""
    found, d_in = 112**2 * 49 * 3 * 64, 64
    for side, width, blocks, stride in (
        (56, 256, 3, 1),
        (28, 512, 4, 2),
        (14, 1024, 6, 2),
        (7, 2048, 3, 2),
    ):
        h = width // 4
        found += (side * stride) ** 2 * d_in * h + side**2 * (9 * h * h + h * width + d_in * width)
        found += (blocks - 1) * side**2 * (2 * h * width + 9 * h * h)
        d_in = width
    return found + 2048 * 1000


def convnext_t():
    found, d_in = 56**2 * 16 * 3 * 96, 96
    for side, width, blocks in ((56, 96, 3), (28, 192, 3), (14, 384, 9), (7, 768, 3)):
        found += side**2 * 4 * d_in * width if width > 96 else 0
        found += blocks * side**2 * (49 * width + 8 * width * width)
        d_in = width
    return found + 768 * 1000


def vit(width):
    n = 197
    block = 4 * n * width**2 + 2 * n * n * width + 8 * n * width**2
    return 196 * 16 * 16 * 3 * width + 12 * block + width * 1000


@pytest.mark.parametrize(
    'name, macs, about',
    [
        ('resnet50', resnet50(), 4.09e9),
        ('convnext_tiny', convnext_t(), 4.46e9),
        ('deit_small_patch16_224', vit(384), 4.6e9),
        ('vit_base_patch16_224', vit(768), 17.56e9),
    ],
)
def test_flops_are_those_of_the_hand_formula(name, macs, about):
    assert flops.total(traced(name)[2]) == 2 * macs
    assert macs == pytest.approx(about, rel=2e-3)


def test_blocks_that_change_their_shape_have_no_number():
    """Twelve places in ResNet-50; what strides or projects is called `down_*` and never routed."""
    args = registry.ResNetArgs()
    assert args.blocks == 12 and routed_blocks('last_7', args.blocks) == tuple(range(5, 12))
    assert [args.block_widths.count(w) for w in args.widths] == [2, 3, 5, 2]
    with pytest.raises(UserError, match='has 12 blocks; the largest number here is 11'):
        routed_blocks('12', args.blocks)
    assert registry.ConvNextNetArgs().blocks == 18


def test_the_twin_of_convnext_is_the_textbook_network():
    """Its norm sees one position of one image, so it may stand in an expert as it is."""
    model = config('convnext', 'last_7', args={'depths': (1, 1, 9, 1), 'widths': (4, 4, 8, 8)})
    x = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    dense, twin = (
        models.build(
            dataclasses.replace(model, twin=t, moe=dataclasses.replace(model.moe, placement=p)), 5
        )
        for t, p in (('none', 'none'), ('same_width', 'last_7'))
    )

    def program(net):
        return str(jax.make_jaxpr(lambda x: net.init_with_output(jax.random.key(0), x, Step()))(x))

    assert program(dense) == program(twin)
