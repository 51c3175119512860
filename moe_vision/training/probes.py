"""Why a trained routed network scores what it scores: what its routes are worth, and to whom.

Everything is a function of the trained state: images come in their fixed order, keys from the
state, or fixed.

Axes: B images of a batch, E experts, L classes.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import input_pipeline
from moe_vision.common.paths import path_name
from moe_vision.layers import Step
from moe_vision.layers.moe import make_router
from moe_vision.routing import telemetry
from moe_vision.routing.interventions import ABLATE, DRAW, NONE, SHUFFLE, Intervention
from moe_vision.training import mesh as mesh_lib
from moe_vision.training.setup import Setup
from moe_vision.training.step import TrainState, normalize_images

IMAGES = 2_000  # of the test split, at most, are scored under every intervention


def probe(setup: Setup, state: TrainState, rows: Sequence[dict[str, Any]],
          test: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What `mechanism.json` holds; {} where nothing is routed.

    shuffle_drop, random_drop: test accuracy lost when routes are permuted among the images (or
    patches) of a group, or drawn at random. ablation: layer -> lost when expert e gives nothing.
    These are shares of 1, on the first 2,000 test images at most. specialisation, agreement: as
    the functions below say, on the test split and on the validations' probe (no agreement where the
    router draws its routes in evaluation: its draw is fixed); router_gradient, too.

    Args:
      rows: of the run, as `metrics.read` gives them.
      test: the layers of the test split's score, with 'expert_by_class'.
    """
    model = setup.config.model
    if model.moe.placement == 'none' or model.twin != 'none':
        return {}
    moe = model.moe
    router = make_router(moe.router, moe.router_args, moe.num_experts, moe.k)
    layers, experts = _layers(setup), range(moe.num_experts)
    before, shuffled, drawn, *ablated = _test(setup, state, [
        _intervention(NONE), _intervention(SHUFFLE), _intervention(DRAW),
        *(_intervention(ABLATE, n, e) for n in range(len(layers)) for e in experts)])
    lost = iter([before - accuracy for accuracy in ablated])
    return {
        'shuffle_drop': before - shuffled, 'random_drop': before - drawn,
        'ablation': {layer: [next(lost) for _ in experts] for layer in layers},
        'specialisation': {layer: specialisation(np.asarray(test[layer]['expert_by_class']))
                           for layer in layers},
        'agreement': {} if router.draws else {layer: agreement(rows, layer) for layer in layers},
        'router_gradient': router_gradients(setup, state, layers),
    }


def specialisation(counts: np.ndarray) -> dict[str, float]:
    """How much an expert tells of the class, from choices by expert and class [E, L].

    mutual_information: I(expert; class), nats, corrected as in `telemetry.mutual_information`.
    normalised: over the smaller of the two entropies, the most that it can be; 0 where that is 0.
    """
    information = telemetry.mutual_information(counts)
    shares = counts / max(counts.sum(), 1)
    most = min(telemetry.entropy_of(shares.sum(axis)) for axis in (0, 1))
    return {'mutual_information': information,
            'normalised': min(information / most, 1.0) if most else 0.0}


def agreement(rows: Sequence[dict[str, Any]], layer: str) -> dict[str, list[float | None]]:
    """Shares of probe tokens with the same first choice, at each validation in `rows`.

    'with_previous': as at the validation before (None at the first); 'with_final': as at the last;
    'epoch': when.
    """
    found = [(row['epoch'], np.asarray(row['probe'][layer])) for row in rows
             if row['split'] == 'validation' and layer in (row.get('probe') or {})]
    choices = [choice for _, choice in found]
    same = lambda a, b: float((a == b).mean())  # noqa: E731
    return {'epoch': [epoch for epoch, _ in found],
            'with_previous': [same(a, b) if n else None for n, (a, b) in enumerate(
                zip(choices, [*choices[:1], *choices[:-1]], strict=True))],
            'with_final': [same(a, choices[-1]) for a in choices]}


def _test(setup: Setup, state: TrainState,
          interventions: list[Intervention]) -> list[float]:
    """Accuracy under each intervention."""
    right: list[list[np.ndarray]] = [[] for _ in interventions]
    seen = 0
    for _, run in setup.evaluator.outputs(state, 'test', 1.0):
        for into, intervention in zip(right, interventions, strict=True):
            out = run(intervention)
            said = jax.device_get({n: out[n] for n in ('prediction', 'label', 'valid')})
            into.append((said['prediction'] == said['label'])[said['valid']])
        seen += len(right[0][-1])
        if seen >= IMAGES:
            break
    return [float(np.concatenate(r)[:IMAGES].mean()) for r in right]


def _intervention(kind: int, layer: int = -1, expert: int = 0) -> Intervention:
    """One whose fields are traced: a single program serves all."""
    return Intervention(jnp.int32(kind), jnp.int32(layer), jnp.int32(expert))


@functools.lru_cache(maxsize=1)  # the seeds of an arm share one setup
def _layers(setup: Setup) -> tuple[str, ...]:
    """Names of the routed layers, in the order of their numbers."""
    names: list[str] = []

    def forward(variables, images, key):
        names.extend(setup.network.apply(variables, images, Step(key=key))[1])

    images = jax.ShapeDtypeStruct((setup.evaluator.batch, *setup.info.image_shape), jnp.float32)
    jax.eval_shape(forward, setup.shapes.variables(), images, jax.random.key(0))
    return tuple(names)


def router_gradients(setup: Setup, state: TrainState,
                     layers: Sequence[str]) -> dict[str, dict[str, float]]:
    """Layer -> 'task', 'balance': norms of the two gradients at its router's parameters.

    Over the first batch of training images, as they are, in the order of evaluation; routed as in
    training, with a fixed key.
    """
    batches = setup.evaluator.batches('train')
    batch = next(batches)[1]
    batches.close()
    fraction = state.step / setup.times.total
    norms = jax.device_get(_gradient_norms(setup, tuple(layers))(state, batch, fraction))
    return {layer: {kind: float(norms[kind][layer]) for kind in ('task', 'balance')}
            for layer in layers}


@functools.lru_cache(maxsize=1)
def _gradient_norms(setup: Setup, layers: tuple[str, ...]) -> Callable:
    """`norms(state, batch, fraction)`: 'task' and 'balance', layer -> norm; batch [1, B, ...]."""
    network, train = setup.network, setup.config.train
    classes, mean_std = setup.info.num_classes, input_pipeline.mean_std(setup.config.dataset)

    def is_router(path) -> bool:
        return any(path_name(path).startswith(f'{layer}/router/') for layer in layers)

    def norms(state: TrainState, batch: dict[str, jax.Array], fraction: jax.Array):
        images, labels, valid = (batch[n][0] for n in ('image', 'label', 'valid'))
        images = normalize_images(images, *mean_std)
        leaves = jax.tree_util.tree_leaves_with_path(state.params)
        routers = {path_name(path): leaf for path, leaf in leaves if is_router(path)}

        def losses(routers):
            params = jax.tree_util.tree_map_with_path(
                lambda path, leaf: routers.get(path_name(path), leaf), state.params)
            step = Step(valid=valid, key=jax.random.key(0), fraction=fraction, labels=labels,
                        train=True)
            (logits, infos), _ = network.apply({**state.variables(), 'params': params}, images,
                                               step, mutable=['batch_stats'])
            targets = optax.smooth_labels(jax.nn.one_hot(labels, classes), train.label_smoothing)
            task = jnp.where(valid, optax.softmax_cross_entropy(logits, targets), 0.0).sum()
            balance = sum((jnp.sum(v) for i in infos.values() for v in i['losses'].values()),
                          start=jnp.float32(0))
            return {'task': task / jnp.maximum(valid.sum(), 1), 'balance': balance}

        values, pull = jax.vjp(losses, routers)
        out = {}
        for kind in values:
            gradient, = pull({name: jnp.float32(name == kind) for name in values})
            out[kind] = {layer: optax.tree.norm([g for name, g in gradient.items()
                                                 if name.startswith(f'{layer}/router/')])
                         for layer in layers}
        return out

    return jax.jit(norms, out_shardings=mesh_lib.replicated(setup.mesh))
