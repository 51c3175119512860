"""Kinds of experts in a config: how they are written, resolved, kept and refused."""

import json

import pytest

from configs import digits_k2
from moe_vision.common.errors import UserError
from moe_vision.config import check as config_lib
from moe_vision.config import source
from moe_vision.config.kinds import Kind
from moe_vision.config.places import place_at


def made(changes=None):
    """The checked config of `digits_k2` with keys set."""
    c = digits_k2.get_config()
    with c.unlocked(), c.ignore_type():
        c.update_from_flattened_dict({'model.moe.num_experts': 6} | (changes or {}))
    return config_lib.check(c)


NO_LOSS = {'model.moe.losses': {}}
KINDS = ({'count': 4}, {'count': 2, 'divide': 16}, {'expert': 'skip'})


def test_kinds_are_resolved_and_survive_json():
    config = made({'model.moe.kinds': KINDS, 'model.moe.expert_args': {'kernel': 1}})
    first, second, skip = config.model.moe.kinds
    assert (first.expert, first.count, first.args.kernel) == ('conv', 4, 1)
    assert (second.divide, second.args.kernel) == (16, 1) and skip.expert == 'skip'
    values = json.loads(json.dumps(config_lib.to_dict(config)))
    assert config_lib.from_dict(values) == config
    place = place_at(config.model, 0)
    assert place.kinds == (0, 0, 1, 0, 0, 1) and place.skips == 1


def test_a_kind_that_names_its_expert_has_the_arguments_of_its_own():
    args = {'kernel': 5, 'norm_groups': 4}
    kinds = ({'count': 4}, {'expert': 'depthwise_conv', 'count': 2, 'args': args})
    config = made({'model.moe.kinds': kinds, 'model.moe.expert_args': {'kernel': 1}})
    assert [k.args.kernel for k in config.model.moe.kinds] == [1, 5]


def test_an_expert_of_ones_own_may_have_an_argument_without_default():
    expert = {'model.moe.expert': 'own_methods:Ranked', 'model.moe.expert_args': {'step': 4}}
    kinds = ({'count': 4}, {'expert': 'mlp', 'count': 2})
    config = made({**expert, 'model.moe.placement': 'head', 'model.moe.kinds': kinds})
    assert [getattr(k.args, 'step', None) for k in config.model.moe.kinds] == [4, None]


def test_kinds_on_the_command_line():
    text = "[{'count': 2}, {'count': 6, 'hidden': 16}]"
    _, opened, others = source.take_overrides([f'--config.model.moe.kinds={text}'])
    assert not others
    c = source.load('configs/digits_k2.py', [], opened)
    assert config_lib.check(c).model.moe.kinds[1] == Kind(
        'conv', 6, 16, args=config_lib.check(c).model.moe.expert_args
    )


def test_a_run_without_kinds_is_as_it_was():
    values = config_lib.to_dict(made())
    assert values['model']['moe']['kinds'] == []
    del values['model']['moe']['kinds']  # written before the key was there
    assert not config_lib.compare.changed(values, config_lib.to_dict(made()))
    now = config_lib.to_dict(made({'model.moe.kinds': KINDS}))
    assert list(config_lib.compare.changed(values, now)) == ['model.moe.kinds']


@pytest.mark.parametrize(
    'changes, parts',
    [
        ({'model.moe.kinds': ({'count': 4},)}, ['4 true', 'num_experts is 6', 'set it to 4']),
        (
            {'model.moe.kinds': KINDS, 'model.moe.layers': {'0': {'num_experts': 4}}},
            ['4 + 2 true', 'num_experts is 4 at routed layer 0'],
        ),
        ({'model.moe.kinds': KINDS, 'mesh.expert': 3}, ['4 experts of a kind', '3', '1, 2, 4']),
        ({'model.moe.kinds': KINDS[::-1]}, ["begins with 'skip'", 'twins']),
        ({'model.moe.kinds': ({'count': 6, 'wide': 2},)}, ["'model.moe.kinds[0].wide'", 'divide']),
        ({'model.moe.kinds': ({'count': 'six'},)}, ['model.moe.kinds[0].count', 'an int']),
        ({'model.moe.kinds': ({'count': 6}, {'count': 0})}, ['model.moe.kinds[1].count is 0']),
        ({'model.moe.kinds': ({'count': 6, 'hidden': -8},)}, ['kinds[0].hidden is -8']),
        (
            {'model.moe.kinds': ({'count': 6, 'args': {'kernle': 1}},)},
            ['model.moe.kinds[0].args.kernle', "'kernel'"],
        ),
        ({'model.moe.kinds': 6}, ['model.moe.kinds', 'dictionary']),
        (
            {'model.moe.kinds': ({'count': 6}, {'expert': 'skip', 'divide': 2})},
            ['kinds[1].divide is set to 2', "'skip'"],
        ),
        (
            {'model.moe.kinds': ({'count': 6}, {'expert': 'skip', 'args': {'kernel': 1}})},
            ["expert 'skip'", 'kernel', 'none'],
        ),
        ({'model.moe.kinds': ({'count': 6, 'expert': 'mlp'},)}, ["expert 'mlp' works on a vector"]),
        ({'model.moe.kinds': ({'count': 6, 'hidden': 12},)}, ['kinds[0].hidden 12', 'norm_groups']),
        (
            {'model.moe.kinds': KINDS, 'model.moe.router': 'soft', 'model.moe.losses': {}},
            ["'skip'", "router 'soft' mixes"],
        ),
        (
            {'model.moe.kinds': KINDS, 'model.moe.router': 'null_experts', 'model.moe.losses': {}},
            ["'skip'", 'null experts of its own'],
        ),
        ({'model.moe.kinds': KINDS, 'model.moe.k': 8}, ['k is 8', '+ skip 1', '1 to 7']),
        (
            {'model.moe.kinds': ({'count': 6, 'hidden': 8},), 'model.moe.hidden': 16},
            ['model.moe.hidden is set', 'each of model.moe.kinds'],
        ),
        (
            {
                'model.moe.kinds': ({'count': 6, 'hidden': 8},),
                'model.moe.layers': {'0': {'hidden': 16}},
            },
            ['model.moe.layers.0.hidden is set', 'each of model.moe.kinds'],
        ),
        (
            {
                'model.moe.kinds': ({'count': 6, 'expert': 'depthwise_conv'},),
                'model.moe.expert_args': {'kernel': 1},
            },
            ['model.moe.expert_args is set', 'not read'],
        ),
        (
            {'model.moe.kinds': ({'count': 6, 'expert': 'spectral', 'divide': 2},)},
            ['kinds[0].divide is 2', "'spectral' has no hidden width"],
        ),
        ({'model.moe.expert': 'spectral', 'model.moe.hidden': 8}, ['hidden is 8', 'no hidden']),
        (
            {'model.moe.expert': 'spectral', 'model.moe.layers': {'0': {'hidden': 8}}},
            ['layers.0.hidden is 8', 'no hidden'],
        ),
        (
            {'model.moe.expert': 'spectral', 'model.moe.shared_hidden': 8},
            ['shared_hidden is 8', 'no hidden width'],
        ),
        (
            {'model.moe.expert': 'spectral', 'model.twin': 'same_params'},
            ["twin is 'same_params'", "'spectral' has no hidden width", "'ensemble'"],
        ),
        (
            {'model.moe.losses': {'budget': 1.0}, 'model.moe.router': 'duo'},
            ['losses.budget', 'no large', 'model.moe.kinds'],
        ),
        (
            {'model.moe.kinds': KINDS, 'model.moe.losses': {'erc': 1.0}},
            ['losses.erc is 1.0', 'first matrices', 'leave kinds out'],
        ),
        (
            {
                'model.moe.kinds': KINDS,
                'train.transforms': {'freeze_experts': {'experts': (0,)}},
            },
            ['transforms.freeze_experts', 'a bank for each kind'],
        ),
        (
            {'model.moe.kinds': KINDS, 'model.moe.router': 'expert_choice', **NO_LOSS},
            ["'skip'", "'expert_choice' lets experts choose"],
        ),
        (
            {
                'model.moe.kinds': ({'count': 8}, {'expert': 'skip'}),
                'model.moe.num_experts': 8,
                'model.moe.router': 'dselect_k',
                **NO_LOSS,
            },
            ["'skip'", "'dselect_k' numbers experts by binary"],
        ),
        (
            {
                'model.moe.kinds': KINDS,
                'model.moe.router': 'rexmoe',
                'model.moe.placement': 'last_2',
                'model.moe.bank': '2',
                **NO_LOSS,
            },
            ["'skip'", "'rexmoe' deals experts out"],
        ),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_in_one_line(changes, parts):
    if 'model.moe.router' in changes:
        changes = changes | {'model.moe.router_args': {}}
    with pytest.raises(UserError) as error:
        made(changes)
    for part in parts:
        assert part in str(error.value), error.value
    assert '\n' not in str(error.value)
