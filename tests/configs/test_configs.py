"""The files of `configs/`: each is right, says what it asks, and changes what its name says."""

import importlib
from pathlib import Path

import pytest

from moe_vision.config import check as config_lib
from moe_vision.config import schema, typed

FOLDER = Path(__file__).parents[2] / 'configs'
NAMES = sorted({p.stem for p in FOLDER.glob('*.py')} - {'__init__', 'workdir'})
PROMISED = """
    base digits_k2 digits_dense
    fashion_mnist_dense fashion_mnist_k1 fashion_mnist_k2 fashion_mnist_soft_batch
    fashion_mnist_soft_per_sample
    cifar10_standard cifar10_depthwise cifar10_standard_dense cifar10_depthwise_dense
    cifar100_soft_batch cifar100_soft_per_sample
    tiny_imagenet_k2
    imagenet_dense imagenet_k1 imagenet_k2 imagenet_k4 imagenet_head_k2
    imagenet_k2_half_width imagenet_dense_active imagenet_k1_unbounded imagenet_k2_unbounded
    imagenet_k1_same_c imagenet_k4_same_c imagenet_dense_drops_k1 imagenet_dense_drops_k2
    imagenet_k1_top_k_softmax imagenet_k2_top_k_softmax imagenet_k1_scaled imagenet_k2_scaled
    imagenet_k1_plus_random imagenet_k1_supervised
    imagenet_shuffled imagenet_random imagenet_frozen_random
    imagenet_resnet50 imagenet_convnext_t imagenet_convnext_k2
    imagenet_vit_s16_dense imagenet_vit_s16_k1 imagenet_vit_s16_k2 imagenet_vit_s16_soft
    imagenet_vit_b16_dense
""".split()
MESH = ('model.moe.group_size', 'mesh.expert')  # where nothing is routed they are not read
CAPACITIES = {'model.moe.capacity_factor', 'model.moe.eval_capacity_factor'}
# config: (its neighbour, the only keys in which they differ)
NEIGHBOURS = {
    'digits_dense': ('digits_k2', {'model.twin'}),
    'fashion_mnist_dense': ('fashion_mnist_k2', {'model.twin'}),
    'fashion_mnist_k1': ('fashion_mnist_k2', {'model.moe.k'}),
    'fashion_mnist_soft_batch': ('fashion_mnist_k2', {
        'model.moe.router', 'model.moe.router_args', 'model.moe.losses'}),
    'fashion_mnist_soft_per_sample': ('fashion_mnist_soft_batch', {'model.moe.router_args'}),
    'cifar10_depthwise': ('cifar10_standard', {'model.name', 'model.args'}),
    'cifar10_standard_dense': ('cifar10_standard', {'model.twin'}),
    'cifar10_depthwise_dense': ('cifar10_depthwise', {'model.twin'}),
    'cifar100_soft_per_sample': ('cifar100_soft_batch', {'model.moe.router_args'}),
    'imagenet_k1': ('imagenet_k2', {'model.moe.k'}),
    'imagenet_k4': ('imagenet_k2', {'model.moe.k'}),
    'imagenet_dense': ('imagenet_k2', {'model.twin'}),
    'imagenet_resnet50': ('imagenet_k2', {'model.moe.placement', 'model.moe.hidden', *MESH}),
    'imagenet_head_k2': ('imagenet_k2', {'model.moe.placement', 'model.moe.hidden',
                                         'model.moe.expert', 'model.moe.expert_args'}),
    'imagenet_k2_half_width': ('imagenet_k2', {'model.moe.hidden'}),
    'imagenet_dense_active': ('imagenet_dense', {'model.twin'}),
    'imagenet_k1_unbounded': ('imagenet_k1', CAPACITIES),
    'imagenet_k2_unbounded': ('imagenet_k2', CAPACITIES),
    'imagenet_k1_same_c': ('imagenet_k1', CAPACITIES),
    'imagenet_k4_same_c': ('imagenet_k4', CAPACITIES),
    'imagenet_dense_drops_k2': ('imagenet_dense', {'model.twin'}),
    'imagenet_dense_drops_k1': ('imagenet_dense_drops_k2', {'model.moe.k'}),
    'imagenet_k1_top_k_softmax': ('imagenet_k1', {'model.moe.router_args'}),
    'imagenet_k2_top_k_softmax': ('imagenet_k2', {'model.moe.router_args'}),
    'imagenet_k1_scaled': ('imagenet_k1', {'model.moe.router_args'}),
    'imagenet_k2_scaled': ('imagenet_k2', {'model.moe.router_args'}),
    'imagenet_k1_plus_random': ('imagenet_k2', {'model.moe.router_args'}),
    'imagenet_k1_supervised': ('imagenet_k1_unbounded', {
        'model.moe.router', 'model.moe.router_args', 'model.moe.losses'}),
    'imagenet_shuffled': ('imagenet_k2', {'model.moe.router'}),
    'imagenet_random': ('imagenet_k2', {
        'model.moe.router', 'model.moe.router_args', 'model.moe.losses'}),
    'imagenet_frozen_random': ('imagenet_k2', {'model.moe.router'}),
    'imagenet_convnext_t': ('imagenet_resnet50', {
        'model.name', 'model.args', 'model.moe.expert', 'model.moe.expert_args'}),
    'imagenet_convnext_k2': ('imagenet_convnext_t', {'model.moe.placement', *MESH}),
    'imagenet_vit_s16_dense': ('imagenet_vit_s16_k2', {'model.twin'}),
    'imagenet_vit_s16_k1': ('imagenet_vit_s16_k2', {'model.moe.k'}),
    'imagenet_vit_s16_soft': ('imagenet_vit_s16_k2', {
        'model.moe.router', 'model.moe.router_args', 'model.moe.losses', 'model.moe.group_size'}),
    'imagenet_vit_b16_dense': ('imagenet_vit_s16_dense', {'model.args'}),
}


def checked(name: str) -> schema.Config:
    return config_lib.check(importlib.import_module(f'configs.{name}').get_config())


def test_the_promised_configs_exist():
    assert set(PROMISED) <= set(NAMES)


@pytest.mark.parametrize('name', NAMES)
def test_every_config_passes_the_check(name):
    checked(name)


@pytest.mark.parametrize('name', [n for n in NAMES if n != 'base'])
def test_every_config_says_what_it_asks_how_to_run_it_and_what_was_measured(name):
    doc = importlib.import_module(f'configs.{name}').__doc__
    assert '?' in doc
    assert f'Command: python main.py --config=configs/{name}.py --workdir=W\n' in doc
    assert '\nMeasured: ' in doc


@pytest.mark.parametrize('name', NEIGHBOURS)
def test_a_config_differs_from_its_neighbour_only_in_what_its_name_says(name):
    neighbour, keys = NEIGHBOURS[name]

    def leaves(c):
        values = {}
        for key in typed.flatten(schema.Config):
            values[key] = c
            for part in key.split('.'):
                values[key] = getattr(values[key], part)
        return values
    ours, theirs = leaves(checked(name)), leaves(checked(neighbour))
    assert {k for k in ours if ours[k] != theirs[k]} == keys


def test_a_depthwise_backbone_keeps_the_size_of_the_standard_one():
    ours, theirs = checked('cifar10_depthwise').model.args, checked('cifar10_standard').model.args
    assert (ours.widths, ours.depth, ours.norm) == (theirs.widths, theirs.depth, theirs.norm)
