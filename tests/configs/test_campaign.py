"""The studies of the Fashion-MNIST campaign: complete, true to what they say, and every arm traces.

Each file of the campaign takes the name of a part. What is run twice is a mistake here, so cells
that one study lends another are compared to the last key.
"""

import functools
import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import input_pipeline
from configs.studies import campaign, confirm
from moe_vision import models
from moe_vision.common.errors import UserError
from moe_vision.layers import Step
from moe_vision.models.places import twin_expert
from moe_vision.study import load, registration, tuning

STUDIES = Path(__file__).parents[2] / 'configs/studies'
GATE = ('gate.py:control', 'gate.py:underfit', 'gate.py:length')
ALL = (*GATE, 'confirm.py')
every_study = pytest.mark.parametrize('name', ALL)


@functools.cache
def loaded(name):
    return load.load(f'{STUDIES}/{name}')


@functools.cache
def arms(name):
    """The arms as a registration holds them."""
    return registration.record(loaded(name))['arms']


@every_study
def test_a_study_says_what_it_asks_and_keeps_to_its_seeds(name):
    study, (file, _, part) = loaded(name).study, name.partition(':')
    doc = (STUDIES / file).read_text().split('"""')[1]
    assert doc.splitlines()[0].endswith('?') and study.question.endswith('?')
    assert f'--study=configs/studies/{file}' in doc and (not part or f'\n  {part}: ' in doc)
    assert study.name.endswith(part) and study.name.startswith(file.removesuffix('.py'))
    if name in GATE:
        assert study.seeds == campaign.GATE_SEEDS and study.metric == 'validation_accuracy'
    else:
        assert min(study.seeds) >= 1000 and study.metric == 'test_accuracy'


@pytest.mark.parametrize('file', ['gate'])
def test_a_part_that_is_missing_or_unknown_is_refused_in_a_line(file):
    for argument in ('', ':contrl'):
        with pytest.raises(UserError, match='Allowed: ') as e:
            load.load(f'{STUDIES}/{file}.py{argument}')
        assert '\n' not in str(e.value)


@every_study
def test_no_arm_is_another_one_of_the_same_study(name):
    for (a, ours), (b, theirs) in itertools.combinations(arms(name).items(), 2):
        assert not registration.same_arm(ours, theirs), (a, b)


@functools.cache
def traced():
    """Networks already traced, of any study: (model, size of a group) as text."""
    return set()


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
        return twin_expert(configs[arm].model.moe, twin, width, 8, (side, side, width)).hidden

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
    stage = registration.record(tuning.stage(loaded('confirm.py')))
    lent = {
        ours
        for ours, arm in stage['arms'].items()
        for theirs in arms('gate.py:underfit').values()
        if registration.same_arm(arm, theirs)
    }
    assert lent == {f'{arm}_learning_rate_0_01' for arm in ('dense', 'k1', 'k2')}
    assert stage['reads'] == ['../../gate/underfit']
