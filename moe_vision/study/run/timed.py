"""Times the training of a config for some seconds, to plan how long a study takes."""

import contextlib
import os
import time
from collections.abc import Iterator

import jax

from moe_vision.common import compile_cache
from moe_vision.config.schema import Config
from moe_vision.training import feed, mesh
from moe_vision.training.setup import Setup

WARM_UP = 3  # steps that are not timed


def images_per_second(config: Config, seconds: float = 20.0, most: int = 200) -> float:
    """Training speed on one core, or on the accelerator, without compiling and scoring.

    Nothing is written and nothing is scored. jax uses one core only if this process has not used
    it before.

    Args:
      config: checked, with its data (`rules.check_data`).
      seconds: no further step begins after this time.
      most: steps.
    """
    with one_core():
        compile_cache.use()
        setup = Setup(config)
        micro = config.train.micro_batches
        rows = range(config.train.batch_size)
        state = setup.fresh_state()
        done, began = 0, time.monotonic()
        with feed.on_host(config, config.seed, rows, 0, WARM_UP + most) as batches:
            for step, arrays in enumerate(batches, 1 - WARM_UP):
                batch = setup.gather(mesh.to_devices(arrays, setup.mesh, micro))
                state, metrics = setup.step(state, batch)
                jax.block_until_ready(metrics)
                if step <= 0:
                    began = time.monotonic()
                done = step
                if done >= 1 and time.monotonic() - began >= seconds:
                    break
        return done * config.train.batch_size / (time.monotonic() - began)


@contextlib.contextmanager
def one_core() -> Iterator[None]:
    """Keeps this thread, and those that it starts, on one core, where the system can do that."""
    if not hasattr(os, 'sched_setaffinity'):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def shared_by(cores: int) -> int:
    """How many processes can share a study here without slowing each other: cores, or 1 device."""
    return cores if jax.default_backend() == 'cpu' else 1
