"""`config.check`: what is accepted is typed and complete, what is not is named in one line."""

import dataclasses
import json
import os
import subprocess
import sys
import typing
from pathlib import Path

import pytest
from config_cases import CONFIGS, made
from ml_collections import ConfigDict

from configs import base
from input_pipeline import DatasetInfo
from moe_vision.common.errors import UserError
from moe_vision.common.json_values import plain
from moe_vision.config import (
    base_file,
    registry,
    rules,
    schema,
    source,
    typed,
)
from moe_vision.config import (
    check as config_lib,
)
from moe_vision.config.placement import routed_blocks

ROOT = Path(__file__).parents[2]
VIT = {'model.name': 'vit', 'model.args': {'width': 12, 'depth': 2, 'heads': 2, 'patch_size': 4}}
TAUGHT = {
    'model.moe.router': 'supervised',
    'model.moe.router_args': {},
    'model.moe.losses': {'supervised': 0.1},
}


def changed(changes=()) -> ConfigDict:
    """The defaults with keys set, given as {'train.epochs': 3}."""
    c = schema.defaults()
    for key, value in dict(changes).items():
        *parents, last = key.split('.')
        holder = c
        for parent in parents:
            holder = holder[parent]
        holder[last] = value
    return ConfigDict(c)


def told(changes, *parts) -> str:
    """The error for these changes: one line that holds every part."""
    with pytest.raises(UserError) as e:
        config_lib.check(changed(changes))
    message = str(e.value)
    assert '\n' not in message
    for part in parts:
        assert part in message, message
    return message


@pytest.mark.parametrize('name', CONFIGS)
def test_through_json_and_back_is_the_same(name):
    c = config_lib.check(made(name))
    stored = json.dumps(config_lib.to_dict(c), allow_nan=False)
    assert config_lib.from_dict(json.loads(stored)) == c


@pytest.mark.parametrize(
    'text, want',
    [
        ('1,2,inf', (1.0, 2.0, float('inf'))),
        ('(0.5, 1)', (0.5, 1.0)),
        ('inf', (float('inf'),)),
        ('1.5', (1.5,)),
        ('()', ()),
    ],
)
def test_numbers_in_a_list_on_the_command_line(text, want):
    common, opened, _ = source.take_overrides([f'--config.eval.capacity_factors={text}'])
    c = config_lib.check(source.load('configs/digits_k2.py', common, opened))
    assert c.eval.capacity_factors == want
    assert config_lib.from_dict(json.loads(json.dumps(config_lib.to_dict(c)))) == c


def test_an_unbounded_capacity_survives_strict_json():
    c = config_lib.check(changed({'model.moe.capacity_factor': float('inf')}))
    stored = json.dumps(config_lib.to_dict(c), allow_nan=False)
    assert config_lib.from_dict(json.loads(stored)).model.moe.capacity_factor == float('inf')


@pytest.mark.parametrize('key', source.KEYS)
def test_every_key_is_needed_and_a_misspelt_one_is_named(key):
    c = schema.defaults()
    *parents, last = key.split('.')
    holder = c
    for parent in parents:
        holder = holder[parent]
    value = holder.pop(last)
    with pytest.raises(UserError, match=f"'{key}' is missing"):
        config_lib.check(ConfigDict(c))
    holder[last] = value
    holder[last + 'z'] = value
    with pytest.raises(UserError, match=f"unknown key: '{key}z'. Did you mean '{last}'"):
        config_lib.check(ConfigDict(c))


def test_the_file_that_people_read_is_made_from_the_schema():
    remake = 'run `python -m moe_vision.config.base_file > configs/base.py`'
    assert (ROOT / 'configs' / 'base.py').read_text() == base_file.render(), remake
    assert base.get_config().to_dict() == schema.defaults()


def test_a_long_meaning_stands_above_its_key():
    short, long = 'a' * 70, 'b ' * 50
    assert base_file.commented('c.seed = 0', short) == [f'c.seed = 0  # {short}']
    *above, last = base_file.commented('c.seed = 0', long)
    assert last == 'c.seed = 0' and len(above) == 2
    assert all(line.startswith('# b') and len(line) <= 96 for line in above)
    assert base_file.commented('c.seed = 0', 'a:\n  b') == ['# a:', '#   b', 'c.seed = 0']


def test_every_key_has_its_annotation_default_and_meaning():
    keys = {key: (value, limits) for key, value, limits in schema.keys(schema.Config())}
    assert list(keys) == list(source.KEYS)
    for key, (value, limits) in keys.items():
        kind = source.KEYS[key]
        kept = typed.convert(value, kind, key)
        assert kept == value and type(kept) is type(value), key  # 0.0 and not 0
        assert limits['meaning'], key
        choices = typing.get_args(kind) if typing.get_origin(kind) is typing.Literal else ()
        assert all(choice in limits['meaning'] for choice in choices), key


def test_defaults_are_new_each_time():
    schema.defaults()['model']['moe']['losses']['z'] = 1.0
    schema.Config().model.moe.losses['z'] = 1.0
    assert schema.defaults()['model']['moe']['losses'] == {'importance': 0.005, 'load': 0.005}


WRONG = {
    int: (True, 3.0, '3', None),
    float: (True, '3', None, [1.0]),
    bool: (1, 0.0, 'True'),
    str: (1, None, True),
}


@pytest.mark.parametrize('key', [k for k, kind in source.KEYS.items() if kind in WRONG])
def test_every_wrong_type_is_told_with_its_key(key):
    kind = source.KEYS[key]
    for value in WRONG[kind]:
        told({key: value}, f'{key} is {value!r}', typed.describe(kind))


@pytest.mark.parametrize(
    'value, says',
    [
        (None, 'widths is None; it must be a list, each item an int.'),
        (8.0, 'widths is 8.0; it must be a list, each item an int.'),
        ('8,16', "widths is '8,16'; it must be a list, each item an int."),
        ((8, None), 'item 2 of widths is None; it must be an int.'),
        ([True, 8], 'item 1 of widths is True; it must be an int.'),
    ],
)
def test_a_list_that_is_none_is_told_as_a_list(value, says):
    with pytest.raises(UserError) as e:
        typed.convert(value, tuple[int, ...], 'widths')
    assert str(e.value) == says
    assert typed.convert(8, tuple[int, ...], 'widths') == (8,)


@pytest.mark.parametrize('key', [k for k, kind in source.KEYS.items() if kind in (int, float)])
def test_no_number_is_negative_or_nan(key):
    told({key: -1}, key, '-1')
    if source.KEYS[key] is float:
        told({key: float('nan')}, key, 'nan')
        if 'capacity_factor' not in key:
            told({key: float('inf')}, key, 'inf')


POSITIVE = """
    model.moe.num_experts model.moe.k model.moe.capacity_factor model.moe.eval_capacity_factor
    model.moe.capacity_multiple model.moe.group_size model.moe.splits train.batch_size
    train.micro_batches train.learning_rate eval.batch_size mesh.expert checkpoint.keep
    log.every_steps log.warn_max_over_mean
""".split()
BELOW_ONE = ['train.label_smoothing', 'train.ema_decay']
STEPS = {
    'train.epochs': 'train.steps',
    'eval.every_epochs': 'eval.every_steps',
    'checkpoint.every_epochs': 'checkpoint.every_steps',
}


@pytest.mark.parametrize('key', [k for k, kind in source.KEYS.items() if kind in (int, float)])
def test_zero_is_allowed_unless_a_number_must_be_positive(key):
    if key in POSITIVE:
        told({key: 0}, f'{key} is 0', 'it must be positive')
    elif key == 'dataset.randaugment_magnitude':  # not read where RandAugment is off
        config_lib.check(changed({key: 0, 'dataset.randaugment_layers': 1}))
    else:
        config_lib.check(
            changed(
                {key: 0}
                | ({STEPS[key]: 3} if key in STEPS else {})
                | ({'train.warmup_epochs': 0} if key == 'train.epochs' else {})
            )
        )


@pytest.mark.parametrize('key', BELOW_ONE)
def test_a_smoothing_lies_below_one(key):
    config_lib.check(changed({key: 0.99}))
    told({key: 1}, f'{key} is 1.0; allowed: 0 <= {key.split(".")[1]} < 1.')


def test_a_share_may_be_one_and_no_more():
    config_lib.check(changed({'log.warn_drop_rate': 1}))
    told({'log.warn_drop_rate': 1.1}, 'log.warn_drop_rate is 1.1', 'a share, from 0 to 1')


def test_an_int_is_fine_for_a_float_and_lists_become_tuples():
    c = config_lib.check(changed({'train.epochs': 3, 'model.args': {'widths': [8, 16]}}))
    assert type(c.train.epochs) is float
    assert c.model.args.widths == (8, 16)


@pytest.mark.parametrize(
    'key', [k for k, kind in source.KEYS.items() if typing.get_origin(kind) is typing.Literal]
)
def test_a_choice_is_told_with_the_nearest(key):
    allowed = source.KEYS[key].__args__
    given = allowed[-1] + 'x'
    told({key: given}, f"{key} is '{given}'. Did you mean '{allowed[-1]}'?", *allowed)


@pytest.mark.parametrize(
    'changes, parts',
    [
        ({'model.moe.router': 'topk'}, ["router 'topk'", "'top_k'"]),
        ({'model.moe.router': 'none:Such'}, ["'none:Such'", "module 'none'"]),
        ({'model.moe.router': 'json:Topk'}, ["'json:Topk'", "has no 'Topk'"]),
        (
            {'model.moe.router_args': {'nois': 'gaussian'}},
            [
                "argument of router 'top_k'",
                "'noise'",
                'renormalize',
                '--config.model.moe.router_args={}',
            ],
        ),
        (
            {'model.moe.router_args': {'noise': 'gausian'}},
            ['model.moe.router_args.noise', "'gaussian'", 'jitter'],
        ),
        (
            {'model.moe.router_args': {'renormalize': 1}},
            ['router_args.renormalize is 1', 'True or'],
        ),
        (
            {'model.moe.router_args': {'temperature_start': 0.0}},
            ['model.moe.router_args.temperature_start is 0.0', 'positive'],
        ),
        (
            {'model.moe.router_args': {'noise_scale': 2.0}},
            ['model.moe.router_args.noise_scale', 'not read', "noise is 'none'"],
        ),
        ({'model.moe.expert': 'convs'}, ["expert 'convs'", "'conv'"]),
        ({'model.moe.expert': 'mlp'}, ["expert 'mlp'", 'conv or depthwise_conv']),
        ({'model.moe.expert': 'conv', 'model.moe.placement': 'head'}, ["expert 'conv'", 'use mlp']),
        ({'model.moe.expert_args': {'kernels': 3}}, ["argument of expert 'conv'", "'kernel'"]),
        ({'model.moe.expert_args': {'norm_groups': 5}}, ['norm_groups is 5', '128', '4']),
        ({'model.moe.hidden': 12}, ['norm_groups is 8', 'model.moe.hidden 12']),
        (
            {'model.moe.placement': 'last_2', 'model.moe.layers': {'-1': {'hidden': 12}}},
            ['norm_groups is 8', 'model.moe.layers.-1.hidden 12'],
        ),
        (
            {'model.moe.placement': 'last_2', 'model.moe.layers': {'0': {'shared_hidden': 12}}},
            ['norm_groups is 8', 'model.moe.layers.0.shared_hidden 12'],
        ),
        ({'model.moe.layers': {0: {'k': 1}}}, ['model.moe.layers has the key 0', "such as '0'"]),
        ({'model.moe.losses': {'load': 0.1, 1: 0.1}}, ['keys that are no strings']),
        ({'model.moe.losses': {'lod': 0.1}}, ["loss 'lod'", "'load'", 'importance']),
        ({'model.moe.losses': {'load': '0.1'}}, ['model.moe.losses.load', 'a number']),
        ({'model.moe.losses': {'load': -0.1}}, ['model.moe.losses.load', '-0.1']),
        ({'model.moe.router_args': {}}, ['losses.load', 'no noise', 'router_args.noise']),
        (
            {'model.moe.router_args': {}, 'model.moe.losses': {'load_v_moe': 0.1}},
            ['losses.load_v_moe', 'no noise', 'router_args.noise'],
        ),
        (
            {
                'model.moe.router': 'random',
                'model.moe.router_args': {'normalize_inputs': False},
                'model.moe.losses': {},
            },
            ['normalize_inputs is set to False but is not read', "gate is 'even'"],
        ),
        ({'model.name': 'convv'}, ["backbone 'convv'", "'conv'"]),
        (
            {'model.name': 'resnet', 'model.args': {'widths': (8, 16)}},
            ['widths is (8, 16)', 'each'],
        ),
        (
            {'model.name': 'resnet', 'model.args': {'widths': (6,), 'depths': (2,)}},
            ['multiples of 4'],
        ),
        (
            {
                'model.name': 'resnet',
                'model.args': {'widths': (64,), 'depths': (3,)},
                'model.moe.expert_args': {'norm_groups': 32},
            },
            ['norm_groups is 32', 'hidden width', '16'],
        ),
        ({'model.name': 'vit', 'model.args': {'drop_path': 1.0}}, ['drop_path is 1.0', '< 1']),
        (
            {'model.name': 'examples.mixer_backbone:Mixer', 'model.args': {}, 'model.remat': True},
            ['model.remat is True', 'not read', 'Mixer'],
        ),
        ({'model.args': {'width': (8,)}}, ["argument of backbone 'conv'", "'widths'"]),
        ({'model.args': {'expansion': 2}}, ["argument of backbone 'conv'", 'expansion']),
        ({'model.args': {'widths': ()}}, ['model.args.widths', 'positive']),
        ({'model.args': {'depth': 2.0}}, ['model.args.depth is 2.0', 'an int']),
        ({'model.args': 3}, ['model.args is 3', 'widths']),
        ({'train.optimizer': 'adam'}, ["optimizer 'adam'", "'adamw'", 'sgd']),
        (
            {'train.optimizer': 'sgd', 'train.optimizer_args': {'momentun': 0.8}},
            ["argument of optimizer 'sgd'", "'momentum'"],
        ),
        ({'train.optimizer_args': {'b1': 1.0}}, ['train.optimizer_args.b1 is 1.0', 'b1 < 1']),
        ({'dataset.name': 'digit'}, ["data set 'digit'", "'digits'", 'fashion_mnist']),
        ({'train': 3}, ['train is 3', 'epochs']),
        ({'model.moe.capacity_factor': 0}, ['model.moe.capacity_factor is 0.0', 'positive']),
        ({'model.moe.eval_capacity_factor': 0}, ['model.moe.eval_capacity_factor', 'positive']),
        ({'model.moe.capacity_multiple': 0}, ['model.moe.capacity_multiple', 'positive']),
        ({'eval.capacity_factors': (1.0, 0.0)}, ['eval.capacity_factors', '0.0', 'positive']),
        ({'eval.capacity_factors': (float('nan'),)}, ['eval.capacity_factors is nan', 'a number']),
        (
            {'eval.capacity_factors': (1.0,), 'model.moe.placement': 'none'},
            ['eval.capacity_factors is set to (1.0,) but is not read', "'none'"],
        ),
        (
            {
                'eval.capacity_factors': (1.0,),
                'model.moe.router': 'soft',
                'model.moe.losses': {},
                'model.moe.router_args': {},
            },
            ['eval.capacity_factors', 'not read', "'soft'"],
        ),
        ({'train.learning_rate': 0}, ['train.learning_rate', 'positive']),
        ({'train.label_smoothing': 1}, ['train.label_smoothing is 1.0', '< 1']),
        ({'train.ema_decay': 1.0}, ['train.ema_decay is 1.0', '< 1']),
        ({'train.epochs': 0}, ['train.epochs and train.steps', 'both 0']),
        ({'eval.every_epochs': 0}, ['eval.every_epochs and eval.every_steps', 'both 0']),
        ({'train.warmup_epochs': 30}, ['train.warmup_epochs is 30.0 of train.epochs 30.0', 'less']),
        ({'train.steps': 5, 'train.warmup_steps': 5}, ['train.warmup_steps is 5', 'less']),
        ({'train.trainable': '('}, ["train.trainable is '('", 'regular expression']),
        ({'train.micro_batches': 3}, ['train.batch_size 128', 'train.micro_batches 3', '2, 4']),
        ({'mesh.expert': 3}, ['num_experts 8', 'mesh.expert 3', '2, 4']),
        ({'model.moe.k': 9}, ['model.moe.k is 9', '1 to 8']),
        (
            {
                'model.moe.router': 'soft',
                'model.moe.losses': {},
                'model.moe.router_args': {},
                'model.twin': 'same_active_flops',
            },
            ['model.twin', "'soft'", 'same_width'],
        ),
        (
            {
                'model.moe.router': 'soft',
                'model.moe.router_args': {},
                'model.moe.losses': {'switch': 1.0},
            },
            ['losses.switch', "'soft'", 'no choices'],
        ),
        (
            {
                'model.moe.router': 'soft',
                'model.moe.losses': {},
                'model.moe.router_args': {'axis': 'tokens'},
            },
            ["axis is 'tokens'", "'batch' or 'none'"],
        ),
        (
            {
                'model.moe.k': 3,
                'model.moe.router_args': {'second_choice': 'random', 'noise': 'gaussian'},
            },
            ['second_choice', 'k = 2', 'is 3'],
        ),
        (
            {
                'model.moe.placement': 'last_2',
                'model.moe.layers': {'1': {'k': 3}},
                'model.moe.router_args': {'second_choice': 'random', 'noise': 'gaussian'},
            },
            ['second_choice', 'k = 2', 'is 3 at routed layer 1'],
        ),
        (
            {
                'model.moe.placement': 'last_2',
                'model.moe.router': 'null_experts',
                'model.moe.router_args': {},
                'model.moe.losses': {},
                'model.twin': 'same_drops',
                'model.moe.layers': {'0': {'num_experts': 1}},
            },
            ["twin is 'same_drops'", 'k is 2 of num_experts 1 at routed layer 0'],
        ),
        (
            {
                'model.moe.k': 1,
                'model.moe.router_args': {'second_choice': 'random_expert', 'noise': 'gaussian'},
            },
            ["second_choice is 'random_expert'", 'k = 2', 'is 1'],
        ),
        (
            {'model.moe.losses': {'supervised': 0.1}},
            ["router 'top_k' has no superclass", "router to 'supervised'"],
        ),
        (
            {**TAUGHT, 'model.moe.router_args': {'superclasses': (0, 8)}},
            ['superclasses names 8', '0 to 7'],
        ),
        ({**TAUGHT, 'model.moe.router_args': {'superclasses': (0, -1)}}, ['superclasses names -1']),
        (
            {**TAUGHT, 'model.moe.router_args': {'superclasses': (0, 1)}, 'model.moe.losses': {}},
            ['superclasses is set but is not read', "no 'supervised'"],
        ),
        (
            {
                'model.moe.router': 'soft',
                'model.moe.losses': {},
                'model.moe.router_args': {},
                'model.twin': 'same_drops',
            },
            ["'same_drops'", "'soft'", 'same_width'],
        ),
        (
            {
                'model.moe.router': 'null_experts',
                'model.moe.router_args': {},
                'model.moe.losses': {},
                'model.moe.k': 9,
                'model.twin': 'same_drops',
            },
            ["'same_drops'", 'k is 9', '8'],
        ),
        ({'model.twin': 'same_width', 'model.moe.placement': 'none'}, ['model.twin', 'placement']),
    ],
)
def test_each_mistake_says_what_was_given_and_what_is_allowed(changes, parts):
    told(changes, *parts)


def test_superclasses_are_one_for_each_class():
    c = config_lib.check(changed({**TAUGHT, 'model.moe.router_args': {'superclasses': (0, 1, 2)}}))
    with pytest.raises(UserError, match='3 entries.*10 classes'):
        config_lib.check_with_data(c, INFO)
    for fits in ((), tuple(range(5)) * 2):
        config_lib.check_with_data(
            config_lib.check(changed({**TAUGHT, 'model.moe.router_args': {'superclasses': fits}})),
            INFO,
        )


def test_null_experts_can_be_chosen_too():
    changes = {
        'model.moe.router': 'null_experts',
        'model.moe.router_args': {'null_experts': 2},
        'model.moe.losses': {},
    }
    config_lib.check(changed({**changes, 'model.moe.k': 10}))
    told({**changes, 'model.moe.k': 11}, 'k is 11', 'null_experts 2', '1 to 10')


@pytest.mark.parametrize(
    'at, parts',
    [
        ({'0': {'num_experts': 0}}, ['model.moe.layers.0.num_experts is 0', 'positive']),
        ({'0': {'num_experts': 10**6}}, ['layers.0.num_experts', 'at most 100,000']),
        ({'0': {'num_expert': 4}}, ["'model.moe.layers.0.num_expert'", "'num_experts'"]),
        ({'-1': {'k': 9}}, ['k is 9', '1 to 8', 'routed layer 0']),
        ({'1': {'k': 1}}, ["layer '1'", "'0' to '0'"]),
        ({'first': {'k': 1}}, ["layer 'first'"]),
    ],
)
def test_single_layers_are_checked_like_all(at, parts):
    told({'model.moe.layers': at}, *parts)


def test_arguments_of_a_loss_that_is_not_there_are_refused():
    told({'model.moe.loss_args': {'z': {}}}, "'z'", 'importance')
    told({'model.moe.loss_args': {'load': {'scale': 1}}}, "argument of loss 'load'", 'scale')


def test_a_router_gets_what_it_needs_or_is_refused(monkeypatch):
    needy = dataclasses.replace(registry.ROUTERS['top_k'], needs=('attention',))
    monkeypatch.setitem(registry.ROUTERS, 'top_k', needy)
    told({}, "needs 'attention'", "backbone 'conv' supplies map, image")
    offers = dataclasses.replace(registry.BACKBONES['conv'], supplies=('attention',))
    monkeypatch.setitem(registry.BACKBONES, 'conv', offers)
    config_lib.check(changed())


OTHER = {
    'router': 'random',
    'router_args': {'noise': 'jitter'},
    'num_experts': 4,
    'k': 1,
    'capacity_factor': 1.0,
    'eval_capacity_factor': 1.0,
    'capacity_multiple': 4,
    'group_size': 32,
    'priority': 'gate',
    'expert': 'depthwise_conv',
    'expert_args': {'kernel': 5},
    'hidden': 8,
    'losses': {},
    'loss_args': {'load': {}},
    'shared_hidden': 8,
    'bank': '1',
    'schedule': 'descending',
    'schedule_least': 2,
    'splits': 2,
    'layers': {'0': {'num_experts': 4}},
    'kinds': ({'count': 8, 'divide': 2},),
}


@pytest.mark.parametrize(
    'key', [f.name for f in dataclasses.fields(schema.Moe) if f.name != 'placement']
)
def test_routing_keys_are_not_read_without_routing_but_may_stand_in_a_twin(key):
    changes = {f'model.moe.{key}': OTHER[key]}
    if key == 'router':
        changes['model.moe.router_args'] = {}
    told(
        {**changes, 'model.moe.placement': 'none'},
        f'model.moe.{key} is set to',
        'not read',
        "placement is 'none'",
    )
    if key in ('router', 'router_args'):
        changes['model.moe.losses'] = {}
    if key.startswith('schedule'):  # it is one of several layers
        changes = {'model.moe.schedule': 'ascending', 'model.moe.placement': 'every_1', **changes}
    config_lib.check(changed({**changes, 'model.twin': 'same_width'}))


@pytest.mark.parametrize('key', registry.ROUTERS['soft'].ignores)
def test_soft_routing_does_not_read_what_choosing_reads(key):
    soft = {'model.moe.router': 'soft', 'model.moe.router_args': {}, 'model.moe.losses': {}}
    config_lib.check(changed(soft))
    told({**soft, f'model.moe.{key}': OTHER[key]}, f'model.moe.{key} is set to', "'soft'")


def test_groups_of_images_fit_iff_they_divide_a_micro_batch():
    for group in range(1, 70):
        changes = {'train.batch_size': 96, 'train.micro_batches': 2, 'model.moe.group_size': group}
        if 48 % group == 0:
            config_lib.check(changed(changes))
        else:
            fits = told(changes, f'group_size is {group}', '48 images').split('fits: ')[1]
            for size in fits.rstrip('.').split(', '):
                config_lib.check(changed({**changes, 'model.moe.group_size': int(size)}))


def test_groups_of_patches_are_whole_images_or_parts_of_one():
    start = {**VIT, 'dataset.image_size': 16, 'train.batch_size': 6}  # 4 x 4 patches
    fits = {g for g in range(1, 200) if (16 % g == 0) or (g % 16 == 0 and 6 % (g // 16) == 0)}
    assert fits == {1, 2, 4, 8, 16, 32, 48, 96}
    for group in range(1, 130):
        changes = {**start, 'model.moe.group_size': group}
        if group in fits:
            config_lib.check(changed(changes))
        else:
            told(changes, f'group_size is {group}', '16 tokens', 'what fits')


def test_slots_over_a_batch_of_patches_need_more_than_one_image():
    soft = {
        **VIT,
        'dataset.image_size': 16,
        'train.batch_size': 6,
        'model.moe.router': 'soft',
        'model.moe.losses': {},
        'model.moe.router_args': {'axis': 'batch'},
    }
    config_lib.check(changed({**soft, 'model.moe.group_size': 32}))
    told({**soft, 'model.moe.group_size': 16}, "axis is 'batch'", 'one image (16)', '32')
    tokens = {**soft, 'model.moe.router_args': {'axis': 'tokens'}, 'model.moe.group_size': 16}
    config_lib.check(changed(tokens))
    told({**tokens, 'model.moe.group_size': 32}, 'one image of 16 tokens', 'is 32')
    told({**tokens, 'model.moe.placement': 'head', 'model.moe.group_size': 6}, "axis is 'tokens'")


INFO = DatasetInfo('toy', 10, (16, 16, 1), {'train': 200, 'test': 50}, tuple('abcdefghij'))


def test_the_image_size_of_the_data_is_used_where_the_config_has_none():
    c = config_lib.check(changed({**VIT, 'model.moe.group_size': 48, 'train.batch_size': 6}))
    config_lib.check_with_data(c, INFO)
    told_by = dataclasses.replace(INFO, image_shape=(12, 12, 1))  # 9 tokens: 48 does not fit
    with pytest.raises(UserError, match='9 tokens'):
        config_lib.check_with_data(c, told_by)
    with pytest.raises(UserError, match='model.args.patch_size is 4.*18x18'):
        config_lib.check_with_data(c, dataclasses.replace(INFO, image_shape=(18, 18, 1)))


@pytest.mark.parametrize('padding, least', [('torch', 16), ('same', 1)])
def test_an_image_of_which_nothing_is_left_is_refused(padding, least):
    args = {'widths': (16, 16, 16), 'depths': (1, 1, 1), 'padding': padding}
    c = config_lib.check(changed({'model.name': 'convnext', 'model.args': args}))
    if least > 1:
        small = dataclasses.replace(INFO, image_shape=(28, least - 1, 1))
        with pytest.raises(UserError, match='28x15 shrink to nothing.*image_size to 16 or more'):
            config_lib.check_with_data(c, small)
    config_lib.check_with_data(c, dataclasses.replace(INFO, image_shape=(least, least, 1)))


def test_a_class_token_is_a_token():
    args = {**VIT['model.args'], 'pool': 'token'}
    c = config_lib.check(
        changed({**VIT, 'model.args': args, 'model.moe.group_size': 17, 'train.batch_size': 6})
    )
    config_lib.check_with_data(c, INFO)


@pytest.mark.parametrize(
    'changes, part',
    [
        ({'train.batch_size': 256}, 'only 200 training images'),
        ({'eval.train_images': 201}, 'eval.train_images is 201 but'),
        ({'train.batch_size': 64, 'train.steps': 6, 'train.warmup_epochs': 2.0}, '6 of 6 steps'),
    ],
)
def test_the_number_of_images_limits_batch_and_warm_up(changes, part):
    with pytest.raises(UserError, match=part):
        config_lib.check_with_data(config_lib.check(changed(changes)), INFO)


@pytest.mark.parametrize(
    'placement, blocks, routed',
    [
        ('none', 3, ()),
        ('head', 3, ()),
        ('last_2', 6, (4, 5)),
        ('last_6', 6, (0, 1, 2, 3, 4, 5)),
        ('every_2', 6, (1, 3, 5)),
        ('every_4', 6, (3,)),
        ('0', 1, (0,)),
        ('3,1', 4, (1, 3)),
    ],
)
def test_placements_name_blocks(placement, blocks, routed):
    assert routed_blocks(placement, blocks) == routed


@pytest.mark.parametrize(
    'placement',
    [
        '',
        'last',
        'last_0',
        'every_0',
        'last_1,2',
        '1,1',
        '1,',
        '-1',
        'Head',
        'every_two',
        'last_7',
        'every_7',
        '6',
        '0,6',
    ],
)
def test_other_placements_are_refused(placement):
    told({'model.moe.placement': placement}, f"model.moe.placement is '{placement}'")


@pytest.mark.parametrize('placement, expert', [('head', 'mlp'), ('last_1', 'conv')])
def test_the_default_expert_copies_what_it_replaces(placement, expert):
    c = config_lib.check(changed({'model.moe.placement': placement}))
    assert c.model.moe.expert == expert
    assert isinstance(c.model.moe.expert_args, registry.EXPERTS[expert].args)


def test_arguments_get_their_defaults():
    c = config_lib.check(
        changed({'train.optimizer': 'sgd', 'train.optimizer_args': {'momentum': 0.8}})
    )
    assert c.train.optimizer_args == registry.SgdArgs(momentum=0.8, nesterov=True)


def test_overrides_reach_locked_configs_and_their_open_dictionaries(tmp_path):
    path = tmp_path / 'mine.py'
    path.write_text('from configs import base\nget_config = base.get_config\n')
    common, opened, others = source.take_overrides(
        [
            '--config=x.py',
            '--config.train.epochs',
            '3',
            '--config.dataset.cache',
            '--config.model.moe.router_args.noise=learned',
            '--config.model.args.widths=16,32',
            '--config.model.moe.losses={}',
            '--config.model.moe.losses.z=1e-3',
            '-config.train.optimizer_args.b1=0.8',
            '--mode',
            'eval',
            '--config.model.moe.router_args.renormalize=true',
        ]
    )
    assert others == ['--config=x.py', '--mode', 'eval']
    loaded = source.load(str(path), common, opened)
    assert loaded.is_locked
    c = config_lib.check(loaded)
    assert (c.train.epochs, c.dataset.cache, c.model.args.widths) == (3.0, True, (16, 32))
    assert c.model.moe.losses == {'z': 0.001}
    assert c.train.optimizer_args.b1 == 0.8
    assert (c.model.moe.router_args.noise, c.model.moe.router_args.renormalize) == ('learned', True)


def test_the_config_of_a_run_can_be_overridden(tmp_path):
    start = changed({'model.moe.capacity_factor': float('inf'), 'model.args': {'widths': (8, 16)}})
    stored = config_lib.check(start)
    (tmp_path / 'config.json').write_text(json.dumps({'config': config_lib.to_dict(stored)}))
    assert config_lib.load(str(tmp_path)) == stored
    again = source.load(
        f'{ROOT}/configs/workdir.py:{tmp_path}',
        ['--config.eval.batch_size=1', '--config.model.moe.capacity_factor=2'],
    )
    want = dataclasses.replace(stored, eval=dataclasses.replace(stored.eval, batch_size=1))
    moe = dataclasses.replace(want.model.moe, capacity_factor=2.0)
    want = dataclasses.replace(want, model=dataclasses.replace(want.model, moe=moe))
    assert config_lib.check(again) == want


def test_a_run_from_before_a_key_was_there_has_its_default(tmp_path):
    stored = config_lib.check(
        changed({'eval.batch_size': 3, 'model.moe.router_args': {}, 'model.moe.losses': {}})
    )
    values = config_lib.to_dict(stored)
    del values['eval']['capacity_factors'], values['dataset']['randaugment_layers']
    (tmp_path / 'config.json').write_text(json.dumps({'config': values}))
    assert config_lib.load(str(tmp_path)) == stored


@pytest.mark.parametrize('text', ['', '{', '[]', '{"config": 3}', '{"other": {}}'])
def test_a_broken_config_of_a_run_is_told(tmp_path, text):
    (tmp_path / 'config.json').write_text(text)
    with pytest.raises(UserError):
        config_lib.load(str(tmp_path))


def test_checking_imports_nothing_slow():
    code = (
        'import sys; from configs import base; from moe_vision.config import check;'
        'check.check(base.get_config());'
        "print([m for m in ('jax', 'flax', 'grain', 'tensorflow_datasets', 'numpy')"
        ' if m in sys.modules])'
    )
    done = subprocess.run(
        [sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == '[]'


def test_a_file_changed_within_the_same_second_is_read_anew(tmp_path):
    file = tmp_path / 'changed.py'
    for value in (0.3, 0.4):  # as long a text, at the same time: cached bytecode would be used
        file.write_text(f'def get_config():\n    return {value}\n')
        os.utime(file, (1e9, 1e9))
        assert source.run(str(file)) == value


LARGEST = {
    'seed': 2**32 - 1,
    'dataset.image_size': 10_000,
    'dataset.workers': 1_000,
    'dataset.randaugment_layers': 100,
    'model.moe.num_experts': 100_000,
    'model.moe.capacity_multiple': 10_000,
    'model.moe.hidden': 1_000_000,
    'model.moe.shared_hidden': 1_000_000,
    'model.moe.schedule_least': 100_000,
    'eval.batch_size': 100_000,
}


@pytest.mark.parametrize('key', [k for k, kind in source.KEYS.items() if kind in (int, float)])
def test_no_number_is_larger_than_what_holds_it(key):
    whole = source.KEYS[key] is int
    limits = next(limits for k, _, limits in schema.keys(schema.Config()) if k == key)
    most = rules.largest(0 if whole else 0.0, limits)
    assert most == LARGEST.get(key, 2**31 - 1 if whole else 3.4e38)
    for value in (most + 1, 2**62) if whole else (3.5e38, 1e300):
        told({key: value}, f'{key} is {value}', 'it must be ')


@pytest.mark.parametrize('seed', [0, 1, 2**31, 2**32 - 1])
def test_seeds_are_those_that_initial_values_can_tell_apart(seed):
    assert config_lib.check(changed({'seed': seed})).seed == seed
    told({'seed': seed + 2**32}, f'seed is {seed + 2**32}', '4,294,967,295')
    told({'seed': seed - 2**32}, 'seed is -')


def test_keys_that_name_folders_expand_the_home_folder(monkeypatch):
    monkeypatch.setenv('HOME', '/home/me')
    paths = [k for k, _, limits in schema.keys(schema.Config()) if limits.get('path')]
    assert paths == ['init_from']
    assert config_lib.check(changed({'init_from': '~/a'})).init_from == '/home/me/a'
    assert config_lib.check(changed({'init_from': 'gs://b/~'})).init_from == 'gs://b/~'
    told({'init_from': '~nobody-has-this-name/a'}, "'~nobody-has-this-name/a'", "'./~nobody")


SIZES = [
    (table, name, field.name)
    for table in ('ROUTERS', 'BACKBONES', 'EXPERTS', 'OPTIMIZERS')
    for name, entry in getattr(registry, table).items()
    for field in dataclasses.fields(entry.args)
    if int in (field.type, *typing.get_args(typing.get_type_hints(entry.args)[field.name]))
    and field.name not in ('heads', 'patch_size', 'norm_groups', 'superclasses')  # they must divide
]


@pytest.mark.parametrize('table, name, field', SIZES)
def test_no_size_of_a_method_takes_all_memory_or_time(table, name, field):
    args = getattr(registry, table)[name].args
    sizes = isinstance(getattr(args(), field), tuple)
    more = {'axis': 'tokens'} if field == 'slots_per_expert' else {}
    for size in (2**20, 2**31, 2**62):
        with pytest.raises(UserError, match=f'{field} is .* at most 100'):
            args(**more, **{field: (size, 32) if sizes else size})


@pytest.mark.parametrize(
    'changes, says',
    [
        (
            {'model.moe.router': 'oracle', 'model.moe.router_args': {}, 'model.moe.losses': {}},
            ['dataset.domains is 0', 'set it'],
        ),
        ({'model.measured_drops': (0.1, 0.2)}, ['measured_drops', 'same_measured_drops']),
        ({'model.twin': 'same_measured_drops'}, ['two shares or more', 'moe_vision.report.drops']),
        (
            {'model.twin': 'same_measured_drops', 'model.measured_drops': (0.1, 1.2)},
            ['model.measured_drops', 'a share, from 0 to 1'],
        ),
        (
            {
                'model.moe.router': 'soft',
                'model.moe.router_args': {},
                'model.moe.losses': {},
                'model.twin': 'ensemble',
            },
            ['has no k', 'same_executed_flops'],
        ),
    ],
)
def test_domains_drops_and_ensembles_say_what_they_need(changes, says):
    told(changes, *says)


@pytest.mark.parametrize(
    'given, expected',
    [
        ('one,two', ('one', 'two')),
        (['one,my.two:Two'], ('one', 'my.two:Two')),
        (['A sentence, which is one.'], ('A sentence, which is one.',)),
        (['one,two', 'three'], ('one,two', 'three')),
    ],
)
def test_names_with_commas_between_them_are_several_and_a_sentence_is_one(given, expected):
    assert typed.convert(given, tuple[str, ...], 'key') == expected


def test_what_is_no_literal_is_text_which_is_no_dictionary():
    _, opened, _ = source.take_overrides(['--config.model.moe.losses={[1]: 2}'])
    with pytest.raises(UserError, match='model.moe.losses cannot be set|must be a dictionary'):
        config_lib.check(source.load('configs/digits_k2.py', [], opened))


def test_a_config_that_lacks_a_section_is_told_where_to_start(tmp_path):
    path = tmp_path / 'bare.py'
    path.write_text('from ml_collections import ConfigDict\nget_config = ConfigDict\n')
    with pytest.raises(UserError, match="has no .*'model'.*; start it from configs/base.py") as e:
        source.load(str(path), [], {'model.moe.router_args.noise': 'none'})
    assert '\n' not in str(e.value)


def test_a_config_file_may_define_dataclasses(tmp_path):
    path = tmp_path / 'classes.py'
    path.write_text(
        'from __future__ import annotations\n'
        'import dataclasses\n'
        'from configs import base\n'
        '@dataclasses.dataclass\n'
        'class Size:\n'
        '    width: int = 3\n'
        'def get_config():\n'
        '    c = base.get_config()\n'
        '    c.train.epochs = float(Size().width)\n'
        '    return c\n'
    )
    before = set(sys.modules)
    assert source.load(str(path)).train.epochs == 3.0
    assert 'config_file' not in set(sys.modules) - before


@pytest.mark.parametrize(
    'changes, path',
    [
        ({'model.moe.layers': {'-1': {'k': 1}}}, ('model', 'moe', 'layers', '-1')),
        (
            {'model.moe.kinds': [{'count': 8}], 'model.moe.placement': 'last_1'},
            ('model', 'moe', 'kinds', 0),
        ),
        (
            {'model.moe.losses': {'erc': 1.0}, 'model.moe.loss_args': {'erc': {}}},
            ('model', 'moe', 'loss_args', 'erc'),
        ),
        (
            {'init_from': 'W', 'init_kind': 'upcycle', 'init_args': {}},
            ('init_args',),
        ),
        ({'train.transforms': {'freeze_router': {}}}, ('train', 'transforms', 'freeze_router')),
        ({'model.args': {}}, ('model', 'args')),
    ],
)
def test_an_argument_that_an_older_folder_lacks_has_its_default(changes, path):
    """In whatever dictionary it stands: a method that gets an argument breaks no older run."""
    now = config_lib.to_dict(config_lib.from_dict(changed(changes).to_dict()))
    defaults = {
        name: plain(config_lib.compare.default_of((*path, name), now)) for name in inner(now, path)
    }
    same = [name for name, value in inner(now, path).items() if value == defaults[name]]
    assert same  # the others were set, or follow from other keys
    for name in same:
        before = json.loads(json.dumps(now))
        del inner(before, path)[name]
        assert not config_lib.compare.changed(before, now), name


def inner(values, path):
    for key in path:
        values = values[key]
    return values
