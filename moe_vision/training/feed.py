"""Training batches for the devices: made on the host, or on the devices from the resident split.

Axes: A micro-batches, R rows of the batch that this process loads, N images of the split.
"""

import contextlib
import functools
from collections.abc import Iterator, Sequence

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import input_pipeline
from input_pipeline import resident
from moe_vision.config.schema import Config

_NAMES = ('image', 'label', 'valid')
Arrays = dict[str, np.ndarray]


@contextlib.contextmanager
def on_host(config: Config, seed: int, rows: Sequence[int], start: int,
            stop: int) -> Iterator[Iterator[Arrays]]:
    """What the host has to give for the steps start .. stop-1 of a seed, arrays [R, ...].

    Batches; with `dataset.resident` the integers that `Gather` makes them from.
    """
    batch_size = config.train.batch_size
    if config.dataset.resident:
        drawn = resident.Rows(config.dataset, seed, batch_size, rows)
        yield ({'rows': drawn(step)} for step in range(start, stop))
        return
    with input_pipeline.train_batches(
            config.dataset, seed=seed, batch_size=batch_size, rows=rows, start_step=start,
            num_steps=stop) as batches:
        yield ({n: batch[n] for n in _NAMES} for batch in batches)


class Gather:
    """What `on_host` gave, as placed on the devices, to batches.

    Args:
      config: of the run.
      sharding: of the arrays, whatever their rank.
    """

    def __init__(self, config: Config, sharding: NamedSharding):
        self._config, self._sharding = config, sharding

    def __call__(self, arrays: dict[str, jax.Array]) -> dict[str, jax.Array]:
        if 'rows' not in arrays:
            return arrays
        return self._program(self._split, arrays['rows'])

    @functools.cached_property
    def _split(self) -> dict[str, jax.Array]:
        """The decoded split, a copy on every device."""
        whole = resident.load(self._config.dataset)
        everywhere = NamedSharding(self._sharding.mesh, P())
        return {n: jax.make_array_from_process_local_data(everywhere, x) for n, x in whole.items()}

    @functools.cached_property
    def _program(self):
        pad = resident.padding(self._config.dataset, self._split['image'].shape[1:])
        spec = self._sharding.spec
        return jax.jit(jax.shard_map(
            lambda split, rows: resident.gather(split, rows, pad), mesh=self._sharding.mesh,
            in_specs=(P(), spec), out_specs=spec))
