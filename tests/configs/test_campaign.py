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
from configs.studies import campaign
from moe_vision import models
from moe_vision.common.errors import UserError
from moe_vision.layers import Step
from moe_vision.study import load, registration

STUDIES = Path(__file__).parents[2] / 'configs/studies'
GATE = ('gate.py:control', 'gate.py:underfit', 'gate.py:length')
ALL = GATE
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
