"""Kinds of surgery that run the network on samples of its data: what they see, and what they make
of it."""

import dataclasses
import types

import jax.numpy as jnp
import numpy as np
import pytest
import weight_files

import input_pipeline
from moe_vision import models
from moe_vision.common.errors import UserError
from moe_vision.config import places, surgery
from moe_vision.config.schema import Model
from moe_vision.leverage import measure
from moe_vision.surgery import budget, coactivation, folders, init_from, runs, samples
from moe_vision.surgery.expand import Expand
from moe_vision.surgery.merge import Merge
from moe_vision.surgery.split import Split
from moe_vision.surgery.state import Misfit, State

IMAGE, CLASSES, EXPERTS, HIDDEN, TOKENS = (8, 8, 1), 10, 4, 64, 4
X = np.random.default_rng(5).normal(size=(4, *IMAGE)).astype(np.float32)
NETWORKS = {
    'vit': {'width': 16, 'depth': 2, 'heads': 2, 'patch_size': 4},
    'convnext': {'widths': (8, 16), 'depths': (1, 1)},
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
    return weight_files.config(data_dir, start | changes)


def dense_of(data_dir, name='vit'):
    return config_of(data_dir, name, **{'model.twin': 'same_width', 'model.moe.hidden': HIDDEN})


def fresh(config, seed=0):
    return weight_files.fresh(config, IMAGE, CLASSES, seed)


def cut(kind, source, source_config, config, **args):
    made = kind(surgery.SURGERY[kind.__name__.lower()].args(**args))
    return made(source, source_config, fresh(config, seed=9), config)


def block_of(state):
    return next(path.split('/')[0] for path in state.params if '/experts/' in path)


def same(config, state, other_config, other):
    ours, theirs = (
        weight_files.logits(c, s, X, CLASSES) for c, s in ((config, state), (other_config, other))
    )
    return np.abs(ours - theirs).max() < 1e-5 * theirs.std()


class Asked:
    """What a kind's arguments say of samples."""

    def __init__(self, count, of='train'):
        self.samples, self.samples_of = count, of


def test_a_block_is_shown_what_it_reads_of_the_images_asked_for(data_dir, monkeypatch):
    """Of 40 images, in whatever batches; those of test are never read."""
    twin = dense_of(data_dir)
    dense, read = fresh(twin), []
    batches = input_pipeline.evaluation_batches
    monkeypatch.setattr(
        input_pipeline,
        'evaluation_batches',
        lambda *args, split, **rest: read.append(split) or batches(*args, split=split, **rest),
    )

    def look(expert, params, x, counted):
        assert expert.width == 16 and params['in_kernel'].shape == (16, HIDDEN)
        return {'x': (x * counted[:, None]).sum(0), 'tokens': counted.sum()}

    found = {}
    for size in (32, 10):
        monkeypatch.setattr(samples, '_BATCH', size)
        sums = samples.of_blocks(dense, twin, Asked(40), ['block_1'], look)
        found[size] = sums['block_1']
        assert found[size]['tokens'] == 40 * TOKENS
    np.testing.assert_allclose(found[10]['x'], found[32]['x'], rtol=1e-4)
    other = samples.of_blocks(dense, twin, Asked(40, 'validation'), ['block_1'], look)['block_1']
    assert np.abs(other['x'] - found[10]['x']).max() > 0.01
    assert read == ['train', 'train', 'validation']
    with pytest.raises(UserError, match="no dense block 'block_7' to look into"):
        samples.of_blocks(dense, twin, Asked(8), ['block_7'], look)
    fewer = dataclasses.replace(dense, class_names=('a', 'b'))
    with pytest.raises(UserError, match='tells 2 classes, but .* has 10 by now'):
        samples.of_blocks(fewer, twin, Asked(8), ['block_1'], look)


def test_every_routed_layer_shows_its_routes(data_dir):
    whole = {'model.moe.placement': 'every_1', 'model.moe.k': 2, 'model.moe.group_size': 32}
    config = config_of(data_dir, **whole)
    found = samples.of_routes(
        fresh(config),
        config,
        Asked(5),
        lambda routing, context: {
            'tokens': context.valid.sum(),
            'choices': (routing.active & (routing.gate > 0)).sum(),
            'shape': jnp.asarray(routing.logits.shape),
        },
    )
    assert list(found) == ['block_0', 'block_1']
    for sums in found.values():
        assert (sums['tokens'], sums['choices']) == (5 * TOKENS, 5 * TOKENS * 2)
        assert tuple(sums['shape']) == (32, TOKENS, EXPERTS)  # a group for each image of the batch


def grouped(data_dir, seed=3):
    """A dense network whose 64 hidden units fire in four groups, each for one direction of the
    input, and which unit belongs to which."""
    twin, rng = dense_of(data_dir), np.random.default_rng(seed)
    dense = fresh(twin)
    group = rng.permutation(np.repeat(np.arange(EXPERTS), HIDDEN // EXPERTS))
    directions = np.linalg.qr(rng.normal(size=(16, 16)))[0][:, :EXPERTS]
    kernel = directions[:, group] * rng.uniform(0.5, 2.0, HIDDEN)
    params = {
        **dense.params,
        'block_1/in_kernel': kernel.astype(np.float32),
        'block_1/in_bias': np.zeros(HIDDEN, np.float32),
    }
    return twin, dataclasses.replace(dense, params=params), group, directions


def test_units_that_fire_together_go_to_one_expert(data_dir):
    """They have weights of other lengths, and other weights behind them, but fire at once."""
    twin, dense, group, _ = grouped(data_dir)
    config = config_of(data_dir)
    kind = Split(surgery.SURGERY['split'].args(by='coactivation', samples=40, router_scale=0.0))
    result = kind(dense, twin, fresh(config, seed=9), config)
    kernel = dense.params['block_1/in_kernel']
    members = [
        {int(np.flatnonzero((kernel.T == column).all(1))[0]) for column in expert.T}
        for expert in result.params['block_1/experts/in_kernel']
    ]
    assert sorted(map(sorted, members)) == [
        sorted(np.flatnonzero(group == g)) for g in sorted(range(4), key=list(group).index)
    ]
    assert same(config, result, twin, dense)
    assert result.told == ('block_1: 4 experts of 16 hidden units',)


def test_links_are_the_sums_of_products_of_what_fires():
    """Three units on two tokens, by hand; a unit that is 10 times as strong draws no more."""
    fired = np.array([[1.0, 2.0, 0.0], [0.0, 1.0, 3.0]])

    class One:
        def units(self, params, x):
            return x @ params['w']

    seen = {}

    def of_blocks(source, config, args, blocks, look):
        x, w = jnp.eye(2), jnp.asarray(fired - 0.5 * (fired == 0))  # below zero is not fired
        seen.update(look(One(), {'w': w}, x, jnp.asarray([True, True])))
        return {}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(samples, 'of_blocks', of_blocks)
        coactivation.seen(None, None, None, (), False)
    np.testing.assert_allclose(seen['together'], [[1, 2, 0], [2, 5, 3], [0, 3, 9]])
    np.testing.assert_allclose(seen['fired'], [1, 3, 3])
    np.testing.assert_allclose(seen['inputs'], fired)
    columns = coactivation.columns(
        {'fired': np.array([1.0, 3, 3, 1]), 'inputs': np.array([[1.0, 2, 0, 0], [0, 1, 3, 1]])},
        np.array([[0, 1], [2, 3]]),
    )
    np.testing.assert_allclose(columns, [[3 / 8, -3 / 8], [-3 / 8, 3 / 8]])
    # Two units that fire alike, one 10 times as strong as the other; two others at 45 degrees.
    units = np.array([[10.0, 0], [1, 0], [7, 7], [0.7, 0.7]])
    for seed in range(6):
        parts = coactivation.parts(units @ units.T, 2, seed)
        assert sorted(map(sorted, parts.tolist())) == [[0, 1], [2, 3]]


def test_a_router_begins_with_the_mean_input_of_each_part(data_dir):
    """A token goes to the part whose direction it has most of."""
    twin, dense, _, directions = grouped(data_dir)
    config = config_of(data_dir, **{'model.moe.k': 1})
    args = {'by': 'coactivation', 'samples': 40, 'router': 'inputs'}
    result = cut(Split, dense, twin, config, **args)
    kernel = result.params['block_1/router/kernel']
    own = fresh(config, seed=9).params['block_1/router/kernel']
    np.testing.assert_allclose(kernel.std(), own.std(), rtol=1e-5)
    np.testing.assert_allclose(kernel.sum(1), 0, atol=1e-6)
    first = result.params['block_1/experts/in_kernel'][:, :, 0]  # a unit of each part, [E, D]
    of_part = np.argmax(np.abs(first @ directions), 1)
    assert sorted(of_part) == [0, 1, 2, 3]
    answers = (kernel.T @ directions)[:, of_part]
    np.testing.assert_array_equal(np.argmax(answers, 0), np.arange(EXPERTS))
    moments = Split(surgery.SURGERY['split'].args(**args))
    moments(dense, twin, fresh(config, seed=9), config)
    zeros = {n: 0 * x for n, x in fresh(config).params.items()}
    cut_again = moments.for_moments()(
        dense, twin, dataclasses.replace(fresh(config), params=zeros), config
    )
    assert not cut_again.params['block_1/router/kernel'].any()


@pytest.mark.parametrize('name', NETWORKS)
def test_parts_by_coactivation_add_up_and_cost_what_is_predicted(name, data_dir):
    twin, config = dense_of(data_dir, name), config_of(data_dir, name)
    dense = fresh(twin)
    args = {'by': 'coactivation', 'samples': 8, 'samples_of': 'validation', 'router_scale': 0.0}
    result = cut(Split, dense, twin, config, **args)
    assert same(config, result, twin, dense)
    info = input_pipeline.info(config.dataset)
    before, after = (measure(c, info) for c in (twin, config))
    counts = [sum(x.size for x in s.params.values()) for s in (dense, result)]
    assert [before.params_total, after.params_total] == counts
    tokens = TOKENS if name == 'vit' else 1
    depthwise = 0 if name == 'vit' else 3 * 2 * 7 * 7 * 16  # a map of 1 x 1, in each part
    assert after.flops - before.flops == 2 * 16 * EXPERTS * tokens + depthwise


@pytest.mark.parametrize(
    'kind, args, hint',
    [
        ('merge', {'samples_of': 'validation'}, 'samples_of is set to validation but is not read'),
        ('merge', {'budget_of': 'parameters'}, 'budget_of is set to parameters but is not read'),
        ('merge', {'budget': -1}, 'budget is -1; it must not be negative'),
        ('split', {'samples': 8}, 'samples is set to 8 but is not read: by is not'),
        ('split', {'samples': 0, 'by': 'coactivation'}, 'samples is 0'),
        ('split', {'router': 'inputs', 'copies': 2}, "take router='drawn', or one copy"),
    ],
)
def test_arguments_that_do_not_fit_are_one_line(kind, args, hint):
    with pytest.raises(UserError, match=hint) as e:
        surgery.SURGERY[kind].args(**args)
    assert '\n' not in str(e.value)


def test_a_router_without_columns_cannot_begin_with_inputs(data_dir):
    changes = {'model.moe.router': 'cosine', 'model.moe.router_args': {}}
    with pytest.raises(UserError, match="'cosine' has no column for each expert that learns"):
        cut(Split, fresh(dense_of(data_dir)), dense_of(data_dir),
            config_of(data_dir, **changes), router='inputs')  # fmt: skip


NULL = {
    'model.moe.router': 'null_experts',
    'model.moe.router_args': {'null_experts': 2},
    'model.moe.k': 4,
}


def test_null_experts_keep_the_columns_that_were_drawn(data_dir):
    """Those of the parts are mean inputs, or the same for all parts of a copy."""
    twin, config = dense_of(data_dir), config_of(data_dir, **NULL)
    dense, own = fresh(twin), fresh(config, seed=9).params['block_1/router/kernel']
    assert own.shape == (16, EXPERTS + 2)
    mean = cut(Split, dense, twin, config, router='inputs', samples=8)
    kernel = mean.params['block_1/router/kernel']
    np.testing.assert_array_equal(kernel[:, EXPERTS:], own[:, EXPERTS:])
    np.testing.assert_allclose(kernel[:, :EXPERTS].sum(1), 0, atol=1e-6)
    np.testing.assert_allclose(kernel[:, :EXPERTS].std(), own[:, :EXPERTS].std(), rtol=1e-5)
    halves = config_of(data_dir, **NULL, **{'model.moe.hidden': HIDDEN // 2})
    copies = cut(Split, dense, twin, halves, copies=2).params['block_1/router/kernel']
    np.testing.assert_array_equal(copies[:, EXPERTS:], own[:, EXPERTS:])
    np.testing.assert_array_equal(copies[:, :EXPERTS:2], copies[:, 1:EXPERTS:2])


def test_without_a_block_to_split_there_is_the_table_and_no_sample_is_read(data_dir, monkeypatch):
    monkeypatch.delattr(samples, '_batches')
    none = {n: getattr(Model().moe, n.split('.')[-1]) for n in ROUTED} | {
        'model.moe.router_args': {'noise': 'gaussian'},
        'model.moe.placement': 'none',
    }
    textbook = config_of(data_dir, **none)
    head = config_of(data_dir, **{'model.moe.placement': 'head'})
    with pytest.raises(Misfit) as e:
        cut(Split, fresh(textbook), textbook, head, router='inputs')
    table = '\n'.join(e.value.table)
    assert 'head/experts/in_kernel' in table and 'no block there can be split' in table


def test_routers_that_compare_images_are_not_shown_samples(data_dir):
    choice = {'model.moe.router': 'expert_choice', 'model.moe.router_args': {}}
    keys = ('k', 'eval_capacity_factor')
    start = {n: v for n, v in ROUTED.items() if n.split('.')[-1] not in keys} | choice
    start |= {'model.moe.capacity_factor': 1.0}
    for name, refused in (('convnext', True), ('vit', False)):
        model = {'model.name': name, 'model.args': NETWORKS[name]}
        config = weight_files.config(data_dir, start | model)
        assert places.compares_images(config.model, 1 if refused else TOKENS) == refused
    config = config_of(data_dir, 'convnext')
    moe = dataclasses.replace(config.model.moe, router='expert_choice')
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, moe=moe))
    with pytest.raises(UserError, match='among the images of a group.* --by=weights') as e:
        samples.of_routes(State({}), config, Asked(8), None)
    assert '\n' not in str(e.value)


def test_no_routing_loss_is_traced(data_dir, monkeypatch):
    built, build = [], models.build
    monkeypatch.setattr(models, 'build', lambda m, n: built.append(m) or build(m, n))
    config = config_of(data_dir, **{'model.moe.losses': {'importance': 1.0}})
    network = samples._Network(fresh(config), config)
    assert built[-1].moe.losses == {} and built[-1].moe.k == EXPERTS
    assert network.variables['params']


def test_the_data_lie_where_the_result_says(data_dir):
    """If it names the same set and a place."""
    config = config_of(data_dir)
    for there, here, name, due in (
        ('', '/data', 'digits', '/data'),
        ('/elsewhere', '/data', 'digits', '/data'),
        ('/elsewhere', '', 'digits', '/elsewhere'),
        ('/elsewhere', '/data', 'cifar10', '/elsewhere'),
    ):
        source, result = (
            dataclasses.replace(
                config, dataset=dataclasses.replace(config.dataset, name=n, data_dir=d)
            )
            for n, d in (('digits', there), (name, here))
        )
        found = runs.with_data_of(source, result)
        assert found.dataset == dataclasses.replace(source.dataset, data_dir=due)


# Merge


HALF = {'model.moe.k': 1, 'model.moe.router_args': {'renormalize': True}}
LOGITS = {'by': 'router_logits', 'samples': 40}


def test_experts_with_equal_logits_merge_to_themselves(data_dir):
    """Two experts, each there twice: a token takes the first of equal ones, so the others count
    nothing."""
    config = config_of(data_dir, **HALF, **{'model.moe.num_experts': 2})
    more = config_of(data_dir, **HALF)
    state = fresh(config)
    twice = cut(Expand, state, config, more)
    result = cut(Merge, twice, more, config, **LOGITS)
    assert result.told == (f'{block_of(state)}: 2 experts of 0, 1',)
    assert same(config, result, config, state)


LENGTHS = np.array([-0.5, -0.5, 1.0, 4.0])  # of router columns


def test_experts_go_together_whose_logits_agree_on_samples(data_dir):
    """The most chosen stay, others join that with the nearest logits, and choices are weights."""
    three = {'model.moe.k': 3, 'model.moe.router_args': {'renormalize': True}}
    config = config_of(data_dir, **three)
    fewer = config_of(data_dir, **HALF, **{'model.moe.num_experts': 2})
    state = fresh(config)
    block = block_of(state)
    bank = {n: state.params[f'{block}/experts/{n}'] for n in ('in_kernel', 'in_bias', 'out_kernel')}
    alike = {f'{block}/experts/{n}': np.stack([x[0]] * EXPERTS) for n, x in bank.items()}
    scaled = np.stack([bank['in_kernel'][0] * (e + 1) for e in range(EXPERTS)])
    alike[f'{block}/experts/in_kernel'] = scaled  # so hidden units keep their order
    kernel = state.params[f'{block}/router/kernel'] * LENGTHS
    alike[f'{block}/router/kernel'] = kernel.astype(np.float32)
    state = dataclasses.replace(state, params={**state.params, **alike})

    def look(routing, context):
        valid = context.valid[..., None]
        ids = jnp.where(valid, routing.expert_of_choice, EXPERTS)
        return {'logits': jnp.where(valid, routing.logits, 0.0), 'ids': ids}

    shown = samples.of_routes(state, config, Asked(20), look)[block]  # in one batch of 32
    logits = shown['logits'].reshape(-1, EXPERTS)
    counts = np.bincount(shown['ids'].astype(int).ravel(), minlength=EXPERTS)[:EXPERTS]
    assert counts.sum() == 20 * TOKENS * 3 and (counts > 0).sum() >= 3
    unit = logits / np.linalg.norm(logits, axis=0)
    stay = np.sort(np.argsort(-counts, kind='stable')[:2])
    joins, longest = (stay[np.argmax((x.T @ x)[:, stay], 1)] for x in (unit, logits))
    joins[stay] = longest[stay] = stay
    assert (joins != longest).any()  # the length of logits does not count
    result = cut(Merge, state, config, fewer, by='router_logits', samples=20)
    for n, leader in enumerate(stay):
        weight = counts * (joins == leader)
        mean = (weight * np.arange(1, 5)).sum() / weight.sum()
        np.testing.assert_allclose(
            result.params[f'{block}/experts/in_kernel'][n], bank['in_kernel'][0] * mean, rtol=1e-5
        )


def test_a_budget_goes_to_the_experts_that_are_used_most():
    usage = {'a': np.array([0.0, 0.7, 0.1, 0.2]), 'b': np.array([0.4, 0.3, 0.2, 0.1])}
    one, cost = dict.fromkeys(usage, 1), {'a': 10, 'b': 30}
    for total, kept in ((2, (1, 1)), (3, (1, 2)), (5, (2, 3)), (8, (4, 4)), (99, (4, 4))):
        assert tuple(budget.shared(total, 'experts', usage, one, one).values()) == kept
    two = budget.shared(5, 'experts', usage, dict.fromkeys(usage, 2), one)
    assert two == {'a': 2, 'b': 3}
    # 100 besides experts, 40 for the first ones; b's second for 30, a's for 10, b's third never
    assert budget.shared(200, 'parameters', usage, one, cost, 100) == {'a': 2, 'b': 2}
    with pytest.raises(UserError, match='budget is 139 parameters, but the fewest are 140'):
        budget.shared(139, 'parameters', usage, one, cost, 100)


@pytest.mark.parametrize('of', ['experts', 'parameters'])
def test_all_layers_share_a_budget_and_cost_what_is_predicted(of, data_dir):
    both = {'model.moe.placement': 'every_1', 'model.moe.k': 1}
    config = config_of(data_dir, **both)
    loads = {'block_0': [0.1, 0.2, 0.3, 0.4], 'block_1': [0.0, 0.9, 0.1, 0.0]}
    layers = {n: {'load': x} for n, x in loads.items()}
    state = dataclasses.replace(fresh(config), about={'validation': layers})
    info = input_pipeline.info(config.dataset)
    before = measure(config, info)
    one = (2 * 16 + 1) * HIDDEN // EXPERTS + 16 + 16  # an expert, and its column
    total = 4 if of == 'experts' else before.params_total - 4 * one
    kind = Merge(surgery.SURGERY['merge'].args(budget=total, budget_of=of))
    smaller = kind.configured(state, config, config)
    assert {n: at.num_experts for n, at in smaller.model.moe.layers.items()} == {'0': 3, '1': 1}
    result = kind(state, config, fresh(smaller, seed=9), smaller)
    assert len(result.told) == 2 and 'block_1: 1 experts of 1+2' in result.told
    after = measure(smaller, info)
    count = sum(x.size for x in result.params.values())
    assert after.params_total == count == before.params_total - 4 * one
    assert before.flops - after.flops == 2 * 16 * 4 * TOKENS  # columns of routers
    with pytest.raises(UserError, match=f'budget is 1 {of}, but the fewest are'):
        Merge(surgery.SURGERY['merge'].args(budget=1, budget_of=of)).configured(
            state, config, config
        )
    with pytest.raises(UserError, match='there are 2 such there, and 1 here'):
        kind.configured(state, config, config_of(data_dir))


@pytest.mark.parametrize(
    'changes, hint',
    [
        ({'mesh.expert': 2}, 'num_experts 3 at routed layer 0 is not divisible by mesh.expert 2'),
        (
            {'model.moe.router': 'dselect_k', 'model.moe.router_args': {}},
            'power of 2',
        ),
        ({'model.moe.num_experts': 8, 'model.moe.k': 8}, 'model.moe.k is 8 but .* is 4'),
    ],
)
def test_a_config_that_a_budget_makes_is_checked(changes, hint, data_dir, monkeypatch):
    """Before a network is built or anything is written."""
    both = {'model.moe.placement': 'every_1', 'model.moe.k': 1}
    config = config_of(data_dir, **both)
    loads = {'block_0': [0.1, 0.2, 0.3, 0.4], 'block_1': [0.0, 0.9, 0.1, 0.0]}
    about = {'validation': {n: {'load': x} for n, x in loads.items()}}
    state = dataclasses.replace(fresh(config), about=about)
    there = folders._Source(state, state, config)
    monkeypatch.setattr(folders, '_source', lambda *_: there)
    monkeypatch.delattr(folders, '_write')
    result = config_of(data_dir, **both | changes)
    budget = 8 if 'model.moe.k' in changes else 4
    args = surgery.SURGERY['merge'].args(budget=budget)
    asked = types.SimpleNamespace(kind='merge', args=args, config=result, sources='')
    with pytest.raises(
        UserError, match=f'the config that merge makes breaks a rule: .*{hint}'
    ) as e:
        folders.make(asked)
    assert '\n' not in str(e.value)


def test_a_kind_gets_the_place_of_the_data_that_the_result_names(data_dir, monkeypatch):
    """From the command, and where the config of a run names the kind."""
    config = config_of(data_dir)
    elsewhere = dataclasses.replace(config.dataset, data_dir='/elsewhere')
    there = dataclasses.replace(config, dataset=elsewhere)
    monkeypatch.setattr(folders, '_source', lambda *_: folders._Source(None, None, there))

    def configured(self, source, source_config, config):
        raise UserError(source_config.dataset.data_dir)

    monkeypatch.setattr(Split, 'configured', configured)
    args = surgery.SURGERY['split'].args()
    arm = dataclasses.replace(config, init_from='W', init_kind='split', init_args=args)
    monkeypatch.setattr(runs, 'read', lambda _: runs.Run('W', there, 0, None, None, {}))
    with pytest.raises(UserError) as e:
        init_from.init_from(None, 'W', (), None, arm)
    assert str(e.value) == data_dir
    asked = types.SimpleNamespace(kind='split', args=args, config=config, sources='')
    with pytest.raises(UserError) as e:
        folders.make(asked)
    assert str(e.value) == data_dir


def test_soft_routes_cannot_be_compared(data_dir):
    soft = {'model.moe.router': 'soft', 'model.moe.router_args': {'axis': 'none'}}
    keys = ('k', 'capacity_factor', 'eval_capacity_factor')
    start = {n: v for n, v in ROUTED.items() if n.split('.')[-1] not in keys} | soft
    start |= {'model.name': 'vit', 'model.args': NETWORKS['vit']}
    config = weight_files.config(data_dir, start)
    fewer = weight_files.config(data_dir, start | {'model.moe.num_experts': 2})
    with pytest.raises(UserError, match='soft routing makes no choices to compare'):
        cut(Merge, fresh(config), config, fewer, **LOGITS)
