"""Says how good frozen features are: a linear probe and few-shot classifiers by ridge regression.

The features of an image are what the network gives to its classifier, as in evaluation. A linear
map from them to one-hot classes is fitted by least squares with a penalty alpha |W|^2 and an
intercept that is not penalised, in closed form (Hoerl and Kennard, 1970). So is what scikit-learn's
`Ridge` and `RidgeClassifier` fit.

Axes: N images, D features, L classes.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from etils import epath

import input_pipeline
from moe_vision import models
from moe_vision.common import compile_cache
from moe_vision.common.errors import UserError
from moe_vision.common.files import write_json
from moe_vision.config import rules
from moe_vision.config.schema import Config
from moe_vision.layers import Step
from moe_vision.models.parts import extras_of, normalize_images
from moe_vision.processes import peers
from moe_vision.run_folder import checkpoints
from moe_vision.training import mesh as mesh_lib
from moe_vision.training.evaluate import STREAM
from moe_vision.training.setup import Setup
from moe_vision.training.step import TrainState

SHOTS = (1, 5, 10)  # training images of each class
DRAWS = 5  # of these images
STRENGTH = 0.01  # alpha where nothing chooses it, in mean eigenvalues of the features' scatter
STRENGTHS = tuple(10.0**n for n in range(-5, 2))  # of which validation chooses
_HEAD = 'classifier'
_CHUNK = 8192  # images that are computed with in float64 at once


@dataclasses.dataclass(frozen=True)
class Linear:
    """A linear classifier: the largest of `x @ weights + intercept` is the class."""

    weights: np.ndarray  # float64 [D, L]
    intercept: np.ndarray  # float64 [L]
    alpha: float

    def accuracy(self, x: np.ndarray, labels: np.ndarray) -> float:
        """The share of images x [N, D] whose class is right."""
        right = [
            np.argmax(x[part] @ self.weights + self.intercept, -1) == labels[part]
            for part in _parts(len(x))
        ]
        return float(np.concatenate(right).mean())


def _parts(n: int) -> list[slice]:
    """Cuts N images into parts whose float64 arrays [images, L] are small."""
    return [slice(i, i + _CHUNK) for i in range(0, n, _CHUNK)]


def ridge(
    x: np.ndarray, labels: np.ndarray, classes: int, strengths: Sequence[float]
) -> list[Linear]:
    """The ridge classifier of features x [N, D] and labels [N] at each strength.

    With X the centred features, Y the one-hot classes and X'X = V s V', the weights are
    V (s + alpha)^-1 V' X'Y. So one eigendecomposition serves all strengths.

    Args:
      classes: L.
      strengths: alpha in mean eigenvalues of X'X (of those that can differ from 0), so that it does
        not depend on the scale of the features.
    """
    n, d = x.shape
    mean, one_hot = x.mean(0, dtype=np.float64), np.eye(classes)
    if n < d:  # by the other side, which is smaller: (X'X + a)^-1 X' = X' (XX' + a)^-1
        centred = x - mean
        scatter, moments = centred @ centred.T, one_hot[labels]
        moments = moments - moments.mean(0)
    else:
        scatter, moments = np.zeros((d, d)), np.zeros((d, classes))
        for part in _parts(n):
            centred = x[part] - mean
            scatter += centred.T @ centred
            moments += centred.T @ one_hot[labels[part]]
    scale = max(float(np.trace(scatter)) / min(n, d), np.finfo(np.float64).tiny)
    values, vectors = np.linalg.eigh(scatter)
    turned, share = vectors.T @ moments, np.bincount(labels, minlength=classes) / n
    fits = []
    for strength in strengths:
        weights = vectors @ (turned / (values + strength * scale)[:, None])
        if n < d:
            weights = centred.T @ weights
        fits.append(Linear(weights, share - mean @ weights, strength * scale))
    return fits


def few(labels: np.ndarray, classes: int, shots: int, draw: int) -> np.ndarray | None:
    """Places of `shots` images of each class, drawn at random; None if a class has fewer."""
    rng = np.random.default_rng((shots, draw))
    by_class = [np.flatnonzero(labels == c) for c in range(classes)]
    if min(map(len, by_class)) < shots:
        return None
    return np.concatenate([rng.choice(places, shots, replace=False) for places in by_class])


def score(
    train: tuple[np.ndarray, np.ndarray],
    scored: tuple[np.ndarray, np.ndarray],
    classes: int,
    validation: tuple[np.ndarray, np.ndarray] | None = None,
) -> dict[str, Any]:
    """Fits on features and labels of the training images, and scores on others.

    Args:
      validation: chooses the strength of the linear probe; None takes STRENGTH. Few-shot
        classifiers take STRENGTH, for nobody who has few images has many to choose with.

    Returns:
      'linear' {'accuracy', 'alpha', 'strength'}; 'few_shot' {'5': {'accuracy', 'sd', 'draws'}},
      without the numbers of images that a class does not have.
    """
    strengths = STRENGTHS if validation else (STRENGTH,)
    fits = dict(zip(strengths, ridge(*train, classes, strengths), strict=True))
    strength = max(fits, key=lambda s: fits[s].accuracy(*validation)) if validation else STRENGTH
    fitted = fits[strength]
    out: dict[str, Any] = {
        'linear': {
            'accuracy': fitted.accuracy(*scored),
            'alpha': fitted.alpha,
            'strength': strength,
        },
        'few_shot': {},
    }
    x, labels = train
    for shots in SHOTS:
        places = [few(labels, classes, shots, draw) for draw in range(DRAWS)]
        draws = [
            ridge(x[p], labels[p], classes, [STRENGTH])[0].accuracy(*scored)
            for p in places
            if p is not None
        ]
        if draws:
            out['few_shot'][str(shots)] = {
                'accuracy': float(np.mean(draws)),
                'sd': float(np.std(draws, ddof=1)),
                'draws': draws,
            }
    return out


def probe(config: Config, workdir: str) -> dict[str, Any]:
    """Probes the newest checkpoint of a run on `eval.split`; writes probe-SPLIT.json.

    Raises:
      UserError: the data set lacks the split, no checkpoint fits the config, or the network has no
        classifier to take features from.
      NotWritten: the file cannot be written; the scores are printed all the same.
    """
    compile_cache.use()
    setup = Setup(config, for_training=False)
    split, sizes = rules.to_score(config.eval.split, setup.info), setup.info.split_sizes
    with checkpoints.Checkpoints(workdir, config.checkpoint.keep) as saved:
        step, state = saved.restore_for_evaluation(setup.abstract)
    fraction = step / setup.times.total
    needed = {'train', split} | ({'validation'} & set(sizes))
    forward = forward_to_head(setup, state, fraction)
    found = {name: features(setup, forward, name) for name in sorted(needed)}
    chooses = found.get('validation') if split != 'validation' else None
    scores = score(found['train'], found[split], setup.info.num_classes, chooses)
    scores = {
        'split': split,
        'step': step,
        'features': found[split][0].shape[1],
        'images': {name: len(labels) for name, (_, labels) in found.items()},
        **scores,
    }
    if peers.first():
        linear = scores['linear']
        print(
            f'{split}: linear probe on {scores["features"]} features, accuracy '
            f'{linear["accuracy"]:.4f} (alpha {linear["alpha"]:.3g})'
        )
        for shots, few_shot in scores['few_shot'].items():
            print(
                f'{split}: {shots} per class, accuracy {few_shot["accuracy"]:.4f} ± '
                f'{few_shot["sd"]:.4f} over {DRAWS} draws',
                flush=True,
            )
        write_json(epath.Path(workdir) / f'probe-{split}.json', scores)
    return scores


def forward_to_head(setup: Setup, state: TrainState, fraction: float) -> Callable:
    """The compiled `forward(batch, start)` -> (features [B, D], labels [B], valid [B]) of a state.

    Batch arrays are [1, B, ...]; `start` is the place of the first image in the split.

    Args:
      fraction: of the training that is done; routers with a schedule read it.
    """
    config = setup.config
    network = models.build(config.model, setup.info.num_classes, setup.mesh)
    mean_std = input_pipeline.mean_std(config.dataset)
    key = jax.random.fold_in(jax.random.wrap_key_data(state.seed_key), STREAM)

    def forward(variables, batch, start):
        batch = jax.tree.map(lambda a: a[0], batch)
        info = Step(
            valid=batch['valid'],
            key=key,
            fraction=fraction,
            labels=batch['label'],
            extras=extras_of(batch),
            start=start,
            num_classes=setup.info.num_classes,
        )
        taken = []

        def look(next_function, args, kwargs, context):
            if context.module.name == _HEAD and context.method_name == '__call__':
                taken.append(args[0])
            return next_function(*args, **kwargs)

        with nn.intercept_methods(look):
            network.apply(variables, normalize_images(batch['image'], *mean_std), info)
        if len(taken) != 1:
            raise UserError(
                f"backbone '{config.model.name}' has no layer '{_HEAD}' to take features from; "
                'name its last layer so.'
            )
        return taken[0].astype('float32'), batch['label'], batch['valid']

    forward = jax.jit(forward, out_shardings=mesh_lib.replicated(setup.mesh))
    return functools.partial(forward, state.variables(averaged=True))


def features(setup: Setup, forward: Callable, split: str) -> tuple[np.ndarray, np.ndarray]:
    """(float32 [N, D], labels [N]) of a split, in the order of evaluation.

    Training images that cannot be decoded are left out.

    Args:
      forward: as `forward_to_head` returns it, of this setup.

    Raises:
      UserError: the network has no classifier.
    """
    evaluator = setup.evaluator
    found, labels = [], []
    for number, arrays in enumerate(evaluator.batches(split, strict=split != 'train')):
        with setup.compiling('the features'):
            out = forward(arrays, number * evaluator.batch)
        x, label, valid = jax.device_get(out)
        found.append(x[valid])
        labels.append(label[valid])
    return np.concatenate(found), np.concatenate(labels)
