"""Kinds of surgery between runs: what is exact, what is new, what is refused."""

import dataclasses

import numpy as np
import pytest
import weight_files

from input_pipeline import DatasetInfo
from moe_vision.common.errors import UserError
from moe_vision.config import check as config_lib
from moe_vision.config import surgery
from moe_vision.config.schema import Model, Moe
from moe_vision.layers.moe import make_expert
from moe_vision.leverage import measure
from moe_vision.models.places import expert_params
from moe_vision.surgery.average import Average
from moe_vision.surgery.expand import Expand
from moe_vision.surgery.kind import computes_alike
from moe_vision.surgery.moments import carried
from moe_vision.surgery.prune import Prune
from moe_vision.surgery.state import Misfit, State
from moe_vision.surgery.upcycle import Upcycle

ARGS = {n: surgery.SURGERY[n].args for n in ('upcycle', 'expand', 'average', 'prune')}
IMAGE = (8, 8, 3)
X = np.random.default_rng(5).normal(size=(4, *IMAGE)).astype(np.float32)
NETWORKS = {
    'vit': {'width': 16, 'depth': 2, 'heads': 2, 'patch_size': 4},
    'convnext': {'widths': (8, 16), 'depths': (1, 1)},
    'conv': {'widths': (8, 16), 'depth': 1},
    'resnet': {'widths': (32,), 'depths': (3,)},
}
ROUTED = {
    'model.moe.placement': 'every_2',
    'model.moe.num_experts': 4,
    'model.moe.k': 2,
    'model.moe.group_size': 4,
    'model.moe.router_args': {'renormalize': True},
    'model.moe.losses': {},
    'model.moe.capacity_factor': float('inf'),
    'model.moe.eval_capacity_factor': float('inf'),
}


def config_of(data_dir, name='vit', **changes):
    start = {'model.name': name, 'model.args': NETWORKS[name], **ROUTED}
    if name in ('conv', 'resnet'):
        start['model.moe.expert_args'] = {'norm_groups': 4}
    return weight_files.config(data_dir, start | changes)


def params_of(state):
    return sum(x.size for x in state.params.values())


def cut(kind, source, source_config, config, seed=9, **args):
    made = kind(ARGS[kind.__name__.lower()](**args))
    config = made.configured(source, source_config, config)
    return made(source, source_config, weight_files.fresh(config, IMAGE, seed=seed), config)


# Upcycle


@pytest.mark.parametrize('name', NETWORKS)
def test_an_upcycled_network_begins_as_its_dense_twin(name, data_dir):
    """sum_k g_k f(x) = f(x), for MLP and convolutional experts; and it has E blocks for each."""
    config = config_of(data_dir, name)
    twin = config_of(data_dir, name, **{'model.twin': 'same_width'})
    dense = weight_files.fresh(twin, IMAGE)
    result = cut(Upcycle, dense, twin, config)
    before = weight_files.logits(twin, dense, X)
    after = weight_files.logits(config, result, X)
    assert np.abs(after - before).max() < 1e-5 * before.std()
    block = next(p.split('/')[0] for p in result.params if '/experts/' in p)
    (width, experts) = result.params[f'{block}/router/kernel'].shape
    hidden = config.model.args.block_shape(1)[1]
    moe = config.model.moe
    one = expert_params(make_expert(moe.expert, moe.expert_args, width, hidden))
    assert experts == 4 and params_of(result) == params_of(dense) + 3 * one + width * 4
    assert f'{block}: 4 experts, copies of the block' in result.told


def test_a_textbook_network_is_upcycled_at_the_places_that_are_routed(data_dir):
    """Nothing was replaced there, and it takes gelu by erf from there."""
    none = {k: getattr(Model().moe, k.split('.')[-1]) for k in ROUTED} | {
        'model.moe.router_args': {'noise': 'gaussian'},
        'model.moe.placement': 'none',
        'model.args': NETWORKS['vit'] | {'activation': 'gelu_erf'},
    }
    textbook, config = config_of(data_dir, **none), config_of(data_dir)
    dense = weight_files.fresh(textbook, IMAGE)
    made = Upcycle(ARGS['upcycle']()).configured(dense, textbook, config)
    assert made.model.args.activation == made.model.moe.expert_args.activation == 'gelu_erf'
    result = cut(Upcycle, dense, textbook, config)
    before = weight_files.logits(textbook, dense, X)
    assert np.abs(weight_files.logits(made, result, X) - before).max() < 1e-5 * before.std()


def test_copies_get_noise_and_routers_are_scaled(data_dir):
    twin, config = config_of(data_dir, **{'model.twin': 'same_width'}), config_of(data_dir)
    dense = weight_files.fresh(twin, IMAGE)
    plain = cut(Upcycle, dense, twin, config)
    noisy = cut(Upcycle, dense, twin, config, noise=0.25, router_scale=0.5)
    name = 'block_1/experts/in_kernel'
    there = dense.params['block_1/in_kernel']
    np.testing.assert_array_equal(plain.params[name], np.stack([there] * 4))
    difference = noisy.params[name] - there
    np.testing.assert_allclose(difference.std(), 0.25 * there.std(), rtol=0.1)
    assert np.abs(difference[0] - difference[1]).max() > 0.1 * there.std()
    router = 'block_1/router/kernel'
    np.testing.assert_allclose(noisy.params[router], plain.params[router] / 2)
    again = cut(Upcycle, dense, twin, config, noise=0.25, router_scale=0.5)
    np.testing.assert_array_equal(again.params[name], noisy.params[name])


def test_it_says_what_keeps_it_from_being_exact(data_dir):
    twin = config_of(data_dir, **{'model.twin': 'same_width'})
    bounded = {'model.moe.router_args': {}, 'model.moe.capacity_factor': 1.0}
    result = cut(Upcycle, weight_files.fresh(twin, IMAGE), twin, config_of(data_dir, **bounded))
    assert 'need not sum to 1 as it is set' in ' '.join(result.told)
    assert 'choices may be dropped, as model.moe.capacity_factor says' in ' '.join(result.told)


@pytest.mark.parametrize(
    'changes, told',
    [
        ({'model.moe.eval_capacity_factor': 0.5}, 'as model.moe.eval_capacity_factor says'),
        (
            {'model.moe.layers': {'-1': {'capacity_factor': 1.0}}},
            'as model.moe.layers.-1.capacity_factor says',
        ),
        ({'model.moe.router': 'soft', 'model.moe.router_args': {}, 'model.moe.losses': {}}, ''),
    ],
)
def test_it_reads_what_each_layer_has_and_only_what_a_router_reads(data_dir, changes, told):
    twin = config_of(data_dir, **{'model.twin': 'same_width'})
    room = {'model.moe.capacity_factor': 8.0, 'model.moe.eval_capacity_factor': 8.0}
    if not told:  # it is not read
        room = {key: getattr(Moe(), key.rpartition('.')[2]) for key in room}
    config = config_of(data_dir, **{**room, **changes})
    result = cut(Upcycle, weight_files.fresh(twin, IMAGE), twin, config)
    dropped = [line for line in result.told if 'dropped' in line]
    assert [line.partition(', ')[2] for line in dropped] == ([told] if told else [])
    if not told:
        assert 'sum to 1' not in ' '.join(result.told)


@pytest.mark.parametrize(
    'name, before, after, hint',
    [
        (
            'resnet',
            {'model.moe.placement': '0'},
            {'model.moe.placement': '1'},
            'that block has other norms than experts (batch norm, as a rule); train it with',
        ),
        ('vit', {}, {'model.moe.bank': '2', 'model.moe.placement': 'every_1'}, "bank='own'"),
        (
            'vit',
            {},
            {'model.moe.kinds': ({'count': 2}, {'count': 2, 'divide': 2})},
            'several kinds',
        ),
        ('vit', {}, {'model.moe.hidden': 8}, '(4, 16, 8) is due'),
        (
            'vit',
            {},
            {'model.args': NETWORKS['vit'] | {'depth': 1}, 'model.moe.placement': '0'},
            'block_1_norm/scale (16,)',
        ),
    ],
)
def test_what_cannot_be_upcycled_is_named(name, before, after, hint, data_dir):
    twin = config_of(data_dir, name, **{'model.twin': 'same_width', **before})
    with pytest.raises(Misfit) as e:
        cut(Upcycle, weight_files.fresh(twin, IMAGE), twin, config_of(data_dir, name, **after))
    assert hint in '\n'.join(e.value.table)


def test_the_result_has_the_norms_of_its_source(data_dir):
    """Both kinds have arrays of the same names and shapes."""
    source, other = (
        config_of(
            data_dir,
            'conv',
            **{
                'model.args': NETWORKS['conv'] | {'norm': norm},
                'model.moe.placement': '0',
                'model.twin': 'same_width',
            },
        )
        for norm in ('batch', 'group')
    )
    assert computes_alike(source, other).model.args.norm == 'batch'


def test_a_dense_config_cannot_be_upcycled(data_dir):
    twin = config_of(data_dir, **{'model.twin': 'same_width'})
    with pytest.raises(UserError, match='the config is of a dense one'):
        cut(Upcycle, weight_files.fresh(twin, IMAGE), twin, twin)


def test_classes_of_other_names_get_a_new_classifier(data_dir):
    twin, config = config_of(data_dir, **{'model.twin': 'same_width'}), config_of(data_dir)
    dense = weight_files.fresh(twin, IMAGE, names=tuple('abcde'))
    result = cut(Upcycle, dense, twin, config)
    assert 'the classifier is new' in result.told[0]
    own = weight_files.fresh(config, IMAGE, seed=9).params['classifier/kernel']
    np.testing.assert_array_equal(result.params['classifier/kernel'], own)


@pytest.mark.parametrize(
    'prefixes', [('', ''), ('', 'optimizer/'), ('optimizer/', ''), ('optimizer/',) * 2]
)
def test_moments_are_copied_like_weights(data_dir, prefixes):
    """With transforms and without them, there and here."""
    twin, config = config_of(data_dir, **{'model.twin': 'same_width'}), config_of(data_dir)
    dense, fresh = weight_files.fresh(twin, IMAGE), weight_files.fresh(config, IMAGE, seed=9)

    def moments(params, scale, prefix):
        made = {f'1/0/{m}/{n}': x * scale for m in ('mu', 'nu') for n, x in params.items()}
        counts = {'1/0/count': np.int32(scale * 7), '1/2/count': np.int32(scale * 5)}
        transforms = {'transforms/freeze_router/frozen': np.int32(scale)}
        return {prefix + path: x for path, x in (made | counts).items()} | (
            transforms if prefix else {}
        )

    kind = Upcycle(ARGS['upcycle'](noise=0.5))
    there, here = moments(dense.params, 2, *prefixes[:1]), moments(fresh.params, 0, *prefixes[1:])
    made = carried(kind, dense, there, twin, fresh, here, config)
    before, own = prefixes
    assert made.keys() == here.keys() and made[f'{own}1/0/count'] == 14
    # What says how far the run is begins anew, or it would never train.
    assert made[f'{own}1/2/count'] == 0
    assert made.get('transforms/freeze_router/frozen', 0) == 0
    for name in (f'1/0/{n}' for n in ('mu', 'nu')):
        copies = made[f'{own}{name}/block_1/experts/in_kernel']
        one = there[f'{before}{name}/block_1/in_kernel']
        np.testing.assert_array_equal(copies, np.stack([one] * 4))
        assert not made[f'{own}{name}/block_1/router/kernel'].any()


def test_the_counts_are_those_that_leverage_predicts(data_dir):
    """Parameters of all results, and FLOPs: k blocks instead of one, and the router."""
    info = DatasetInfo('digits', 5, IMAGE, {'train': 100}, tuple('01234'))
    twin, config = config_of(data_dir, **{'model.twin': 'same_width'}), config_of(data_dir)
    wide, narrow = (config_of(data_dir, **{'model.moe.num_experts': n}) for n in (6, 3))
    costs = [measure(c, info) for c in (twin, config, wide, narrow)]
    dense = weight_files.fresh(twin, IMAGE)
    routed = cut(Upcycle, dense, twin, config)
    loads = dataclasses.replace(routed, about=about(block_1=[0.1, 0.2, 0.3, 0.4]))
    states = dense, routed, cut(Expand, routed, config, wide), cut(Prune, loads, config, narrow)
    assert [c.params_total for c in costs] == [params_of(s) for s in states]
    block, patches = 2 * 2 * 16 * 64 * 4, 4  # of the 4 patches of an image
    assert costs[1].flops - costs[0].flops == (2 - 1) * block + 2 * 16 * 4 * patches
    assert costs[2].flops - costs[1].flops == 2 * 16 * (6 - 4) * patches
    assert costs[3].flops - costs[1].flops == 2 * 16 * (3 - 4) * patches


# Expand


@pytest.mark.parametrize('renormalize', [True, False])
@pytest.mark.parametrize('name', ['vit', 'conv'])
def test_twice_the_experts_and_twice_the_choices_compute_the_same(name, renormalize, data_dir):
    """The two copies of an expert share its probability."""
    gates = {'model.moe.router_args': {'renormalize': renormalize}}
    before = config_of(data_dir, name, **gates)
    more = {'model.moe.num_experts': 8, 'model.moe.k': 4, **gates}
    after = config_of(data_dir, name, **more)
    source = weight_files.fresh(before, IMAGE)
    result = cut(Expand, source, before, after)
    there = weight_files.logits(before, source, X)
    assert np.abs(weight_files.logits(after, result, X) - there).max() < 1e-5 * there.std()
    assert any('4 experts, 4 more' in line for line in result.told)


def test_new_experts_begin_anew_or_with_noise_and_old_ones_stay(data_dir):
    before, after = config_of(data_dir), config_of(data_dir, **{'model.moe.num_experts': 6})
    source, fresh = weight_files.fresh(before, IMAGE), weight_files.fresh(after, IMAGE, seed=9)
    new = cut(Expand, source, before, after, new='fresh')
    noisy = cut(Expand, source, before, after, noise=0.1)
    for name, axis in (('block_1/experts/in_kernel', 0), ('block_1/router/kernel', 1)):
        old = source.params[name]
        for result in (new, noisy):
            np.testing.assert_array_equal(np.take(result.params[name], range(4), axis), old)
        np.testing.assert_array_equal(
            np.take(new.params[name], [4, 5], axis), np.take(fresh.params[name], [4, 5], axis)
        )
    copies = noisy.params['block_1/experts/in_kernel'][4:]
    difference = copies - source.params['block_1/experts/in_kernel'][:2]
    assert 0.05 < difference.std() / source.params['block_1/experts/in_kernel'].std() < 0.15


def test_router_state_gets_entries_for_new_experts(data_dir):
    balanced = {'model.moe.router': 'bias_balanced', 'model.moe.router_args': {}}
    before = config_of(data_dir, **balanced)
    after = config_of(data_dir, **{'model.moe.num_experts': 6, **balanced})
    source = weight_files.fresh(before, IMAGE)
    bias = cut(Expand, source, before, after).router_state['block_1/router/bias']
    there = source.router_state['block_1/router/bias']
    np.testing.assert_array_equal(bias, [*there, *there[:2]])


def test_frozen_experts_are_set_in_the_config(data_dir):
    before, after = config_of(data_dir), config_of(data_dir, **{'model.moe.num_experts': 6})
    kind = Expand(ARGS['expand'](frozen=True))
    made = kind.configured(weight_files.fresh(before, IMAGE), before, after)
    assert made.train.transforms['freeze_experts'].experts == (0, 1, 2, 3)
    assert config_lib.from_dict(config_lib.to_dict(made)) == made
    with pytest.raises(UserError, match='has 4 experts there and fewer here'):
        fewer = config_of(data_dir, **{'model.moe.num_experts': 3})
        cut(Expand, weight_files.fresh(before, IMAGE), before, fewer)


# Prune


def never_chosen(source, expert):
    """The state with a router whose logits of an expert are the lowest for every token."""
    bias = np.array(source.router_state['block_1/router/bias'])
    bias[expert] = -1e4
    state = dict(source.router_state) | {'block_1/router/bias': bias}
    return dataclasses.replace(source, router_state=state)


def about(**layers):
    return {'validation': {n: {'load': x} for n, x in layers.items()}}


def test_without_experts_that_nobody_chose_it_computes_the_same(data_dir):
    balanced = {'model.moe.router': 'bias_balanced', 'model.moe.router_args': {}}
    before = config_of(data_dir, **balanced)
    after = config_of(data_dir, **{'model.moe.num_experts': 3, **balanced})
    source = never_chosen(weight_files.fresh(before, IMAGE), 1)
    source = dataclasses.replace(source, about=about(block_1=[0.2, 0.0, 0.5, 0.3]))
    result = cut(Prune, source, before, after)
    there = weight_files.logits(before, source, X)
    assert np.abs(weight_files.logits(after, result, X) - there).max() < 1e-5 * there.std()
    assert 'block_1: kept experts 0, 2, 3' in result.told
    assert params_of(result) < params_of(source)


def test_experts_stay_by_what_their_loss_costs(data_dir):
    before, after = config_of(data_dir), config_of(data_dir, **{'model.moe.num_experts': 2})
    lost = {'mechanism': {'ablation': {'block_1': [0.1, -0.2, 0.4, 0.0]}}}
    source = dataclasses.replace(weight_files.fresh(before, IMAGE), about=lost)
    result = cut(Prune, source, before, after, by='ablation')
    for name, axis in (('block_1/experts/out_bias', 0), ('block_1/router/kernel', 1)):
        kept = np.take(source.params[name], [0, 2], axis)
        np.testing.assert_array_equal(result.params[name], kept)
    assert 'experts were chosen by test images' in ' '.join(result.told)
    with pytest.raises(UserError, match='prune by load reads the load .* on validation images'):
        cut(Prune, source, before, after)


# Average


def test_the_mean_of_runs(data_dir):
    config = config_of(data_dir, 'conv', **{'model.moe.placement': '0'})
    one, two = (weight_files.fresh(config, IMAGE, seed=s) for s in (1, 2))
    result = cut(Average, (one, two), config, config)
    for collection in ('params', 'batch_stats'):
        ours = getattr(result, collection)
        for name, x in getattr(one, collection).items():
            mean = (x.astype(np.float64) + getattr(two, collection)[name]) / 2
            np.testing.assert_allclose(ours[name], mean, rtol=1e-6)
    assert result.batch_stats and 'the mean of 2 networks' in result.told
    same = cut(Average, (one, one, one), config, config)
    there = weight_files.logits(config, one, X)
    assert np.abs(weight_files.logits(config, same, X) - there).max() < 1e-6 * there.std()


def test_runs_of_other_networks_have_no_mean(data_dir):
    config, wide = config_of(data_dir), config_of(data_dir, **{'model.moe.num_experts': 6})
    states = weight_files.fresh(config, IMAGE), weight_files.fresh(wide, IMAGE)
    with pytest.raises(Misfit) as e:
        cut(Average, states, config, config)
    assert 'params/block_1/experts/in_kernel' in '\n'.join(e.value.table)
    with pytest.raises(UserError, match='--from=W1,W2, or several checkpoints of one, --last=2'):
        cut(Average, states[:1], config, config)
    other = dataclasses.replace(states[0], class_names=tuple('abcde'))
    with pytest.raises(UserError, match='other classes or another order'):
        cut(Average, (states[0], other), config, config)


@pytest.mark.parametrize('name', surgery.SURGERY)
def test_every_kind_stands_in_the_table_of_the_page(name):
    from pathlib import Path

    page = Path(__file__).resolve().parents[2] / 'docs' / 'surgery.md'
    assert f'| `{name}` |' in page.read_text()


def test_a_state_is_not_changed(data_dir):
    twin, config = config_of(data_dir, **{'model.twin': 'same_width'}), config_of(data_dir)
    dense = weight_files.fresh(twin, IMAGE)
    copy = State({n: x.copy() for n, x in dense.params.items()})
    cut(Upcycle, dense, twin, config, noise=0.5)
    for name, x in copy.params.items():
        np.testing.assert_array_equal(dense.params[name], x)
