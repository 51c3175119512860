"""The files of `configs/`: each is right, says what it asks, and changes what its name says."""

import re

import pytest
from config_cases import CONFIGS, FILES, TABLES, made, module

import input_pipeline
from moe_vision import leverage
from moe_vision.common.errors import UserError
from moe_vision.config import check as config_lib
from moe_vision.config import schema, typed
from moe_vision.leverage.table import si

PROMISED = """
    base.py digits_k2.py digits_dense.py
    fashion_mnist_k2.py cifar10_standard.py tiny_imagenet_k2.py
    imagenet_k2.py imagenet_dense.py imagenet_resnet50.py imagenet_convnext_t.py
    imagenet_convnext_k2.py imagenet_vit_s16_dense.py imagenet_vit_s16_k1.py
    imagenet_vit_s16_k2.py imagenet_vit_s16_soft.py imagenet_vit_b16_dense.py
""".split()
PROMISED_ARMS = {
    'fashion_mnist_ablation.py': 'dense k1 soft_batch soft_per_sample',
    'cifar_ablation.py': 'cifar10_depthwise cifar10_depthwise_dense cifar10_standard_dense '
    'cifar100_soft_batch cifar100_soft_per_sample',
    'imagenet_ablation.py': 'k1 k4 head_k2 k2_half_width dense_active k1_unbounded k2_unbounded '
    'k1_same_c k4_same_c dense_drops_k1 dense_drops_k2 k1_top_k_softmax '
    'k2_top_k_softmax k1_scaled k2_scaled k1_plus_random k1_supervised '
    'shuffled random frozen_random',
}
COSTED = [f for f in FILES if f not in {*TABLES, 'base.py', 'digits_k2.py', 'digits_dense.py'}]
MESH = ('model.moe.group_size', 'mesh.expert')  # where nothing is routed they are not read
SOFT = {'model.moe.router', 'model.moe.router_args', 'model.moe.losses'}
# config: (its neighbour, the only keys in which they differ)
NEIGHBOURS = {
    'digits_dense.py': ('digits_k2.py', {'model.twin'}),
    'fashion_mnist_ablation.py:dense': ('fashion_mnist_k2.py', {'model.twin'}),
    'fashion_mnist_ablation.py:k1': ('fashion_mnist_k2.py', {'model.moe.k'}),
    'fashion_mnist_ablation.py:soft_batch': ('fashion_mnist_k2.py', SOFT),
    'fashion_mnist_ablation.py:soft_per_sample': (
        'fashion_mnist_ablation.py:soft_batch',
        {'model.moe.router_args'},
    ),
    'cifar_ablation.py:cifar10_depthwise': ('cifar10_standard.py', {'model.name', 'model.args'}),
    'cifar_ablation.py:cifar10_standard_dense': ('cifar10_standard.py', {'model.twin'}),
    'cifar_ablation.py:cifar10_depthwise_dense': (
        'cifar_ablation.py:cifar10_depthwise',
        {'model.twin'},
    ),
    'cifar_ablation.py:cifar100_soft_batch': ('cifar10_standard.py', {'dataset.name', *SOFT}),
    'cifar_ablation.py:cifar100_soft_per_sample': (
        'cifar_ablation.py:cifar100_soft_batch',
        {'model.moe.router_args'},
    ),
    'imagenet_dense.py': ('imagenet_k2.py', {'model.twin'}),
    'imagenet_resnet50.py': ('imagenet_k2.py', {'model.moe.placement', 'model.moe.hidden', *MESH}),
    'imagenet_ablation.py:head_k2': (
        'imagenet_k2.py',
        {'model.moe.placement', 'model.moe.hidden', 'model.moe.expert', 'model.moe.expert_args'},
    ),
    'imagenet_convnext_t.py': (
        'imagenet_resnet50.py',
        {'model.name', 'model.args', 'model.moe.expert', 'model.moe.expert_args'},
    ),
    'imagenet_convnext_k2.py': ('imagenet_convnext_t.py', {'model.moe.placement', *MESH}),
    'imagenet_vit_s16_dense.py': ('imagenet_vit_s16_k2.py', {'model.twin'}),
    'imagenet_vit_s16_k1.py': ('imagenet_vit_s16_k2.py', {'model.moe.k'}),
    'imagenet_vit_s16_soft.py': ('imagenet_vit_s16_k2.py', {'model.moe.group_size', *SOFT}),
    'imagenet_vit_b16_dense.py': ('imagenet_vit_s16_dense.py', {'model.args'}),
}


def checked(name: str) -> schema.Config:
    return config_lib.check(made(name))


def test_the_promised_configs_exist():
    assert set(PROMISED) <= set(FILES)
    assert {f'{f}:{arm}' for f, arms in PROMISED_ARMS.items() for arm in arms.split()} <= set(
        CONFIGS
    )


@pytest.mark.parametrize('name', CONFIGS)
def test_every_config_passes_the_check(name):
    checked(name)


@pytest.mark.parametrize('file', [f for f in FILES if f != 'base.py'])
def test_every_config_says_what_it_asks_how_to_run_it_and_what_was_measured(file):
    doc = module(file).__doc__
    named = re.search(r'Command: python main.py --config=configs/(\S+) --workdir=W\n', doc)[1]
    assert '?' in doc.splitlines()[0] and '\nMeasured: ' in doc
    assert named in CONFIGS and named.partition(':')[0] == file


@pytest.mark.tables
@pytest.mark.parametrize('file', COSTED)
def test_the_cost_on_top_of_a_file_is_what_the_leverage_command_prints(file):
    config = checked(file)
    cost = leverage.measure(config, input_pipeline.info(config.dataset))
    assert module(file).__doc__.splitlines()[2] == (
        f'Cost: {si(cost.flops)} FLOPs per image ({si(cost.flops_executed)} executed), '
        f'{cost.params_total:,} parameters, rho_place {cost.rho_place:.4f}.'
    )


@pytest.mark.parametrize('file', TABLES)
@pytest.mark.parametrize(
    'argument, words',
    [('', ['no arm is named', "'FILE.py:"]), (':k1_same', ["unknown arm 'k1_same'"])],
)
def test_an_arm_that_is_not_in_the_table_is_refused_in_a_line(file, argument, words):
    with pytest.raises(UserError) as e:
        made(file + argument)
    message = str(e.value)
    assert all(w in message for w in [*words, f'Allowed: {", ".join(sorted(TABLES[file]))}.'])
    assert '\n' not in message
    assert ("Did you mean 'k1_same_c'?" in message) == (
        bool(argument) and file == 'imagenet_ablation.py'
    )


def test_two_arms_of_the_ablation_have_a_file_of_their_own():
    assert checked('imagenet_ablation.py:k2') == checked('imagenet_k2.py')
    assert checked('imagenet_ablation.py:dense') == checked('imagenet_dense.py')


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
    ours, theirs = (
        checked(file).model.args
        for file in ('cifar_ablation.py:cifar10_depthwise', 'cifar10_standard.py')
    )
    assert (ours.widths, ours.depth, ours.norm) == (theirs.widths, theirs.depth, theirs.norm)
