"""One setup serves every seed of a config, and a run is the same whether it was used before."""

import base64
import dataclasses
import json

import jax
import numpy as np
import pytest
import train_cases

from moe_vision.training import feed, loop, mesh
from moe_vision.training.setup import Setup

SMALL = {
    'model.moe.placement': 'head',
    'model.args': {'widths': (8,), 'depth': 1},
    'train.steps': 6,
    'eval.every_steps': 2,
    'checkpoint.every_steps': 3,
    'model.moe.router': 'top_k',
    'model.moe.router_args': {'noise': 'gaussian'},
    'train.mixup': 0.2,
    'model.moe.losses': {'importance': 0.01, 'load': 0.01},
}


@pytest.fixture(scope='module')
def config(data_dir):
    return train_cases.make(data_dir, SMALL)


@pytest.fixture(scope='module')
def runs(config, tmp_path_factory):
    """Folders of seeds 0 and 1 with one setup, and of seed 1 alone; the setup."""
    folders = [tmp_path_factory.mktemp(n) for n in ('first', 'second', 'alone')]
    shared = Setup(config)
    one = dataclasses.replace(config, seed=1)
    loop.train(config, str(folders[0]), setup=shared, full_report=False)
    loop.train(one, str(folders[1]), setup=shared, full_report=False)
    loop.train(one, str(folders[2]))
    return folders, shared


def test_the_second_seed_of_a_setup_is_the_run_of_that_seed_alone(runs):
    (first, second, alone), _ = runs
    train_cases.assert_same_runs(second, alone)
    evaluations = [json.loads((f / 'evaluation.json').read_text()) for f in (second, alone)]
    assert evaluations[0] == evaluations[1]
    assert train_cases.result(first)['seed'] == 0 and train_cases.result(second)['seed'] == 1
    assert train_cases.rows(first)[0]['loss'] != train_cases.rows(second)[0]['loss']


def test_nothing_is_compiled_for_another_seed(runs, config):
    _, shared = runs
    assert shared.step._cache_size() == 1
    assert {f._cache_size() for f in shared.evaluator._steps.values()} == {1}


def test_without_a_report_no_page_is_written(runs):
    (first, _, alone), _ = runs
    assert not (first / 'report.html').exists() and (alone / 'report.html').exists()


def test_a_setup_of_another_config_is_refused(runs, data_dir, tmp_path):
    other = train_cases.make(data_dir, SMALL | {'train.learning_rate': 0.1})
    with pytest.raises(ValueError, match='more than the seed'):
        loop.train(other, str(tmp_path), setup=runs[1])


def test_the_selected_checkpoint_is_the_best_on_validation(runs, config):
    """Its accuracy equals that of the best checkpoint, restored and scored here."""
    (first, _, _), shared = runs
    (best,) = train_cases.steps(first, 'best')
    with loop.checkpoints.Checkpoints(str(first), 2) as saved:
        step, state = saved.restore_best(shared.abstract)
    assert step == best == int(state.step)
    want = shared.evaluator.score(state, 'test', best / 6)
    assert train_cases.result(first)['test_accuracy_selected'] == want['accuracy']


def test_correct_holds_a_bit_per_image_in_order(runs, config):
    (first, _, _), shared = runs
    evaluation = json.loads((first / 'evaluation.json').read_text())
    packed = np.frombuffer(base64.b64decode(evaluation['correct']), np.uint8)
    bits = np.unpackbits(packed, count=360)
    assert bits.mean() == pytest.approx(evaluation['accuracy'], rel=1e-12)
    samples = [s['label'] == s['prediction'] for s in evaluation['samples']]
    assert bits[:24].astype(bool).tolist() == samples


def test_initial_values_follow_the_seed_asked_for(runs, config):
    _, shared = runs
    train_cases.assert_same_bits(
        jax.device_get(shared.fresh_state(3)),
        jax.device_get(Setup(dataclasses.replace(config, seed=3)).fresh_state()),
    )


def test_without_a_validation_split_nothing_is_selected(data_dir, tmp_path):
    none = train_cases.make(
        data_dir, SMALL | {'dataset.validation_fraction': 0.0, 'train.steps': 3}
    )
    result = loop.train(none, str(tmp_path), full_report=False)
    assert result['test_accuracy_selected'] is None
    assert result['best_validation_accuracy'] is None


@pytest.mark.slow
def test_a_resident_split_gives_the_same_run(runs, config, tmp_path):
    resident = dataclasses.replace(
        config, dataset=dataclasses.replace(config.dataset, resident=True)
    )
    loop.train(resident, str(tmp_path), full_report=False)
    train_cases.assert_same_runs(tmp_path, runs[0][0])


def test_micro_batches_of_a_resident_split_are_those_of_the_host(data_dir):
    seen = []
    for resident in (False, True):
        config = train_cases.make(
            data_dir, SMALL | {'train.micro_batches': 2, 'dataset.resident': resident}
        )
        one = mesh.make(1)
        gather = feed.Gather(config, mesh.batch_sharding(one))
        with feed.on_host(config, 0, range(32), 5, 7) as batches:
            seen.append([gather(mesh.to_devices(b, one, 2)) for b in batches])
    for ours, theirs in zip(*seen, strict=True):
        assert ours['image'].shape == (2, 16, 8, 8, 1)
        for name in ('image', 'label', 'valid'):
            np.testing.assert_array_equal(ours[name], theirs[name])
