"""Split and merge: parts add up to their block, and experts that are alike merge to themselves."""

import dataclasses

import numpy as np
import pytest
import weight_files
from slow import except_for

from moe_vision.common.errors import UserError
from moe_vision.config import surgery
from moe_vision.surgery import hidden_units
from moe_vision.surgery.expand import Expand
from moe_vision.surgery.merge import Merge
from moe_vision.surgery.split import Split
from moe_vision.surgery.state import Misfit, replaced

IMAGE, EXPERTS, HIDDEN = (8, 8, 3), 4, 64
X = np.random.default_rng(5).normal(size=(4, *IMAGE)).astype(np.float32)
NETWORKS = {
    'vit': {'width': 16, 'depth': 2, 'heads': 2, 'patch_size': 4},
    'convnext': {'widths': (8, 16), 'depths': (1, 1)},
    'depthwise': {'widths': (8, 16), 'depth': 1},
}
ROUTED = {
    'model.moe.placement': 'last_1',
    'model.moe.num_experts': EXPERTS,
    'model.moe.k': EXPERTS,
    'model.moe.group_size': 4,
    'model.moe.hidden': HIDDEN // EXPERTS,
    'model.moe.router_args': {'gate': 'top_k_softmax', 'gate_scale': float(EXPERTS)},
    'model.moe.losses': {},
    'model.moe.capacity_factor': float('inf'),
    'model.moe.eval_capacity_factor': float('inf'),
}


def config_of(data_dir, name='vit', **changes):
    start = {'model.name': name, 'model.args': NETWORKS[name], **ROUTED}
    if name == 'depthwise':
        start['model.moe.expert_args'] = {'norm_groups': 4}
    return weight_files.config(data_dir, start | changes)


def dense_of(data_dir, name='vit'):
    twin = {'model.twin': 'same_width', 'model.moe.hidden': HIDDEN}
    return config_of(data_dir, name, **twin)


def cut(kind, source, source_config, config, **args):
    made = kind(surgery.SURGERY[kind.__name__.lower()].args(**args))
    return made(source, source_config, weight_files.fresh(config, IMAGE, seed=9), config)


def block_of(state):
    return next(path.split('/')[0] for path in state.params if '/experts/' in path)


def same(config, state, other_config, other):
    ours, theirs = (
        weight_files.logits(c, s, X) for c, s in ((config, state), (other_config, other))
    )
    return np.abs(ours - theirs).max() < 1e-5 * theirs.std()


@pytest.mark.parametrize('by', except_for(('weights',), ['order', 'random', 'weights']))
@pytest.mark.parametrize('name', NETWORKS)
def test_all_parts_of_a_block_add_up_to_it(name, by, data_dir):
    twin, config = dense_of(data_dir, name), config_of(data_dir, name)
    dense = weight_files.fresh(twin, IMAGE)
    result = cut(Split, dense, twin, config, by=by, router_scale=0.0)
    assert same(config, result, twin, dense)
    block = block_of(result)
    assert result.told == (f'{block}: 4 experts of 16 hidden units',)  # nothing keeps it from that
    there, here = dense.params[f'{block}/in_bias'], result.params[f'{block}/experts/in_bias']
    np.testing.assert_array_equal(np.sort(here.ravel()), np.sort(there))  # each unit once
    assert (here.ravel() == there).all() == (by == 'order')
    added = dense.params[f'{block}/out_bias'] / 4
    np.testing.assert_allclose(result.params[f'{block}/experts/out_bias'], np.stack([added] * 4))


def test_a_token_takes_the_parts_of_one_copy(data_dir):
    """Dynamic-DINO: two copies of two halves, each copy with one router column for its halves."""
    args = {'gate': 'top_k_softmax', 'gate_scale': 2.0}
    changes = {'model.moe.k': 2, 'model.moe.hidden': HIDDEN // 2, 'model.moe.router_args': args}
    twin, config = dense_of(data_dir), config_of(data_dir, **changes)
    dense = weight_files.fresh(twin, IMAGE)
    result = cut(Split, dense, twin, config, copies=2)
    kernel = result.params[f'{block_of(result)}/router/kernel']
    np.testing.assert_array_equal(kernel[:, ::2], kernel[:, 1::2])
    assert np.abs(kernel[:, 0] - kernel[:, 2]).min() > 0
    assert same(config, result, twin, dense)
    in_kernel = result.params[f'{block_of(result)}/experts/in_kernel']
    np.testing.assert_array_equal(in_kernel[:2], in_kernel[2:])


def test_a_layer_with_a_number_of_its_own_gets_equal_columns_too(data_dir):
    args = {'gate': 'top_k_softmax', 'gate_scale': 2.0}
    every = {'model.moe.placement': 'every_1'}
    changes = {
        'model.moe.k': 2,
        'model.moe.hidden': HIDDEN // 2,
        'model.moe.router_args': args,
        'model.moe.layers': {'1': {'num_experts': 8, 'hidden': HIDDEN // 4}},
    }
    twin = config_of(data_dir, **every, **{'model.twin': 'same_width', 'model.moe.hidden': HIDDEN})
    config = config_of(data_dir, **every, **changes)
    result = cut(Split, weight_files.fresh(twin, IMAGE), twin, config, copies=2)
    for block, parts in (('block_0', 2), ('block_1', 4)):
        kernel = result.params[f'{block}/router/kernel']
        for copy in np.split(kernel, 2, 1):
            np.testing.assert_array_equal(copy, np.repeat(copy[:, :1], parts, 1))


def test_it_says_what_keeps_it_from_being_exact(data_dir):
    changes = {'model.moe.k': 2, 'model.moe.router_args': {}, 'model.moe.capacity_factor': 1.0}
    twin, config = dense_of(data_dir), config_of(data_dir, **changes)
    told = ' '.join(cut(Split, weight_files.fresh(twin, IMAGE), twin, config).told)
    for words in ('gate_scale=4', 'a block has 4 parts, of which a token takes 2', 'be dropped'):
        assert words in told
    exact = cut(Split, weight_files.fresh(twin, IMAGE), twin, config_of(data_dir))
    assert 'with --router_scale=0 they are equal' in ' '.join(exact.told)


@pytest.mark.parametrize(
    'changes, args, hint',
    [
        ({}, {'copies': 3}, '64 hidden units for 4 experts of 3 copies'),
        ({'model.twin': 'same_width'}, {}, 'split makes a routed network'),
        ({'model.moe.hidden': 8}, {}, '1 array does not fit'),
    ],
)
def test_what_cannot_be_split_is_one_line(changes, args, hint, data_dir):
    twin = dense_of(data_dir)
    with pytest.raises(UserError) as e:
        cut(Split, weight_files.fresh(twin, IMAGE), twin, config_of(data_dir, **changes), **args)
    text = '\n'.join(e.value.table) if isinstance(e.value, Misfit) else str(e.value)
    assert hint.replace('1 array does not fit', '(4, 16, 8) is due') in text


@pytest.mark.parametrize('kind', [Split, Merge])
def test_experts_with_a_norm_over_hidden_units_are_refused(kind, data_dir):
    changes = {
        'model.name': 'conv',
        'model.args': {'widths': (8, 16), 'depth': 1},
        'model.moe.expert_args': {'norm_groups': 4},
    }
    config = config_of(data_dir, **changes)
    with pytest.raises(UserError, match="'conv', which names no hidden_axes; allowed: mlp, ") as e:
        cut(kind, weight_files.fresh(config, IMAGE), config, config)
    assert '\n' not in str(e.value)


def test_clusters_are_of_equal_size_and_find_what_lies_together():
    rng = np.random.default_rng(0)
    centres = 10 * rng.normal(size=(3, 5))
    label = rng.permutation(np.repeat(np.arange(3), 6))
    points = centres[label] + 0.1 * rng.normal(size=(18, 5))
    found = hidden_units.clusters(points, 3, seed=1)
    assert {tuple(label[ids]) for ids in found} == {(n,) * 6 for n in range(3)}
    uneven = np.concatenate([np.zeros((9, 2)), np.ones((3, 2))])
    parts = hidden_units.clusters(uneven, 2, seed=0)
    assert parts.shape == (2, 6) and sorted(parts.ravel()) == list(range(12))


def test_centres_that_are_given_are_not_drawn(monkeypatch):
    monkeypatch.delattr(np.random, 'default_rng')
    parts = hidden_units.clusters(np.array([[0.0], [9], [1], [8]]), 2, 0, np.array([1, 0]))
    assert parts.tolist() == [[1, 3], [0, 2]]


def test_a_result_of_another_shape_is_a_misfit():
    """Whatever made it: no kind can write an array that its network does not take."""
    tree = {'a': {'b': np.zeros((2, 3), np.float32), 'c': np.zeros(2, np.float32)}}
    arrays = {'a/b': np.ones((2, 3)), 'a/c': np.ones(2)}
    assert replaced(tree, arrays)['a']['b'].dtype == np.float32
    with pytest.raises(Misfit, match='1 array does not fit') as e:
        replaced(tree, arrays | {'a/b': np.ones((2, 2))})
    assert 'a/b float32 (2, 3)' in e.value.table[1] and '(2, 2)' in e.value.table[1]


def test_moments_are_cut_into_the_same_parts_and_keep_the_scale_of_a_gradient(data_dir):
    """A part's bias gets the gradient of the whole output, a hidden unit's weights get theirs."""
    twin, config = dense_of(data_dir), config_of(data_dir)
    dense, fresh = weight_files.fresh(twin, IMAGE), weight_files.fresh(config, IMAGE, seed=9)
    kind = Split(surgery.SURGERY['split'].args())
    result = kind(dense, twin, fresh, config)
    twice = dataclasses.replace(dense, params={n: 2 * x for n, x in dense.params.items()})
    moments = kind.for_moments()(twice, twin, fresh, config).params
    for path, x in result.params.items():
        if '/router/' not in path:
            scale = 8 if path.endswith('experts/out_bias') else 2
            np.testing.assert_allclose(moments[path], scale * x, rtol=1e-6)


# Merge


def with_loads(state, *load):
    layers = {block_of(state): {'load': list(load)}}
    return dataclasses.replace(state, about={'validation': layers})


def shuffled(state, experts, seed=0):
    """The same network, with the hidden units of these experts in another order."""
    params, block, rng = dict(state.params), block_of(state), np.random.default_rng(seed)
    for e in experts:
        order = rng.permutation(HIDDEN // EXPERTS)
        for name, axis in (('in_kernel', -1), ('in_bias', -1), ('out_kernel', -2)):
            x = params[f'{block}/experts/{name}'] = params[f'{block}/experts/{name}'].copy()
            x[e] = np.take(x[e], order, axis)
    return dataclasses.replace(state, params=params)


def doubled(data_dir, **changes):
    """A network of 4 experts, one of 8 of which each is there twice, and their configs."""
    half = {'model.moe.k': 2, 'model.moe.router_args': {'renormalize': True}}
    config = config_of(data_dir, **half)
    more = config_of(data_dir, **half, **{'model.moe.num_experts': 8})
    state = weight_files.fresh(config, IMAGE)
    return config, state, more, cut(Expand, state, config, more)


@pytest.mark.parametrize('by', ['weights', 'router'])
def test_experts_that_are_equal_merge_to_themselves(by, data_dir):
    """Also where their hidden units stand in another order."""
    config, state, more, twice = doubled(data_dir)
    source = with_loads(shuffled(twice, (0, 5, 6)), *np.arange(1.0, 9.0))
    result = cut(Merge, source, more, config, by=by)
    assert result.told == (f'{block_of(state)}: 4 experts of 0+4, 1+5, 2+6, 3+7',)
    assert same(config, result, config, state)
    saved = sum(x.size for x in twice.params.values()) - sum(x.size for x in result.params.values())
    one = (2 * 16 + 1) * HIDDEN // EXPERTS + 16
    assert saved == 4 * (one + 16)  # experts, and router columns


def test_as_many_groups_as_experts_change_nothing_but_the_order_of_units(data_dir):
    config = config_of(data_dir)
    state = with_loads(weight_files.fresh(config, IMAGE), 0.1, 0.4, 0.3, 0.2)
    result = cut(Merge, state, config, config)
    assert same(config, result, config, state)


def test_a_group_is_the_mean_by_load_and_an_unused_expert_counts_nothing(data_dir):
    """Experts 1 and 3 stay; columns of the router say that 0 goes with 1, and 2 with 3."""
    config, fewer = config_of(data_dir), config_of(data_dir, **{'model.moe.k': 2} | FEWER)
    state = weight_files.fresh(config, IMAGE)
    block = block_of(state)
    kernel = np.zeros((16, 4), np.float32)
    kernel[0, :2], kernel[1, 2:] = 1.0, 1.0
    params = {**state.params, f'{block}/router/kernel': kernel}
    bank = f'{block}/experts/in_kernel'
    params[bank] = np.stack([params[bank][0] * (e + 1) for e in range(4)])  # alike: no reordering
    for name in ('in_bias', 'out_kernel'):
        x = params[f'{block}/experts/{name}']
        params[f'{block}/experts/{name}'] = np.stack([x[0]] * 4)
    state = dataclasses.replace(state, params=params)
    result = cut(Merge, with_loads(state, 0.1, 0.6, 0.0, 0.3), config, fewer, by='router')
    first = params[bank][0]
    expected = np.stack([first * (0.1 * 1 + 0.6 * 2) / 0.7, first * 4])
    np.testing.assert_allclose(result.params[bank], expected, rtol=1e-5)
    unused = cut(Merge, with_loads(state, 0.0, 0.0, 0.0, 0.0), config, fewer, by='router')
    joined = np.stack([first * (1 + 3 + 4) / 3, first * 2])  # 2 and 3 are like neither
    np.testing.assert_allclose(unused.params[bank], joined, rtol=1e-5)


FEWER = {'model.moe.num_experts': 2}


def test_more_experts_and_missing_loads_are_one_line(data_dir):
    config, state, more, twice = doubled(data_dir)
    for source, source_config, result, hint in (
        (state, config, more, 'merge makes fewer, expand more'),
        (twice, more, config, 'eval.split=validation'),
    ):
        with pytest.raises(UserError, match=hint) as e:
            cut(Merge, source, source_config, result)
        assert '\n' not in str(e.value)
