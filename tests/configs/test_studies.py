"""The study files: complete for every data set, true to what they say, and every arm traces.

FLOPs by hand, 2 per multiply-accumulate, of a block of width w and hidden width h on s x s: s^2
times what stands in BLOCK; a head has 4 * d * h.
"""

import dataclasses
import functools
import re
from pathlib import Path

import config_cases
import jax
import jax.numpy as jnp
import pytest

import input_pipeline
from configs.studies import common, sets, top_k
from moe_vision import leverage, models
from moe_vision.common.errors import UserError
from moe_vision.config import check as config_lib
from moe_vision.config import schema, typed
from moe_vision.config.placement import routed_blocks
from moe_vision.layers import Step
from moe_vision.study import load

STUDIES = Path(__file__).parents[2] / 'configs/studies'
KINDS = ('width', 'placement', 'top_k', 'soft', 'temperature', 'wall_clock')
SETS = {d.name: d for d in sets.SETS}
TUNED = [name for name, d in SETS.items() if d.rates]
every_set = pytest.mark.parametrize('data', SETS.values(), ids=SETS)
every_study = pytest.mark.parametrize('kind, name', [(k, s) for s in SETS for k in KINDS])


@functools.cache
def loaded(kind, data_set):
    return load.load(f'{STUDIES}/{kind}.py:{data_set}')


@functools.cache
def info(dataset):
    return input_pipeline.info(dataset)


def leaves(config):
    """Every leaf by its dotted path."""
    found = {}
    for key in typed.flatten(schema.Config):
        found[key] = functools.reduce(getattr, key.split('.'), config)
    return found


def differing(ours, theirs):
    ours, theirs = leaves(ours), leaves(theirs)
    return {key for key in ours if ours[key] != theirs[key]}


def test_each_question_is_a_file_that_takes_the_data_sets():
    assert {'digits', 'cifar10', 'cifar100', 'tiny_imagenet', 'imagenet'} == set(SETS)
    files = {p.stem for p in STUDIES.glob('*.py') if 'def get_study(' in p.read_text()}
    others = {'gate', 'confirm', 'explore', 'routers'}  # test_campaign.py, test_routers_study.py
    assert files == {*KINDS, 'tuning', *others}


@pytest.mark.parametrize('kind, allowed', [*((k, SETS) for k in KINDS), ('tuning', TUNED)])
def test_a_data_set_that_is_missing_or_unknown_is_refused_in_a_line(kind, allowed):
    for argument, start in (
        ('', 'no data set is named'),
        (':digit', "unknown data set 'digit'."),
        (':cifar', "unknown data set 'cifar'."),
    ):
        with pytest.raises(UserError) as e:
            load.load(f'{STUDIES}/{kind}.py{argument}')
        assert str(e.value).startswith(start) and '\n' not in str(e.value)
        assert str(e.value).endswith(f'Allowed: {", ".join(sorted(allowed))}.')


@pytest.mark.parametrize('name', TUNED)
def test_tuning_gives_the_twin_and_k2_one_grid_and_touches_no_reported_seed(name):
    data, found = SETS[name], loaded('tuning', name)
    assert set(found.study.seeds) == {100, 101, 102} and not found.study.hypotheses
    assert not any(c.primary for c in found.study.comparisons.values())
    grid = {(rate, epochs) for rate in data.rates for epochs in data.lengths}
    assert (data.learning_rate, data.epochs) in grid
    arms = {
        kind: {
            (c.train.learning_rate, c.train.epochs): c
            for n, c in found.configs.items()
            if n.startswith(kind)
        }
        for kind in ('dense', 'k2')
    }
    for setting in grid:
        pair = arms['dense'][setting], arms['k2'][setting]
        assert differing(*pair) == {'model.twin'}
        reported = loaded('top_k', name).configs['k2']
        assert differing(pair[1], reported) <= {'train.learning_rate', 'train.epochs'}
    assert set(arms['dense']) == set(arms['k2']) == grid


@every_study
def test_a_study_says_what_it_asks_and_what_it_expects(kind, name):
    study, data = loaded(kind, name).study, SETS[name]
    doc = (STUDIES / f'{kind}.py').read_text()
    assert f'--study=configs/studies/{kind}.py:digits' in doc and '?' in doc.splitlines()[0]
    assert study.name == f'{name}_{kind}' and study.question.endswith('?')
    assert data.name in study.question
    assert study.seeds == data.seeds and study.margin == data.margin
    primary = {n: c for n, c in study.comparisons.items() if c.primary}
    assert 1 <= len(primary) <= 4
    assert all(c.expected in ('positive', 'negative') for c in primary.values())
    assert all(c.expected == 'none' for n, c in study.comparisons.items() if n not in primary)
    assert {m for p in study.patterns.values() for m in p} <= set(primary)
    assert study.figures
    tuned_on = set(range(100, 103))
    run = {loaded(kind, name).run_seed(a, s) for a in study.arms for s in study.seeds}
    assert '100 to 102' in study.tuning and not tuned_on & run


@every_study
def test_every_study_has_the_four_controls(kind, name):
    study, configs = loaded(kind, name).study, loaded(kind, name).configs
    twins = set()
    for control in ('random', 'frozen_random', 'shuffled'):
        compared = study.comparisons[f'{control}_minus_dense']
        assert compared.arm == control and not compared.primary
        assert configs[control].model.moe.router == control
        assert configs[control].model.twin == 'none'
        twins.add(compared.baseline)
    null = study.comparisons['dense_again_minus_dense']
    assert not null.primary and {null.baseline} == twins
    assert study.arms['dense_again'].seed_offset == common.DENSE_AGAIN
    assert configs['dense_again'] == configs[null.baseline]
    keys = {
        'random': {'model.moe.router', 'model.moe.router_args', 'model.moe.losses'},
        'frozen_random': {'model.moe.router'},
        'shuffled': {'model.moe.router'},
    }
    for control, different in keys.items():
        assert differing(configs[control], configs[null.baseline]) == {'model.twin'} | different


def quick(config):
    """The same network with its last two stages of one block, few experts and narrow ones: a trace
    takes long where many stand side by side, and the widths of a sweep trace alike."""
    model, args, moe = config.model, config.model.args, config.model.moe
    each = {'resnet': {'depths': (2, 2)}, 'convnext': {'depths': (1, 1)}}
    args = dataclasses.replace(args, widths=args.widths[-2:], **each.get(model.name, {'depth': 1}))
    placement = {'last': 'last_1', 'every': 'every_1'}.get(moe.placement.split('_')[0], 'head')
    few = min(moe.num_experts, max(moe.k, 2))
    moe = dataclasses.replace(moe, placement=placement, num_experts=few, hidden=min(moe.hidden, 48))
    return dataclasses.replace(config, model=dataclasses.replace(model, args=args, moe=moe))


@functools.cache
def traced():
    """Networks already traced, of any data set: (model, image shape) as text."""
    return set()


def trace(model, shape, images):
    """A training step's forward pass, as shapes, for 10 classes."""
    net = models.build(model, 10)

    def outputs(key, x):
        labels = jnp.zeros(images, jnp.int32)
        step = Step(train=True, key=key, fraction=0.5, labels=labels, num_classes=10)
        return net.init_with_output(key, x, step)

    (logits, infos), _ = jax.eval_shape(
        outputs, jax.random.key(0), jax.ShapeDtypeStruct((images, *shape), jnp.float32)
    )
    assert logits.shape == (images, 10)
    assert bool(infos) == (model.twin in ('none', 'same_drops'))


@pytest.mark.tables
@pytest.mark.parametrize('data', [SETS['digits'], SETS['imagenet']], ids=['digits', 'imagenet'])
def test_every_arm_traces(data):
    """Arms of the other sets are the same changes of networks between these two."""
    for kind in KINDS:
        for config in loaded(kind, data.name).configs.values():
            config, shape = quick(config), info(config.dataset).image_shape
            if repr((config.model, shape)) not in traced():
                trace(config.model, shape, config.model.moe.group_size)
                traced().add(repr((config.model, shape)))


BLOCK = {
    'conv': lambda w, h: 36 * w * h,
    'depthwise': lambda w, h: 18 * w + 4 * w * h,
    'resnet': lambda w, h: 4 * w * h + 18 * h * h,
    'convnext': lambda w, h: 98 * w + 4 * w * h,
}


def hand_flops(config):
    """(the replaced blocks, everything), in the same_width twin."""
    args, moe, name = config.model.args, config.model.moe, config.model.name
    side, _, channels = info(config.dataset).image_shape
    into, taps, stride = {
        'resnet': (args.widths[0] // 4, 49, 2),
        'convnext': (args.widths[0], 16, 4),
    }.get(name, (args.widths[0], 9, 1))
    side //= stride
    rest = 2 * taps * channels * into * side**2
    rest, blocks = rest + 2 * args.widths[-1] * info(config.dataset).num_classes, []
    side = side // 2 if name == 'resnet' else side  # max-pool
    replaced = routed_blocks(moe.placement, args.blocks)
    for stage, width in enumerate(args.widths):
        before, side = side, -(-side // 2) if stage else side
        if name == 'resnet':  # the block that projects
            h = args.hidden(width)
            rest += 2 * (before**2 * into * h + side**2 * (9 * h * h + h * width + into * width))
        elif stage:
            rest += 2 * (4 if name == 'convnext' else 9) * into * width * side**2
        into = width
        for _ in range(args.block_widths.count(width)):
            hidden = (moe.hidden if len(blocks) in replaced else 0) or args.hidden(width)
            blocks.append(side**2 * BLOCK[name](width, hidden))
    head = 4 * into * (moe.hidden or 4 * into) if moe.placement == 'head' else 0
    return head + sum(blocks[n] for n in replaced), rest + sum(blocks) + head


def hand_rho(config):
    routed, everything = hand_flops(config)
    return routed / everything


@every_set
def test_rho_is_what_the_file_says(data):
    width, place = (loaded(k, data.name).configs for k in ('width', 'placement'))
    names = {'imagenet': {'standard': 'resnet', 'depthwise': 'convnext'}}.get(
        data.name, {'standard': 'conv', 'depthwise': 'depthwise'}
    )
    said = {
        'backbone': (place['backbone'], data.backbone.rho),
        'head': (place['head'], data.head.rho),
        'throughout': (place['throughout'], data.every.rho),
    }
    for family, networks in data.sweep.items():
        rhos = [n.rho for n in networks]
        assert len(rhos) >= 5 and rhos == sorted(rhos) and rhos[0] < 0.01 and rhos[-1] > 0.5
        said |= {f'{family}_{n}': (width[f'{family}_{n}'], rho) for n, rho in enumerate(rhos, 1)}
        assert {width[f'{family}_{n}'].model.name for n in range(1, 6)} == {names[family]}
    for arm, (config, rho) in said.items():
        assert abs(hand_rho(config) - rho) <= 0.0006, (arm, hand_rho(config), rho)
    assert abs(data.backbone.rho - 0.38) <= 0.03 and data.head.rho < 0.01


@pytest.mark.parametrize('name', ['digits', 'imagenet'])
def test_the_leverage_tool_says_the_same_of_the_backbone(name):
    data = SETS[name]
    config = loaded('top_k', data.name).configs['k2']
    measured = leverage.measure(config, info(config.dataset)).rho_place
    assert abs(measured - data.backbone.rho) <= 0.0006
    assert measured == pytest.approx(hand_rho(config), rel=1e-9)


@pytest.mark.parametrize(
    'file', ['imagenet_k2', 'imagenet_convnext_k2', 'imagenet_vit_s16_k2', 'imagenet_ablation']
)
def test_a_config_states_its_rho(file):
    arm = ':head_k2' if file == 'imagenet_ablation' else ''
    checked = config_lib.check(config_cases.made(f'{file}.py{arm}'))
    doc = config_cases.module(f'{file}.py').__doc__
    stated = re.search(r'rho_place (?:of )?([0-9.]+[0-9])', doc).group(1)
    n, d = 197, 384  # of ViT-S/16: tokens and width; of twelve blocks six are routed
    mlp, attention = 8 * n * d * d, 4 * n * d * d + 2 * n * n * d
    vit = 6 * mlp / (12 * (mlp + attention) + 196 * 768 * d + d * 1000)
    rho = vit if 'vit' in file else hand_rho(checked)
    assert stated == f'{rho:.{len(stated) - 2}f}'


def test_the_imagenet_configs_are_the_arms_of_its_studies():
    arms = {
        **loaded('top_k', 'imagenet').configs,
        'head_k2': loaded('placement', 'imagenet').configs['head'],
    }
    for arm in set(arms) - {'dense_again'}:  # which differs by its seeds alone
        made = config_cases.made(f'imagenet_ablation.py:{arm}')
        assert config_lib.check(made) == arms[arm], arm


ROUTER_ARGS, LOSSES = 'model.moe.router_args', 'model.moe.losses'
CAPACITIES = {'model.moe.capacity_factor', 'model.moe.eval_capacity_factor'}
# arm of top_k: (its neighbour, the only keys in which they differ)
TOP_K = {
    'k1': ('k2', {'model.moe.k'}),
    'k4': ('k2', {'model.moe.k'}),
    'dense': ('k2', {'model.twin'}),
    'k1_unbounded': ('k1', CAPACITIES),
    'k2_unbounded': ('k2', CAPACITIES),
    'k1_same_c': ('k1', CAPACITIES),
    'k4_same_c': ('k4', CAPACITIES),
    'k1_top_k_softmax': ('k1', {ROUTER_ARGS}),
    'k2_top_k_softmax': ('k2', {ROUTER_ARGS}),
    'k1_scaled': ('k1', {ROUTER_ARGS}),
    'k2_scaled': ('k2', {ROUTER_ARGS}),
    'k2_half_width': ('k2', {'model.moe.hidden'}),
    'k1_plus_random': ('k2', {ROUTER_ARGS}),
    'k1_supervised': ('k1_unbounded', {'model.moe.router', ROUTER_ARGS, LOSSES}),
    'dense_active': ('dense', {'model.twin'}),
    'dense_drops_k2': ('dense', {'model.twin'}),
    'dense_drops_k1': ('dense', {'model.twin', 'model.moe.k'}),
    'dense_longer': ('dense', {'train.epochs'}),
    'dense_longest': ('dense', {'train.epochs'}),
}


@every_set
def test_arms_of_the_k_ablation_differ_in_what_their_names_say(data):
    configs = loaded('top_k', data.name).configs
    for arm, (neighbour, keys) in TOP_K.items():
        assert differing(configs[arm], configs[neighbour]) == keys, arm
    controls = {'random', 'frozen_random', 'shuffled', 'dense_again'}
    assert set(configs) == {*TOP_K, 'k2', *controls}
    assert [configs[f'k{k}'].model.moe.k for k in (1, 2, 4)] == [1, 2, 4]


@every_set
def test_the_controls_of_the_k_ablation_are_what_they_claim(data):
    configs = loaded('top_k', data.name).configs
    moe = {name: c.model.moe for name, c in configs.items()}
    slots = {
        n: (moe[n].capacity_factor * moe[n].k, moe[n].eval_capacity_factor * moe[n].k)
        for n in ('k1_same_c', 'k2', 'k4_same_c')
    }
    assert len(set(slots.values())) == 1
    assert moe['k2'].capacity_factor == top_k.CAPACITY
    assert {moe['k1_unbounded'].capacity_factor, moe['k2_unbounded'].eval_capacity_factor} == {
        float('inf')
    }
    twins = {n: c.model.twin for n, c in configs.items() if c.model.twin != 'same_width'}
    assert {n: t for n, t in twins.items() if t != 'none'} == {
        'dense_active': 'same_active_flops',
        'dense_drops_k1': 'same_drops',
        'dense_drops_k2': 'same_drops',
    }
    assert moe['k1_plus_random'].router_args.second_choice == 'random_expert'
    assert moe['k1_supervised'].router == 'supervised'
    for k in (1, 2):
        assert moe[f'k{k}_top_k_softmax'].router_args.gate == 'top_k_softmax'
        assert moe[f'k{k}_scaled'].router_args.gate_scale == moe['k2'].num_experts / k
    half, whole = (hand_flops(configs[n])[0] for n in ('k2_half_width', 'k2'))
    assert 2 * half == pytest.approx(whole, rel=0.02)


def test_longer_dense_training_spends_what_k2_spends():
    configs = loaded('top_k', 'digits').configs
    found = info(configs['k2'].dataset)
    k2, dense = (leverage.measure(configs[n], found) for n in ('k2', 'dense'))
    for arm, cost in (('dense_longer', k2.flops), ('dense_longest', k2.flops_executed)):
        spent = configs[arm].train.epochs * dense.flops
        assert spent == pytest.approx(configs['k2'].train.epochs * cost, rel=0.02)


@every_set
def test_soft_slots_lie_below_and_above_the_number_of_classes(data):
    configs = loaded('soft', data.name).configs
    classes = info(configs['dense'].dataset).num_classes
    assert classes == data.classes
    slots = [e * p for e, p in data.soft_batch]
    assert slots == sorted(slots) and slots[0] < classes < slots[-1]
    for (e, p), (arm, config) in zip(
        data.soft_batch, [i for i in configs.items() if i[0].startswith('batch')], strict=True
    ):
        moe = config.model.moe
        assert arm == f'batch_{e}x{p}' and moe.router_args.axis == 'batch'
        assert (moe.num_experts, moe.router_args.slots_per_expert) == (e, p)
        assert moe.group_size >= slots[-1]
    for e in data.soft_per_sample:
        moe = configs[f'per_sample_{e}'].model.moe
        assert (moe.num_experts, moe.router_args.axis) == (e, 'none')
    study = loaded('soft', data.name).study
    for name in ('axis', 'axis_with_many_slots'):
        ours, theirs = study.comparisons[name].arm, study.comparisons[name].baseline
        assert configs[ours].model.moe.num_experts == configs[theirs].model.moe.num_experts
    assert {8} <= set(data.soft_per_sample) and any(e == 8 for e, _ in data.soft_batch)


@every_set
def test_temperatures_and_batches(data):
    configs = loaded('temperature', data.name).configs
    args = {n: c.model.moe.router_args for n, c in configs.items()}
    for arm, (kind, end) in {
        'linear_01': ('linear', 0.1),
        'linear_03': ('linear', 0.3),
        'sigmoid_01': ('sigmoid', 0.1),
        'cosine_01': ('cosine', 0.1),
    }.items():
        assert (args[arm].temperature, args[arm].temperature_end) == (kind, end)
        assert differing(configs[arm], configs['constant']) == {ROUTER_ARGS}
        assert (
            dataclasses.replace(args[arm], temperature='constant', temperature_end=0.1)
            == args['constant']
        )
    study = loaded('wall_clock', data.name).study
    assert (min(study.latency_batches), max(study.latency_batches)) == (1, 512)
    assert {'dense', 'dense_active', 'k1', 'k2', 'k4', 'head'} <= set(study.latency_arms)
