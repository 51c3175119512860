"""The checksum that a checkpoint holds: of arrays on devices, and of the same arrays on the host.

The number is saved with every checkpoint, so neither function may change.
"""

from collections.abc import Iterable, Iterator, Mapping
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


def of_raw(tree: Mapping[str, Any], state: Mapping[str, Any]) -> int:
    """The checksum of a state that was read without knowing its types, by `load_raw`.

    Args:
      tree: the same nested dictionaries and lists as the checkpoint's metadata describe them.
        Their dictionaries are in the order in which jax flattened the state; for a NamedTuple,
        which is read as a dictionary, that is the order of its fields.
    """
    return of_arrays(x for name in FIELDS for x in _in_order(tree.get(name), state.get(name)))


def _in_order(tree: Any, values: Any) -> Iterator[np.ndarray]:
    """The arrays in `values`, in the order of `tree`."""
    if isinstance(tree, dict):
        for name, inner in tree.items():
            yield from _in_order(inner, values[name])
    elif isinstance(tree, list | tuple):
        for inner, value in zip(tree, values, strict=True):
            yield from _in_order(inner, value)
    elif tree is not None:
        yield np.asarray(values)


def of_arrays(leaves: Iterable[np.ndarray]) -> int:
    """What `of_state` computes, from the arrays of a state in order."""
    total = 0
    for x in leaves:
        bits = np.ascontiguousarray(x).reshape(-1).view(f'uint{8 * x.dtype.itemsize}')
        part = 0
        for start in range(0, bits.size, _CHUNK):
            some = bits[start: start + _CHUNK].astype(np.uint32)
            place = np.arange(start, start + some.size, dtype=np.uint64).astype(np.uint32)
            part += int((some * (2 * place + 1)).sum(dtype=np.uint32))
        total = (total * 31 + part) % 2 ** 32
    return total
