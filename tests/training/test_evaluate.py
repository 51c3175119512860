"""Evaluation counts every image once and does not depend on the batch size, for every router."""

import base64
import dataclasses
import json
import math

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import train_cases
from slow import except_for

import input_pipeline
from input_pipeline import order
from input_pipeline.datasets import digits
from input_pipeline.reader import Item
from input_pipeline.steps import Steps
from moe_vision import models
from moe_vision.config import registry
from moe_vision.layers import Step
from moe_vision.leverage import tokens_per_image
from moe_vision.models.parts import normalize_images
from moe_vision.study import fields, row_of_run
from moe_vision.training import loop, mesh, pictures
from moe_vision.training.evaluate import Evaluator
from moe_vision.training.setup import Setup
from moe_vision.training.step import images_per_group

HEAD = {
    'model.moe.placement': 'head',
    'model.args': {'widths': (8,), 'depth': 1},
    'model.moe.eval_capacity_factor': 0.75,
    'model.moe.num_experts': 8,
}
DEFAULTS = {'model.moe.router_args': {}, 'model.moe.losses': {}}
PATCHES = (
    train_cases.VIT
    | DEFAULTS
    | {
        'model.moe.router': 'top_k',
        'model.moe.eval_capacity_factor': 0.75,
        'model.args': {'width': 8, 'depth': 1, 'heads': 2, 'patch_size': 4},
    }
)
# One router of each kind. Batches of any size are equal because a group is routed by its own tokens
# alone, which test_routing_every_router.py tests for all of them; and what is drawn belongs to the
# number of a group, as test_layer_moe.py has it.
KINDS = (
    'top_k',
    'oracle',
    'null_experts',
    'soft',
    'hash',
    'expert_choice',
    'attention_aware',
)
CASES = {name: HEAD | DEFAULTS | {'model.moe.router': name} for name in KINDS}
for axis in ('batch',):
    CASES[f'soft {axis}'] = (
        HEAD
        | DEFAULTS
        | {
            'model.moe.router': 'soft',
            'model.moe.router_args': {'axis': axis},
        }
    )
del CASES['soft']
for name, case in CASES.items():
    entry = registry.ROUTERS[case['model.moe.router']]
    within_images = getattr(entry.args(), 'graph', '') == 'image' or 'attention' in entry.needs
    if entry.one_image or within_images:
        tokens = {'model.moe.group_size': 4, 'model.moe.num_experts': 8}
        case = CASES[name] = PATCHES | tokens | {'model.moe.router': name}
    if 'eval_capacity_factor' in entry.ignores:
        CASES[name] = {k: v for k, v in case.items() if k != 'model.moe.eval_capacity_factor'}
CASES['oracle'] |= {'dataset.domains': 4}
CASES['maps'] = {  # one that draws
    'model.moe.eval_capacity_factor': 0.75,
    'model.moe.priority': 'random',
}
CASES['patches'] = PATCHES
CASES['patches of four images'] = CASES['patches'] | {'model.moe.group_size': 16}


@pytest.mark.parametrize('asked, whole', [(1, 16), (7, 16), (16, 16), (17, 32), (256, 256)])
def test_a_batch_is_rounded_up_to_whole_groups(asked, whole, data_dir):
    config = train_cases.make(data_dir, {'eval.batch_size': asked})
    info = input_pipeline.info(config.dataset)
    assert Evaluator(config, info, mesh.make(1), 1).batch == whole


def scores(config, state, batch_size, split='test'):
    config = dataclasses.replace(
        config, eval=dataclasses.replace(config.eval, batch_size=batch_size)
    )
    info = input_pipeline.info(config.dataset)
    evaluator = Evaluator(config, info, mesh.make(1), tokens_per_image(config, info))
    return evaluator.score(state, split, 0.5, details=True), evaluator


def trained(config):
    """A state with routes that are neither even nor all the same."""
    setup = Setup(config)
    return dataclasses.replace(setup.fresh_state(), ema={}), setup


@pytest.mark.parametrize('name', except_for(('top_k', 'maps'), CASES))
def test_the_batch_size_changes_nothing(name, data_dir):
    config = train_cases.make(data_dir, CASES[name])
    state, setup = trained(config)
    want, evaluator = scores(config, state, 1)
    assert evaluator.batch == images_per_group(config, tokens_per_image(config, setup.info))
    assert want['images'] == 360 and np.sum(want['confusion']) == 360
    (layer,) = want['layers'].values()
    hard = 'eval_capacity_factor' not in registry.ROUTERS[config.model.moe.router].ignores
    if hard:
        assert layer['drop_rate'] > 0.02  # otherwise this would not test capacity
    result, _ = scores(config, state, 256)
    assert result['accuracy'] == want['accuracy']
    assert result['accuracy_unbounded'] == want['accuracy_unbounded']
    assert result['confusion'] == want['confusion']
    assert math.isclose(result['loss'], want['loss'], rel_tol=1e-6)
    (again,) = result['layers'].values()
    for key, value in layer.items():
        np.testing.assert_allclose(again[key], value, rtol=1e-5, atol=1e-5, err_msg=key)
    if name in ('maps', 'patches'):
        assert want['accuracy_unbounded'] == by_hand(config, setup, state.variables())
    elif not hard:
        assert want['accuracy_unbounded'] == want['accuracy']


def test_only_batches_with_drops_are_run_again_with_room_for_all(data_dir, monkeypatch):
    config = train_cases.make(data_dir, CASES['top_k'] | {'model.moe.eval_capacity_factor': 2.0})
    state, _ = trained(config)
    ran: list[bool] = []
    step = Evaluator._step
    monkeypatch.setattr(
        Evaluator,
        '_step',
        lambda self, factor: (ran.append(factor == math.inf), step(self, factor))[1],
    )
    want, _ = scores(config, state, 16)
    batches = -(-360 // 16)
    dropped = ran.count(True)  # so some batches have drops and some have none
    assert ran.count(False) == batches and 0 < dropped < batches, dropped
    ran.clear()
    room = train_cases.make(data_dir, CASES['top_k'] | {'model.moe.eval_capacity_factor': 4.0})
    result, _ = scores(room, state, 16)  # k = 2 of 8 experts: each has a slot for every image
    assert True not in ran and result['accuracy'] == result['accuracy_unbounded']
    assert result['accuracy'] == want['accuracy_unbounded'] != want['accuracy']


def test_the_device_works_while_the_host_counts_and_choices_stay_there(data_dir, monkeypatch):
    """Four batches of 96 images, of which three hold the 256 tokens of the probe."""
    room = {'model.moe.eval_capacity_factor': 4.0, 'eval.batch_size': 96}
    state, setup = trained(train_cases.make(data_dir, CASES['top_k'] | room))
    firsts = []
    for run in setup.evaluator.outputs(state, 'test', 0.5):
        out = jax.device_get(run())
        firsts += out['choices']['head']['expert'][out['valid'], 0].tolist()
    outputs, get, done = Evaluator.outputs, jax.device_get, []

    def watched(*args, **kwargs):
        for number, run in enumerate(outputs(*args, **kwargs)):
            yield lambda number=number, run=run: (done.append(number), run())[1]

    def fetch(values):
        done.append('choices' if values['choices'] else 'no choices')
        return get(values)

    monkeypatch.setattr(Evaluator, 'outputs', watched)
    monkeypatch.setattr(jax, 'device_get', fetch)
    result = setup.evaluator.score(state, 'test', 0.5)
    assert result['probe'] == {'head': firsts[:256]}
    assert done == [0, 1, 'choices', 2, 'choices', 3, 'choices', 'no choices']
    done.clear()
    setup.evaluator.score(state, 'test', 0.5, details=True)
    assert done == [0, 1, 'choices', 2, 'no choices', 3, 'no choices', 'no choices']


def test_a_sweep_scores_at_each_capacity_factor(data_dir):
    config = train_cases.make(
        data_dir, CASES['top_k'] | {'eval.capacity_factors': (0.8, 0.75, float('inf'))}
    )
    state, setup = trained(config)
    want, evaluator = scores(config, state, 64)
    rows = list(evaluator.sweep(state, 'test', 0.5))
    # 16 images, 8 experts, k = 2: ceil(0.8 * 4) = 4 slots, ceil(0.75 * 4) = 3, and 16
    assert [r['effective_factor'] for r in rows] == [1.0, 0.75, 4.0]
    assert [r['capacity_factor'] for r in rows] == [0.8, 0.75, float('inf')]
    drops = [r['drop_rate']['head'] for r in rows]
    assert drops[1] == want['layers']['head']['drop_rate'] > drops[0] > drops[2] == 0
    assert rows[1]['accuracy'] == want['accuracy'] and rows[1]['loss'] == want['loss']
    assert rows[2]['accuracy'] == want['accuracy_unbounded'] != want['accuracy']
    again = evaluator.at_another_batch_size(state, 'test', 0.5, want)
    assert again.pop('loss_difference') < 1e-6
    assert again == {'batch_size': 32, 'equal': True, 'images_that_differ': 0}
    wrong = want | {'correct': base64.b64encode(bytes(45)).decode()}  # all 360 wrong
    again = evaluator.at_another_batch_size(state, 'test', 0.5, wrong)
    assert again['equal'] is False
    assert again['images_that_differ'] == round(360 * want['accuracy'])
    _, one = scores(config, state, 1)
    assert one.at_another_batch_size(state, 'test', 0.5, want)['batch_size'] == 32


def test_part_of_the_training_images_is_scored_too(data_dir, monkeypatch, caplog):
    """Those that `dataset.train_images` takes, without what cannot be decoded."""
    dense = HEAD | {'model.twin': 'same_width'}
    config = train_cases.make(data_dir, dense | {'eval.train_images': 100, 'eval.batch_size': 64})
    state, setup = trained(config)
    packed = setup.evaluator.score(state, 'train', 1.0, details=True)
    size = packed['images']
    right = np.zeros(size)
    bits = np.frombuffer(base64.b64decode(packed['correct']), np.uint8)
    right[order.evaluation_order(size)] = np.unpackbits(bits, count=size)  # by place in the split
    chosen = order.subset(size, 100)
    assert len(set(chosen)) == 100 < size
    asked = setup.evaluator.asked(state, 'test')
    assert asked == {'train_accuracy': right[chosen].mean()} and 0 < asked['train_accuracy'] < 1
    assert 'train_accuracy counts' not in caplog.text

    ours = chosen[order.evaluation_order(100)]
    pixels = Steps._pixels

    def damaged(self, item, step, row):
        return None if (step * 64 + row) % 4 == 0 else pixels(self, item, step, row)

    monkeypatch.setattr(Steps, '_pixels', damaged)
    readable = right[ours[np.arange(100) % 4 != 0]]
    assert setup.evaluator.asked(state, 'test') == {'train_accuracy': readable.mean()}
    assert 'train_accuracy counts 75 of 100 images' in caplog.text
    monkeypatch.setattr(Steps, '_pixels', lambda *args: None)
    assert setup.evaluator.asked(state, 'test') == {'train_accuracy': None}


def test_the_end_of_a_run_scores_what_its_config_asks_for(data_dir, tmp_path):
    """result.json and a study's row hold it; a network that drops nothing has no other capacity."""
    changes = HEAD | DEFAULTS | {'model.moe.router': 'top_k', 'train.steps': 3}
    factors = {'eval.capacity_factors': (0.5, 2.0, math.inf)}
    plain = loop.train(train_cases.make(data_dir, changes), str(tmp_path / 'run'))
    assert not {'train_accuracy', 'accuracy_at_capacity'} & set(plain)
    more = factors | {'eval.train_images': 64}
    result = loop.train(train_cases.make(data_dir, changes | more), str(tmp_path / 'run'))
    at_capacity = result['accuracy_at_capacity']
    assert list(at_capacity) == ['0.5', '2.0', 'inf']
    assert (
        at_capacity['inf'] == plain['test_accuracy_unbounded'] == result['test_accuracy_unbounded']
    )
    assert at_capacity['0.5'] != at_capacity['inf']
    assert 64 * result['train_accuracy'] == round(64 * result['train_accuracy'])
    stored = json.loads((tmp_path / 'run' / 'result.json').read_text())
    assert stored['accuracy_at_capacity'] == at_capacity
    row = row_of_run.collect(str(tmp_path / 'run'), 'study', 'arm', 0, 'ab')
    assert row['result']['accuracy_at_capacity'] == at_capacity and not fields.wrong(row)
    twin = changes | factors | {'model.twin': 'same_width'}
    evaluator = Setup(train_cases.make(data_dir, twin)).evaluator
    assert evaluator.asked(None, 'test') == {}


def by_hand(config, setup, variables) -> float:
    """Accuracy on the whole split in one batch, with a slot for every token at every expert."""
    moe = dataclasses.replace(config.model.moe, eval_capacity_factor=1000.0)
    net = models.build(dataclasses.replace(config.model, moe=moe), 10)
    with input_pipeline.evaluation_batches(
        config.dataset, split='test', batch_size=384, rows=range(384)
    ) as batches:
        batch = next(iter(batches))
    images = normalize_images(jnp.asarray(batch['image']), *input_pipeline.mean_std(config.dataset))
    step = Step(valid=jnp.asarray(batch['valid']), key=jax.random.key(0))
    logits, infos = jax.jit(net.apply)(variables, images, step)
    assert all(float(i['telemetry']['dropped'].sum()) == 0 for i in infos.values())
    right = np.argmax(logits, -1) == batch['label']
    return float(np.float64(right[batch['valid']]).mean())


def test_labels_and_choices_are_counted_by_class(data_dir):
    config = train_cases.make(data_dir, HEAD | DEFAULTS | {'model.moe.router': 'top_k'})
    result, _ = scores(config, trained(config)[0], 256)
    with input_pipeline.evaluation_batches(
        config.dataset, split='test', batch_size=360, rows=range(360)
    ) as batches:
        labels = np.bincount(next(iter(batches))['label'], minlength=10)
    (layer,) = result['layers'].values()
    assert np.sum(result['confusion'], 1).tolist() == labels.tolist()
    assert np.sum(layer['expert_by_class'], 0).tolist() == (2 * labels).tolist()  # k = 2
    by_expert = np.sum(layer['expert_by_class'], 1)
    np.testing.assert_allclose(layer['load'], by_expert / by_expert.sum(), rtol=1e-6)
    # 23 groups (the last of 8 images), 8 experts, 3 slots each: ceil(0.75 * 2 * 16 / 8)
    kept = 720 * (1 - layer['drop_rate'])
    assert math.isclose(layer['utilisation'], kept / (23 * 8 * 3), rel_tol=1e-6)


def test_padding_is_no_image(data_dir, monkeypatch):
    """Garbage in the padded rows of the last batch changes no number."""
    config = train_cases.make(data_dir, HEAD | DEFAULTS | {'model.moe.router': 'top_k'})
    state, _ = trained(config)
    want, _ = scores(config, state, 256)
    real = input_pipeline.evaluation_batches

    class Dirty:
        def __init__(self, *args, **kwargs):
            self._batches = real(*args, **kwargs)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self._batches.close()

        def __iter__(self):
            for batch in self._batches:
                image, label = batch['image'].copy(), batch['label'].copy()
                image[~batch['valid']], label[~batch['valid']] = 255, 3
                yield batch | {'image': image, 'label': label}

    monkeypatch.setattr(input_pipeline, 'evaluation_batches', Dirty)
    assert scores(config, state, 256)[0] == want


def test_mistakes_are_the_most_confident_ones_each_once_with_its_file(data_dir):
    config = train_cases.make(data_dir, HEAD | DEFAULTS | {'model.moe.router': 'top_k'})
    state, setup = trained(config)
    result, evaluator = scores(config, state, 64)
    by_image = {}  # all that was wrong: place in the split -> (probability, truth, prediction)
    places = iter(order.evaluation_order(360).tolist())
    for run in evaluator.outputs(state, 'test', 0.5):
        out = jax.device_get(run())
        for i, place in zip(np.flatnonzero(out['valid']), places, strict=False):
            if out['prediction'][i] == out['label'][i]:
                continue
            by_image[place] = (
                float(out['probability'][i]),
                int(out['label'][i]),
                int(out['prediction'][i]),
            )
    mistakes = result['mistakes']
    assert len(by_image) > len(mistakes) == 24
    assert len({m['index'] for m in mistakes}) == 24
    for m in mistakes:
        assert (m['probability'], m['label'], m['prediction']) == by_image[m['index']]
    probabilities = [m['probability'] for m in mistakes]
    assert probabilities == sorted((p for p, *_ in by_image.values()), reverse=True)[:24]
    images, labels, rows = digits.arrays()['test']
    for m in mistakes + result['samples']:
        assert m['file'] == f'digit {rows[m["index"]]}' and m['label'] == labels[m['index']]
        data = np.frombuffer(base64.b64decode(m['image_png']), np.uint8)
        picture = cv2.imdecode(data, cv2.IMREAD_GRAYSCALE)
        np.testing.assert_array_equal(picture, images[m['index'], ..., 0])


def test_a_large_mistake_is_shown_small():
    item = Item(np.zeros((300, 150, 3), np.uint8), 1, 'x.png')
    png = pictures.shown(0, item, 2, 96)['image_png']
    assert cv2.imdecode(np.frombuffer(base64.b64decode(png), np.uint8), 1).shape == (96, 48, 3)


@pytest.mark.parametrize(
    'changes, can',
    [
        ({'model.moe.router': 'top_k'}, True),
        ({'model.moe.router': 'top_k', 'model.moe.eval_capacity_factor': math.inf}, False),
        ({'model.moe.router': 'soft', 'model.moe.eval_capacity_factor': 2.0}, False),
        ({'model.moe.router': 'top_k', 'model.twin': 'same_width'}, False),
        ({'model.moe.router': 'top_k', 'model.twin': 'same_drops'}, True),
    ],
)
def test_only_where_choices_can_be_dropped_an_accuracy_has_two_numbers(changes, can, data_dir):
    config = train_cases.make(data_dir, HEAD | DEFAULTS | changes)
    info = input_pipeline.info(config.dataset)

    class Setup:
        evaluator = Evaluator(config, info, mesh.make(1), 1)

    shown = loop._accuracy(Setup, {'accuracy': 0.5, 'accuracy_unbounded': 0.75})
    assert shown == ('0.5000 (unbounded capacity 0.7500)' if can else '0.5000')
