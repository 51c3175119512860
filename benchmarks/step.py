"""Whole training steps of routed networks beside their same-width twins.

The aim is 1.15 times the ratio of the FLOPs that the two execute. Batches are random and on the
device. The last row compares a step and its feed from a data set on the device with the step alone.
"""

import dataclasses
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from benchmarks.table import Row, row
from benchmarks.timing import compiled
from configs import base, digits_k2, imagenet_k2, imagenet_vit_s16_k2
from moe_vision.common import chips
from moe_vision.config import check as config_lib
from moe_vision.config.schema import Config
from moe_vision.pod.compiled import batch_shapes
from moe_vision.training import feed, mesh
from moe_vision.training.setup import Setup


def small_vit() -> Any:
    c = base.get_config()
    c.model.name = 'vit'
    c.model.args = {'width': 192, 'depth': 4, 'heads': 3, 'patch_size': 1}
    c.model.moe.placement = 'every_2'
    c.model.moe.group_size = 1024
    return c


def imagenet(make: Callable[[], Any]) -> Callable[[], Any]:
    def config() -> Any:
        c = make()
        c.mesh.expert, c.train.batch_size = 1, 256
        return c

    return config


CPU = {'digits_k2': digits_k2.get_config, 'small ViT': small_vit}
GPU = CPU | {
    'imagenet_k2, batch 256': imagenet(imagenet_k2.get_config),
    'imagenet_vit_s16_k2, batch 256': imagenet(imagenet_vit_s16_k2.get_config),
}


def twin_of(config: Config) -> Config:
    return dataclasses.replace(config, model=dataclasses.replace(config.model, twin='same_width'))


def batch(setup: Setup) -> dict[str, jax.Array]:
    """A random batch, placed on the devices as in training."""
    rng = np.random.default_rng(0)
    draw = {
        'image': lambda shape: rng.integers(0, 256, shape, np.uint8),
        'label': lambda shape: rng.integers(0, setup.info.num_classes, shape).astype(np.int32),
        'valid': lambda shape: np.ones(shape, bool),
        'domain': lambda shape: np.zeros(shape, np.int32),
    }
    return {n: jax.device_put(draw[n](x.shape), x.sharding) for n, x in batch_shapes(setup).items()}


def stepping(setup: Setup, step: Callable, arrays: dict[str, jax.Array]) -> Callable[[], Any]:
    """A function that makes one step from the state that its last call left."""
    state = setup.fresh_state()

    def call() -> Any:
        nonlocal state
        state, out = step(state, arrays)
        return out

    return call


def beside_twin(name: str, config: Config, rounds: int) -> Row:
    began = time.perf_counter()
    setups = {'routed': Setup(config, devices=jax.devices())}
    states = {'routed': jax.block_until_ready(setups['routed'].fresh_state())}
    setting_up = time.perf_counter() - began
    setups['twin'] = Setup(twin_of(config), devices=jax.devices())
    states['twin'] = setups['twin'].fresh_state()
    batches = {n: batch(setup) for n, setup in setups.items()}
    steps = {n: compiled(s.step, states.pop(n), batches[n]) for n, s in setups.items()}
    calls = {n: stepping(s, steps[n], batches[n]) for n, s in setups.items()}
    executed = {n: setup.cost.flops_executed for n, setup in setups.items()}
    ratio = executed['routed'] / executed['twin']
    result = row(
        name,
        calls,
        rounds,
        {'twin': 1.15 * ratio},
        {
            'times the FLOPs': ratio,
            'MB': steps['routed'].temporary_mb,
            'MB of twin': steps['twin'].temporary_mb,
            'setup and initial values s': setting_up,
            'compiling s': steps['routed'].seconds,
            'of it tracing s': steps['routed'].tracing,
            'of it lowering s': steps['routed'].lowering,
            'compiling twin s': steps['twin'].seconds,
        },
    )
    if peak := chips.peak(jax.devices()[0].device_kind):
        at_peak = 3 * executed['routed'] * config.train.batch_size / peak / jax.device_count()
        result = dataclasses.replace(
            result,
            facts={**result.facts, 'share of peak': at_peak / result.milliseconds['routed'] * 1e3},
        )
    return result


def with_feed(config: Config, rounds: int) -> Row:
    """Times a step and its feed, from a data set on the device, beside the step alone."""
    setup = Setup(config)
    micro, state = config.train.micro_batches, setup.fresh_state()
    with feed.on_host(config, 0, range(config.train.batch_size), 0, 10 * rounds + 10) as batches:
        arrays = setup.gather(mesh.to_devices(next(batches), setup.mesh, micro))
        alone = stepping(setup, setup.step, arrays)

        def fed() -> Any:
            nonlocal state
            state, out = setup.step(
                state, setup.gather(mesh.to_devices(next(batches), setup.mesh, micro))
            )
            return out

        return row(
            'digits_k2, a resident set',
            {'step with its feed': fed, 'step': alone},
            3 * rounds,
            {'step': 1.03},
        )


def rows(rounds: int) -> Iterator[Row]:
    for name, make in (CPU if jax.default_backend() == 'cpu' else GPU).items():
        yield beside_twin(name, config_lib.check(make()), rounds)
    with tempfile.TemporaryDirectory() as folder:
        c = digits_k2.get_config()
        c.dataset.data_dir, c.dataset.resident = folder, True
        yield with_feed(config_lib.check(c), rounds)
