"""Measures why a trained routed network scores as it does: what its routes and experts are worth.

The results depend on the trained state alone: images come in a fixed order, and random keys come
from the state or are fixed.

Axes: B images of a batch, E experts, L classes.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from moe_vision.config import registry
from moe_vision.config.places import place_at
from moe_vision.layers.moe import make_router
from moe_vision.routing import telemetry
from moe_vision.routing.interventions import ABLATE, DRAW, NONE, SHUFFLE, Intervention
from moe_vision.training.setup import Setup
from moe_vision.training.step import TrainState

_SAY_EVERY = 10.0  # seconds
IMAGES = 2_000  # score at most this many test images under each intervention


def probe(
    setup: Setup,
    state: TrainState,
    rows: Sequence[dict[str, Any]],
    test: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """What `mechanism.json` holds; {} for a network without routing.

    shuffle_drop, random_drop: test accuracy lost when the routes are permuted among the images (or
    patches) of a group, or drawn at random. Where experts choose tokens there is no random_drop:
    they have just the slots that their own choices fill, so drawn routes would also lose tokens
    that find none. ablation: layer -> accuracy lost when expert e outputs zero, for each e. These
    are fractions, on at most the first 2,000 test images. specialisation: on the test split.
    agreement: of the probe tokens of the validations; {} for routers that draw their routes in
    evaluation, because their draw is fixed. router_gradient: by layer. The functions of these names
    describe the last three.

    Args:
      rows: all metrics rows of the run, as `metrics.read` returns them.
      test: 'layers' of the score of the test split, with 'expert_by_class'.
    """
    model = setup.config.model
    if model.moe.placement == 'none' or model.twin != 'none':
        return {}
    layers = setup.routed_layers
    router = make_router(model.moe.router, model.moe.router_args, place_at(model, 0))
    experts = {layer: range(len(test[layer]['expert_by_class'])) for layer in layers}
    logging.info('probing: changes the routes, and leaves out each expert of %s', ', '.join(layers))
    changes = {'shuffle_drop': _intervention(SHUFFLE)}
    if not registry.keeps_capacity(model.moe.router):
        changes['random_drop'] = _intervention(DRAW)
    before, *changed = _test(
        setup,
        state,
        [
            _intervention(NONE),
            *changes.values(),
            *(_intervention(ABLATE, n, e) for n, at in enumerate(layers) for e in experts[at]),
        ],
    )
    lost = iter([before - accuracy for accuracy in changed])
    return {
        **{name: next(lost) for name in changes},
        'ablation': {layer: [next(lost) for _ in experts[layer]] for layer in layers},
        'specialisation': {
            layer: specialisation(np.asarray(test[layer]['expert_by_class'])) for layer in layers
        },
        'agreement': {} if router.draws else {layer: agreement(rows, layer) for layer in layers},
        'router_gradient': router_gradients(setup, state),
    }


def specialisation(counts: np.ndarray) -> dict[str, float]:
    """How much the choice of expert reveals about the class, from counts of choices [E, L].

    mutual_information: I(expert; class) in nats, bias-corrected by `telemetry.mutual_information`.
    normalised: divided by its upper bound, the smaller of the two entropies; 0 where that is 0.
    """
    information = telemetry.mutual_information(counts)
    shares = counts / max(counts.sum(), 1)
    bound = min(telemetry.entropy_of(shares.sum(axis)) for axis in (0, 1))
    return {
        'mutual_information': information,
        'normalised': min(information / bound, 1.0) if bound else 0.0,
    }


def agreement(rows: Sequence[dict[str, Any]], layer: str) -> dict[str, list[float | None]]:
    """The share of probe tokens that keep their first choice, for each validation in `rows`.

    'with_previous' compares with the validation before (None for the first one), 'with_final' with
    the last one; 'epoch' is when the validation was.
    """
    validations = [
        row for row in rows if row['split'] == 'validation' and layer in (row.get('probe') or {})
    ]
    choices = [np.asarray(row['probe'][layer]) for row in validations]

    def agreeing(a: np.ndarray, b: np.ndarray) -> float:
        return float((a == b).mean())

    return {
        'epoch': [row['epoch'] for row in validations],
        'with_previous': [
            agreeing(choices[n], choices[n - 1]) if n else None for n in range(len(choices))
        ],
        'with_final': [agreeing(choice, choices[-1]) for choice in choices],
    }


def _test(setup: Setup, state: TrainState, interventions: list[Intervention]) -> list[float]:
    """Accuracy on the test split, or validation in its place, under each intervention."""
    correct: list[list[np.ndarray]] = [[] for _ in interventions]
    seen, last = 0, time.monotonic()
    for run in setup.evaluator.outputs(state, setup.info.scored, 1.0):
        for n, (batches, intervention) in enumerate(zip(correct, interventions, strict=True)):
            if time.monotonic() - last >= _SAY_EVERY:
                last = time.monotonic()
                all_of_them = len(interventions)
                logging.info('probing: %d images, now %d of %d changes', seen, n + 1, all_of_them)
            out = run(intervention)
            out = jax.device_get({n: out[n] for n in ('prediction', 'label', 'valid')})
            batches.append((out['prediction'] == out['label'])[out['valid']])
        seen += len(correct[0][-1])
        if seen >= IMAGES:
            break
    return [float(np.concatenate(batches)[:IMAGES].mean()) for batches in correct]


def _intervention(kind: int, layer: int = -1, expert: int = 0) -> Intervention:
    """An intervention with arrays as fields, so that one compiled program serves all of them."""
    return Intervention(jnp.int32(kind), jnp.int32(layer), jnp.int32(expert))


def router_gradients(setup: Setup, state: TrainState) -> dict[str, dict[str, float]]:
    """Gradient norms at each layer's router parameters: layer -> {'task', 'balance'}.

    'task' is the gradient of the classification loss, 'balance' that of the auxiliary losses. Both
    are taken on the first batch of training images in evaluation order, without augmentation but
    routed as in training, with a fixed key.
    """
    batches = setup.evaluator.batches('train', strict=False)
    batch = next(batches)
    batches.close()
    fraction = state.step / setup.times.total
    with setup.compiling('the gradients at the routers'):
        norms = jax.device_get(setup.router_norms(state, batch, fraction))
    return {
        layer: {kind: float(norms[kind][layer]) for kind in ('task', 'balance')}
        for layer in setup.routed_layers
    }
