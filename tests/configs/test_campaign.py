"""The studies of the Fashion-MNIST campaign: complete, true to what they say, and every arm traces.

Each file of the campaign takes the name of a part. What is run twice is a mistake here, so cells
that one study lends another are compared to the last key.
"""

import dataclasses
import functools
import itertools
import json
import math
import operator
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import input_pipeline
from configs.studies import beside_confirm, campaign, confirm
from moe_vision import models
from moe_vision.common.errors import UserError
from moe_vision.config import schema, typed
from moe_vision.config.places import place_at
from moe_vision.layers import Step
from moe_vision.models.places import twin_expert
from moe_vision.study import load, registration, tuning

STUDIES = Path(__file__).parents[2] / 'configs/studies'
GATE = ('gate.py:control', 'gate.py:underfit', 'gate.py:length')
PARTS = (
    'length',
    'wider',
    'vit',
    'controls',
    'data',
    'groups',
    'trunk',
    'soft',
    'family',
    'places',
    'experts',
    'widest',
)
ALL = (*GATE, 'confirm.py', *(f'explore.py:{part}' for part in PARTS))
IMAGES, SECONDS = 57_000, 330  # to train on, and of a cell: what the table of the campaign says
every_study = pytest.mark.parametrize('name', ALL)


@functools.cache
def loaded(name):
    return load.load(f'{STUDIES}/{name}')


@functools.cache
def record(name):
    """What is registered, with the rates that `confirm` chose; 'confirm.py tuning' is its stage."""
    study, _, stage = name.partition(' ')
    if stage:
        return registration.record(tuning.stage(loaded(study)))
    if study == 'confirm.py':
        return registration.record(tuned_confirm())
    return registration.record(loaded(study))


@functools.cache
def tuned_confirm():
    """`confirm` with the rates that it chose."""
    plain = loaded('confirm.py').study
    return load.of_study(dataclasses.replace(plain, arms=beside_confirm.lent(*plain.arms)), ())


def arms(name):
    return record(name)['arms']


def differing(ours, theirs):
    return {
        key
        for key in typed.flatten(schema.Config)
        if operator.attrgetter(key)(ours) != operator.attrgetter(key)(theirs)
    }


@every_study
def test_a_study_says_what_it_asks_and_keeps_to_its_seeds(name):
    study, (file, _, part) = loaded(name).study, name.partition(':')
    doc = (STUDIES / file).read_text().split('"""')[1]
    assert doc.splitlines()[0].endswith('?') and study.question.endswith('?')
    assert f'--study=configs/studies/{file}' in doc and (not part or f'\n  {part}: ' in doc)
    assert study.name.endswith(part) and study.name.startswith(file.removesuffix('.py'))
    if name in GATE or name == 'explore.py:length':  # which reads what the gate has trained
        assert study.seeds == campaign.GATE_SEEDS
    else:
        assert set(study.seeds) <= set(campaign.SEEDS) and min(study.seeds) >= 1000
    assert study.metric == ('validation_accuracy' if name in GATE else 'test_accuracy')
    if file == 'explore.py':
        assert not study.hypotheses and not any(c.primary for c in study.comparisons.values())


@pytest.mark.parametrize('file', ['gate', 'explore'])
def test_a_part_that_is_missing_or_unknown_is_refused_in_a_line(file):
    for argument in ('', ':contrl'):
        with pytest.raises(UserError, match='Allowed: ') as e:
            load.load(f'{STUDIES}/{file}.py{argument}')
        assert '\n' not in str(e.value)


@every_study
def test_no_arm_is_another_one_of_the_same_study(name):
    for (a, ours), (b, theirs) in itertools.combinations(arms(name).items(), 2):
        assert not registration.same_arm(ours, theirs), (a, b)


def stages():
    """Every study of the campaign, and before it the one that tunes it."""
    for name in ALL:
        yield from [f'{name} tuning'] * (loaded(name).study.tune is not None)
        yield name


def cells_of(name):
    """The cells that a study trains itself, (arm as text, seed) -> its hours."""
    near = {
        'underfit': 'gate.py:underfit',
        'length': 'gate.py:length',
        'confirm': 'confirm.py',
        'controls': 'explore.py:controls',
    }
    # the first part of the tuning counts with the tuning
    reads = [path for path in record(name)['reads'] if not path.endswith('rates/tuning')]
    lenders = [record(near[path.rsplit('/')[-1]]) for path in reads]
    lent = {(repr(arm), s) for r in lenders for arm in r['arms'].values() for s in r['seeds']}
    found = {}
    for arm in arms(name).values():
        config = arm['config']
        share = config['dataset']['train_images'] / IMAGES or 1.0
        lengths = config['train']['epochs'] / campaign.EPOCHS * share
        for seed in record(name)['seeds']:
            if (repr(arm), seed) not in lent:
                found[repr(arm), seed] = lengths * SECONDS / 3600
    return found


def test_no_cell_is_run_twice_and_the_budget_is_what_the_campaign_says():
    rows = re.findall(r'^\| (\w[^|]*) \| (\d+) \| ([\d.]+) \|$', campaign.__doc__, re.MULTILINE)
    table = {name: (int(cells), float(hours)) for name, cells, hours in rows}
    seen, found = {}, {}
    for name in stages():
        cells = cells_of(name)
        assert not seen.keys() & cells.keys(), name
        seen |= cells
        label = name.replace('.py:', ' ').replace('.py', '')
        found[label] = (len(cells), pytest.approx(math.fsum(cells.values()), abs=0.006))
    assert list(found) == list(table) and found == table


@functools.cache
def traced():
    """Networks already traced, of any study: (model, size of a group) as text."""
    return set()


@pytest.mark.tables
@every_study
def test_every_arm_traces(name):
    for arm, config in loaded(name).configs.items():
        if repr(config.model) in traced():
            continue
        traced().add(repr(config.model))
        shape = input_pipeline.info(config.dataset).image_shape
        net, images = models.build(config.model, 10), config.train.batch_size

        def outputs(key, x, net=net, images=images):
            labels = jnp.zeros(images, jnp.int32)
            step = Step.example(images, train=True, key=key, labels=labels, num_classes=10)
            return net.init_with_output(key, x, step)

        x = jax.ShapeDtypeStruct((images, *shape), jnp.float32)
        (logits, _), _ = jax.eval_shape(outputs, jax.random.key(0), x)
        assert logits.shape == (images, 10), arm


def test_the_cells_of_24_epochs_are_those_that_underfit_lends():
    lent = arms('gate.py:underfit')
    for name, ours in arms('gate.py:length').items():
        network, _, epochs = name.rpartition('_')
        assert ours['config']['train']['epochs'] == float(epochs)
        assert registration.same_arm(ours, lent[network]) == (epochs == '24')
    assert loaded('gate.py:length').study.reads == ('underfit',)


def test_what_the_gate_asks_stands_in_the_rows_of_underfit():
    study, configs = loaded('gate.py:underfit').study, loaded('gate.py:underfit').configs
    assert {c.eval.train_images for c in configs.values()} == {10_000}
    assert study.margin == 1.0 and configs['same_params'].model.twin == 'same_params'
    primary = [(c.arm, c.baseline) for c in study.comparisons.values() if c.primary]
    assert primary == [('same_params', 'dense')]
    swept = {a for a, c in configs.items() if c.eval.capacity_factors == (1.0, 1.25)}
    assert swept == {'k1', 'k2'}


def test_a_dense_arm_of_confirm_is_the_twin_that_each_comparison_needs():
    """A block of hidden width h has the FLOPs of two experts of h / 2, and of four of h / 4."""
    configs = loaded('confirm.py').configs

    def block(arm, twin):
        width, side = 8, 7
        model = configs[arm].model
        payload = (side, side, width)
        return twin_expert(model.moe, twin, place_at(model, 0), width, 8, payload).hidden

    widths = {arm: block(arm, configs[arm].model.twin) for arm in confirm.BLOCK.values()}
    assert widths == {arm: h for h, arm in confirm.BLOCK.items()}
    for hidden, arm in confirm.ROUTED.items():
        assert block(arm, 'same_width') == hidden
        assert block(arm, 'same_active_flops') == 2 * hidden
    assert block('per_sample_4', 'same_executed_flops') == widths['dense_h32'] == 32


def test_the_six_primary_comparisons_of_confirm():
    study, configs = loaded('confirm.py').study, loaded('confirm.py').configs
    primary = {(c.arm, c.baseline) for c in study.comparisons.values() if c.primary}
    assert primary == {
        ('k2', 'dense'),
        ('k2', 'dense_active'),
        ('k1', 'dense'),
        ('k2_h4', 'k1_same_c'),
        ('per_sample_4', 'dense_h32'),
    }
    assert [n for n, t in study.trends.items() if t.primary] == ['at_equal_flops']
    for trend, factor in (('at_equal_flops', 2), ('at_same_width', 1)):
        members = [study.comparisons[n] for n in study.trends[trend].comparisons]
        pairs = [(arm, confirm.BLOCK[factor * h]) for h, arm in confirm.ROUTED.items()]
        assert [(c.arm, c.baseline) for c in members] == pairs
    one, two = configs['k1_same_c'].model.moe, configs['k2_h4'].model.moe
    assert one.k * one.capacity_factor == two.k * two.capacity_factor == 2.5
    assert one.k * one.eval_capacity_factor == two.k * two.eval_capacity_factor
    assert one.k * 8 == two.k * two.hidden  # the experts of k1 are as wide as their block


def test_every_arm_of_confirm_is_tuned_and_takes_the_cells_that_are_there():
    study = loaded('confirm.py').study
    named = [*study.tune.arms, *itertools.chain(*study.tune.arms.values())]
    assert sorted(named) == sorted(study.arms)
    assert set(study.tune.seeds) <= set(campaign.GATE_SEEDS)
    stage = record('confirm.py tuning')
    lent = {
        ours
        for ours, arm in stage['arms'].items()
        for theirs in arms('gate.py:underfit').values()
        if registration.same_arm(arm, theirs)
    }
    assert lent == {f'{arm}_learning_rate_0_01' for arm in ('dense', 'dense_active', 'k1', 'k2')}
    assert stage['reads'] == ['../../gate/underfit', '../rates/tuning']


def test_rates_are_those_that_confirm_chose():
    assert set(campaign.CHOSEN) == set(confirm.TUNED)
    for path in (STUDIES.parents[1] / 'results').glob('*/confirm/preregistration.json'):
        tuned = json.loads(path.read_text())['record']['tuned']['arms']
        chosen = {arm: t['chosen']['train.learning_rate'] for arm, t in tuned.items()}
        assert chosen == campaign.CHOSEN, path


@pytest.mark.parametrize('part', ['trunk', 'family'])
def test_networks_of_one_routed_share(part):
    """By hand, 2 FLOPs per multiply-accumulate, per pixel of 14x14: stem, block, stride, block."""
    study, configs = loaded(f'explore.py:{part}').study, loaded(f'explore.py:{part}').configs

    def rho(arm):
        model = configs[arm].model
        first, last = model.args.widths
        depthwise = model.name == 'depthwise'
        h = model.moe.hidden or last

        def block(w, h):
            return 18 * w + 4 * w * h if depthwise else 36 * w * h

        before = block(first, 4 * first if depthwise else first)
        routed = block(last, h) / 4  # a quarter of the pixels
        rest = 18 * first + before + 18 * first * last / 4 + 2 * last * 10 / 196
        return routed / (rest + routed)

    for (pair,) in (d.pairs for d in study.family_differences.values()):
        ours, theirs = (rho(study.comparisons[name].arm) for name in pair)
        assert ours == pytest.approx(theirs, rel=0.07), pair
        assert configs[study.comparisons[pair[0]].baseline].model.twin == 'same_active_flops'


def test_controls_differ_from_their_network_in_what_their_names_say():
    controls = loaded('explore.py:controls').configs
    configs = {**tuned_confirm().configs, **controls}
    base = {arm: 'k1' if arm.startswith('k1_') else 'k2' for arm in controls}
    base |= {'k1_plus_random': 'k2', 'dense_again': 'dense'}
    base |= {'k2_h4_scaled': 'k2_h4', 'k1_same_c_scaled': 'k1_same_c'}
    capacities = {'model.moe.capacity_factor', 'model.moe.eval_capacity_factor'}
    args = {'model.moe.router_args'}
    assert {
        arm: differing(configs[arm], configs[base[arm]])
        for arm in controls
        if arm not in ('k1', 'k2', 'dense', 'dense_active')
    } == {
        'random': {'model.moe.router', 'model.moe.losses', *args},
        'frozen_random': {'model.moe.router'},
        'shuffled': {'model.moe.router'},
        'k1_unbounded': capacities,
        'k2_unbounded': capacities,
        'k1_scaled': args,
        'k2_scaled': args,
        'k2_h4_scaled': args,
        'k1_same_c_scaled': args,
        'k1_plus_random': args,
        'dense_again': set(),
    }
    for k, arms_of_k in {
        1: ('k1_scaled', 'k1_same_c_scaled'),
        2: ('k2_scaled', 'k2_h4_scaled'),
    }.items():
        for arm in arms_of_k:
            moe = configs[arm].model.moe
            assert moe.k == k and moe.router_args.gate_scale == moe.num_experts / k
    for n, config in loaded('explore.py:experts').configs.items():
        if n != 'dense_active':
            assert config.model.moe.router_args.gate_scale == config.model.moe.num_experts / 2
