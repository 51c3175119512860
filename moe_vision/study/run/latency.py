"""Times inference of a study's arms at several batch sizes, interleaved in one process.

Networks have their initial weights, so no run is needed, and routers spread tokens almost evenly. A
batch is one call on one device: uint8 images in, logits out, with evaluation's capacity.

Each network is also timed with the branches at its routed places taken out. The difference is what
these places take, as a share: rho in time (docs/words.md).
"""

import dataclasses
import functools
from collections.abc import Callable, Collection, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

import input_pipeline
from moe_vision import leverage, models
from moe_vision.common import quick, timing
from moe_vision.config.placement import HEADS
from moe_vision.config.schema import DROPPING, Config
from moe_vision.layers import Step
from moe_vision.models.parts import normalize_images
from moe_vision.training.step import init_variables_fn

LEAST = 3  # rounds, however long they take


def measure(
    arms: Mapping[str, Config], batches: tuple[int, ...], repeats: int = 30, budget_s: float = 300.0
) -> dict[str, Any]:
    """Times one forward pass of each arm at each batch size; needs no data and no run.

    At each batch size all arms take turns, one call each per round, and so do the arms without the
    branches at their routed places; arms that then are the same network share these calls. A time
    is the median over rounds, with the first and third quartiles.

    Args:
      arms: checked configs by name.
      batches: images per call.
      repeats: rounds per batch size.
      budget_s: seconds for all rounds, divided evenly among the batch sizes, without compiling. At
        least three rounds are taken.

    Returns:
      {'device', 'arms': {name: {'flops', 'flops_executed', 'batches': {'8': {'median_ms',
      'low_ms', 'high_ms', 'images_per_second', 'runs', 'group_size', 'rest_ms', 'rho_time',
      'rho_time_low', 'rho_time_high'}}}}}. FLOPs are those of `leverage.measure`, at the config's
      own group size and training capacity; `group_size` is in tokens, 0 if nothing is routed. The
      last four, of the network without these branches, are left out if there are no such places.
    """
    costs = {name: leverage.measure(c, input_pipeline.info(c.dataset)) for name, c in arms.items()}
    measured: dict[str, Any] = {
        name: {'flops': cost.flops, 'flops_executed': cost.flops_executed, 'batches': {}}
        for name, cost in costs.items()
    }
    variables = {name: variables_of(config) for name, config in arms.items()}
    places = {n: frozenset(b.name for b in cost.blocks if b.routed) for n, cost in costs.items()}
    rest = {name: _rest(config) for name, config in arms.items()}
    for batch in batches:
        logging.info('batch %d: compiling %d arms', batch, len(arms))
        calls = {name: call(config, variables[name], batch) for name, config in arms.items()}
        for name, config in arms.items():
            if places[name] and rest[name] not in calls:
                calls[rest[name]] = call(config, variables[name], batch, places[name])
        times = timing.rounds(calls, repeats, budget_s / len(batches), LEAST)
        for name, config in arms.items():
            seconds = times[name]
            measured[name]['batches'][str(batch)] = (
                summary(seconds, batch)
                | {'group_size': group_size(config, batch)}
                | (share(seconds, times[rest[name]]) if places[name] else {})
            )
            logging.info('batch %d  %s  %.3f ms', batch, name, 1e3 * float(np.median(seconds)))
    return {'device': jax.devices()[0].device_kind, 'arms': measured}


def summary(seconds: list[float], batch: int) -> dict[str, Any]:
    """Median and quartiles of the time of a call, and images per second at the median."""
    low, median, high = (float(q) for q in np.quantile(seconds, (0.25, 0.5, 0.75)))
    return {
        'median_ms': 1e3 * median,
        'low_ms': 1e3 * low,
        'high_ms': 1e3 * high,
        'images_per_second': batch / median,
        'runs': len(seconds),
    }


def share(seconds: list[float], without: list[float]) -> dict[str, Any]:
    """Rho in time: 1 - without / seconds in each round, its median and quartiles.

    Args:
      seconds: of the network, by round.
      without: of the same without the branches at its routed places, in the same rounds.
    """
    shares = 1 - np.divide(without, seconds)
    low, median, high = (float(q) for q in np.quantile(shares, (0.25, 0.5, 0.75)))
    return {
        'rest_ms': 1e3 * float(np.median(without)),
        'rho_time': median,
        'rho_time_low': low,
        'rho_time_high': high,
    }


def _rest(config: Config) -> str:
    """Names the network without the branches at its routed places: what of a config it depends on.

    No arm has such a name.
    """
    model = config.model
    parts = (model.name, model.args, model.dtype, model.moe.placement, config.dataset, config.seed)
    return f'without its branches: {parts}'


def group_size(config: Config, batch: int) -> int:
    """Tokens that share capacity in one batch; 0 if nothing is routed.

    The config's own group size, or the largest one below it that divides the tokens of the batch.
    """
    moe = config.model.moe
    if moe.placement == 'none' or config.model.twin not in ('none', *DROPPING):
        return 0
    info = input_pipeline.info(config.dataset)
    per_image = 1 if moe.placement in HEADS else leverage.tokens_per_image(config, info)
    tokens = batch * per_image
    return next(d for d in range(min(moe.group_size, tokens), 0, -1) if tokens % d == 0)


def call(
    config: Config, variables: Any, batch: int, without: Collection[str] = ()
) -> Callable[[], jax.Array]:
    """The compiled forward pass on one batch of random images; it returns the logits.

    Args:
      without: paths of modules to take out: each hands its input on, which has the shape of its
        output.
    """
    mean_std = input_pipeline.mean_std(config.dataset)
    network = _network(config, batch)

    def take_out(method, args, kwargs, context):
        made = method(*args, **kwargs)  # the compiler drops what nothing needs
        if context.method_name != '__call__' or '/'.join(context.module.path) not in without:
            return made
        x = args[0] if args else kwargs['x']
        y, *info = made if isinstance(made, tuple) else (made,)
        x = x.reshape(y.shape).astype(y.dtype)
        return (x, *info) if isinstance(made, tuple) else x

    def forward(variables, images, key):
        step = Step.example(batch, key=key)
        with nn.intercept_methods(take_out):
            return network.apply(variables, normalize_images(images, *mean_std), step)[0]

    shape = (batch, *input_pipeline.info(config.dataset).image_shape)
    images = jnp.asarray(np.random.default_rng(0).integers(0, 256, shape, np.uint8))
    args = variables, images, jax.random.key(0)
    return functools.partial(jax.jit(forward).lower(*args).compile(), *args)


def _network(config: Config, batch: int):
    moe = dataclasses.replace(config.model.moe, group_size=group_size(config, batch) or 1)
    info = input_pipeline.info(config.dataset)
    return models.build(dataclasses.replace(config.model, moe=moe), info.num_classes)


def variables_of(config: Config) -> Any:
    """The initial variables; they do not depend on the batch size."""
    info = input_pipeline.info(config.dataset)
    init = init_variables_fn(_network(config, 1), info.image_shape, batch=1)
    return quick.jit(init)(jax.random.key(config.seed))
