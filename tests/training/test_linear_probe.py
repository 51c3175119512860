"""A probe is scikit-learn's ridge on what the network gives to its classifier."""

import dataclasses
import json
import tracemalloc

import numpy as np
import pytest
import train_cases
from sklearn.linear_model import Ridge, RidgeClassifier

from moe_vision.common.errors import UserError
from moe_vision.training import linear_probe, loop


def cluster(n, d, classes=3, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=n)
    centres = np.random.default_rng(9).normal(size=(classes, d))
    return (centres[labels] + rng.normal(size=(n, d)) + 5).astype(np.float32), labels


@pytest.mark.parametrize('n, d', [(60, 7), (12, 40), (20_000, 4)])
def test_it_is_what_scikit_learn_fits(n, d):
    x, labels = cluster(n, d)
    (fitted,) = linear_probe.ridge(x, labels, 3, [0.3])
    x64 = x.astype(np.float64)
    theirs = Ridge(alpha=fitted.alpha).fit(x64, np.eye(3)[labels])
    np.testing.assert_allclose(fitted.weights, theirs.coef_.T, rtol=1e-8, atol=1e-12)
    np.testing.assert_allclose(fitted.intercept, theirs.intercept_, rtol=1e-8)
    new, truth = cluster(500, d, seed=1)
    classifier = RidgeClassifier(alpha=fitted.alpha).fit(x64, labels)
    assert fitted.accuracy(new, truth) == classifier.score(new.astype(np.float64), truth)


def test_the_strength_does_not_depend_on_the_scale_of_features():
    x, labels = cluster(60, 7)
    one, ten = (linear_probe.ridge(a, labels, 3, [0.3])[0] for a in (x, 10 * x))
    np.testing.assert_allclose(ten.alpha, 100 * one.alpha, rtol=1e-5)
    np.testing.assert_allclose(10 * ten.weights, one.weights, rtol=1e-4, atol=1e-6)
    centred = x - x.mean(0, dtype=np.float64)
    np.testing.assert_allclose(one.alpha, 0.3 * (centred**2).sum() / 7, rtol=1e-6)


@pytest.mark.parametrize('n, d', [(60, 7), (12, 40), (9_000, 30)])
def test_all_strengths_together_are_each_one_solved_alone(n, d):
    x, labels = cluster(n, d)
    centred, one_hot = x - x.mean(0, dtype=np.float64), np.eye(3)[labels]
    scatter = centred.T @ centred
    for fitted in linear_probe.ridge(x, labels, 3, linear_probe.STRENGTHS):
        weights = np.linalg.solve(scatter + fitted.alpha * np.eye(d), centred.T @ one_hot)
        assert np.abs(fitted.weights - weights).max() < 1e-9 * np.abs(weights).max()
        intercept = one_hot.mean(0) - x.mean(0, dtype=np.float64) @ weights
        np.testing.assert_allclose(fitted.intercept, intercept, rtol=1e-9, atol=1e-9)


def test_many_images_of_many_classes_take_the_memory_of_a_part():
    """40,000 images of 1,000 classes: one-hot they are 320 MB."""
    x, labels = cluster(40_000, 3, classes=1_000)
    tracemalloc.start()
    (fitted,) = linear_probe.ridge(x, labels, 1_000, [0.1])
    share = fitted.accuracy(x, labels)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 200e6 and share > 10 / 1_000


def test_few_images_are_as_many_of_each_class():
    labels = np.repeat([0, 1, 2], [50, 30, 5])
    drawn = linear_probe.few(labels, 3, 5, 0)
    assert len(set(drawn)) == 15 and np.bincount(labels[drawn]).tolist() == [5, 5, 5]
    np.testing.assert_array_equal(drawn, linear_probe.few(labels, 3, 5, 0))
    assert set(drawn) != set(linear_probe.few(labels, 3, 5, 1))
    assert linear_probe.few(labels, 3, 10, 0) is None  # the last class has five
    assert linear_probe.few(labels, 4, 1, 0) is None  # there is none of the fourth


def test_validation_chooses_the_strength_and_few_images_choose_nothing():
    train, scored = cluster(40, 30), cluster(300, 30, seed=1)
    out = linear_probe.score(train, scored, 3, validation=scored)
    fits = linear_probe.ridge(*train, 3, linear_probe.STRENGTHS)
    best = max(fitted.accuracy(*scored) for fitted in fits)
    assert out['linear']['accuracy'] == best
    blind = linear_probe.score(train, scored, 3)
    assert blind['linear']['strength'] == linear_probe.STRENGTH
    assert blind['few_shot'] == out['few_shot'] and list(out['few_shot']) == ['1', '5', '10']
    assert len(out['few_shot']['5']['draws']) == linear_probe.DRAWS


@pytest.fixture(scope='module')
def run(config, setup, tmp_path_factory):
    folder = tmp_path_factory.mktemp('probed')
    loop.train(config, str(folder), setup=setup, full_report=False)
    return folder


def test_features_are_what_the_classifier_reads(config, setup, run, capsys):
    """With the network's own classifier they give the accuracy of its evaluation."""
    traced, normalize = [], linear_probe.normalize_images
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(linear_probe, 'Setup', lambda c, for_training: setup)
        patch.setattr(
            linear_probe, 'normalize_images', lambda *args: (traced.append(1), normalize(*args))[1]
        )
        scores = linear_probe.probe(config, str(run))
    assert json.loads((run / 'probe-test.json').read_text()) == scores
    assert len(traced) == 1  # one program for all splits
    assert scores['images'] == {'test': 360, 'train': 1293, 'validation': 144}
    said = capsys.readouterr().out
    assert f'accuracy {scores["linear"]["accuracy"]:.4f}' in said and '10 per class' in said
    with linear_probe.checkpoints.Checkpoints(str(run), 1) as saved:
        _, state = saved.restore_for_evaluation(setup.abstract)
    forward = linear_probe.forward_to_head(setup, state, 1.0)
    x, labels = linear_probe.features(setup, forward, 'test')
    head = state.variables(averaged=True)['params']['classifier']
    own = np.argmax(x @ np.asarray(head['kernel']) + np.asarray(head['bias']), -1)
    assert (own == labels).mean() == train_cases.result(run)['test_accuracy']
    assert scores['linear']['accuracy'] > 0.5  # after 12 steps the features do tell


def test_the_split_must_be_there(config, setup, run, monkeypatch):
    monkeypatch.setattr(linear_probe, 'Setup', lambda c, for_training: setup)
    monkeypatch.setattr(linear_probe, '_HEAD', 'no_such_layer')
    with pytest.raises(UserError, match="has no layer 'no_such_layer'"):
        linear_probe.probe(config, str(run))
    config = dataclasses.replace(config, eval=dataclasses.replace(config.eval, split='train'))
    monkeypatch.setattr(linear_probe, '_HEAD', 'classifier')
    scores = linear_probe.probe(config, str(run))
    assert scores['split'] == 'train' and (run / 'probe-train.json').exists()
