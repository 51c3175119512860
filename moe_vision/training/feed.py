"""Feeds training batches to the devices, from the host or from a split resident on the devices.

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
from input_pipeline import domains, resident
from moe_vision.config.schema import Config

Arrays = dict[str, np.ndarray]


@contextlib.contextmanager
def on_host(
    config: Config, seed: int, rows: Sequence[int], start: int, stop: int
) -> Iterator[Iterator[Arrays]]:
    """Yields an iterator over what the host sends for steps start .. stop-1, arrays [R, ...].

    These are batches; with `dataset.resident`, the integers from which `Gather` makes batches.
    """
    batch_size = config.train.batch_size
    if config.dataset.resident:
        draw_rows = resident.Rows(config.dataset, seed, batch_size, rows)
        yield ({'rows': draw_rows(step)} for step in range(start, stop))
        return
    with input_pipeline.train_batches(
        config.dataset,
        seed=seed,
        batch_size=batch_size,
        rows=rows,
        start_step=start,
        num_steps=stop,
    ) as batches:
        yield ({n: x for n, x in batch.items() if n != 'index'} for batch in batches)


class Gather:
    """Turns what `on_host` sent, once it is placed on the devices, into batches.

    Args:
      config: the run's.
      sharding: of the arrays; the same at any rank.
    """

    def __init__(self, config: Config, sharding: NamedSharding):
        self._config, self._sharding = config, sharding

    def __call__(self, arrays: dict[str, jax.Array]) -> dict[str, jax.Array]:
        if 'rows' not in arrays:
            return arrays
        return self._program(self._split, arrays['rows'])

    @functools.cached_property
    def _split(self) -> dict[str, jax.Array]:
        """The decoded split of N images, a copy on every device."""
        whole = resident.load(self._config.dataset)
        everywhere = NamedSharding(self._sharding.mesh, P())
        return {n: jax.make_array_from_process_local_data(everywhere, x) for n, x in whole.items()}

    @functools.cached_property
    def _program(self):
        dataset, shape = self._config.dataset, self._split['image'].shape[1:]
        pad = resident.padding(dataset, shape)
        codes = domains.codes(dataset.domains, shape) if dataset.domains else None
        spec = self._sharding.spec
        return jax.jit(
            jax.shard_map(
                lambda split, rows: resident.gather(split, rows, pad, codes),
                mesh=self._sharding.mesh,
                in_specs=(P(), spec),
                out_specs=spec,
            )
        )
