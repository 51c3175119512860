"""The checksum that a checkpoint holds: of arrays on devices, and of the same arrays on the host.

The number is saved with every checkpoint, so neither function may change.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# The fields of `TrainState`, in the order in which the checksum goes through them.
FIELDS = ('step', 'seed_key', 'params', 'batch_stats', 'router_state', 'opt_state', 'ema')
_CHUNK = 1 << 22  # elements that the host takes at once


@jax.jit
def of_state(state: Any) -> jax.Array:
    """A uint32 checksum of all bits and their places, independent of how arrays are sharded."""
    total = jnp.uint32(0)
    for x in jax.tree.leaves(state):
        unsigned = jnp.dtype(f'uint{8 * x.dtype.itemsize}')
        bits = jax.lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32)
        place = jnp.uint32(0)  # row-major, from iotas: a reshape would gather sharded arrays
        for axis, size in enumerate(x.shape):
            place = place * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
        total = total * jnp.uint32(31) + jnp.sum(bits * (2 * place + 1), dtype=jnp.uint32)
    return total


def of_raw(metadata: Mapping[str, Any], state: Mapping[str, Any]) -> int:
    """The checksum of a state that was read without knowing its types, by `load_raw`.

    Args:
      metadata: what the checkpoint's `_METADATA` holds. Its entries are in the order in which jax
        flattened the state. The state's dictionaries are not: a NamedTuple is read as one, but jax
        goes through its fields in their order.
    """
    paths = [
        [part['key'] for part in entry['key_metadata']]
        for entry in metadata['tree_metadata'].values()
    ]
    leaves = [_at(state, path) for field in FIELDS for path in paths if path[0] == field]
    return of_arrays(x for x in leaves if isinstance(x, np.ndarray))  # others are empty


def _at(value: Any, path: Iterable[str]) -> Any:
    for key in path:
        value = value[key] if isinstance(value, Mapping) else value[int(key)]
    return value


def of_arrays(leaves: Iterable[np.ndarray]) -> int:
    """What `of_state` computes, from the arrays of a state in order."""
    total = 0
    for x in leaves:
        bits = np.ascontiguousarray(x).reshape(-1).view(f'uint{8 * x.dtype.itemsize}')
        part = 0
        for start in range(0, bits.size, _CHUNK):
            some = bits[start : start + _CHUNK].astype(np.uint32)
            place = np.arange(start, start + some.size, dtype=np.uint64).astype(np.uint32)
            part += int((some * (2 * place + 1)).sum(dtype=np.uint32))
        total = (total * 31 + part) % 2**32
    return total
