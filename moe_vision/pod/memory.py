"""Counts bytes on one device: what the compiled step needs, and what the train state needs."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import jax
from jax.extend.core import Jaxpr, jaxprs_in_params


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on one device. `aliased` counts outputs that reuse the memory of arguments."""

    arguments: int
    outputs: int
    temporaries: int
    aliased: int
    code: int

    @property
    def used(self) -> int:
        return self.arguments + self.outputs - self.aliased + self.temporaries + self.code


def of_program(stats: Any) -> Memory:
    """Reads jax's CompiledMemoryStats."""
    return Memory(
        stats.argument_size_in_bytes,
        stats.output_size_in_bytes,
        stats.temp_size_in_bytes,
        stats.alias_size_in_bytes,
        stats.generated_code_size_in_bytes,
    )


def of_state(abstract: Any) -> dict[str, int]:
    """Bytes on one device of each part of a train state that is not empty."""
    parts = {
        'parameters': abstract.params,
        'optimizer': abstract.opt_state,
        'average of weights': abstract.ema,
        'statistics': (abstract.batch_stats, abstract.router_state),
    }
    sizes = {name: sum(map(shard_bytes, jax.tree.leaves(tree))) for name, tree in parts.items()}
    return {name: size for name, size in sizes.items() if size}


def shard_bytes(leaf: jax.ShapeDtypeStruct) -> int:
    """Bytes of the shard of an array that one device holds."""
    return math.prod(shard_shape(leaf)) * leaf.dtype.itemsize


def shard_shape(leaf: jax.ShapeDtypeStruct) -> tuple[int, ...]:
    return leaf.shape if leaf.sharding is None else leaf.sharding.shard_shape(leaf.shape)


def largest(program: Jaxpr, devices: int, count: int = 5) -> list[tuple[int, str, str]]:
    """The largest tensors of a traced program, one per shape, as (bytes on a device, shape, scope).

    Outside `shard_map`, tensors count as sharded over all devices, as activations are.
    """
    by_shape: dict[str, tuple[int, str, str]] = {}
    for size, shape, scope in _tensors(program, devices, ''):
        by_shape.setdefault(shape, (size, shape, scope))
    return sorted(by_shape.values(), reverse=True)[:count]


def _tensors(program: Jaxpr, devices: int, outer: str) -> Iterator[tuple[int, str, str]]:
    for eqn in program.eqns:
        scope = '/'.join(filter(None, (outer, str(eqn.source_info.name_stack))))
        for aval in (v.aval for v in eqn.outvars):
            if hasattr(aval, 'shape'):
                yield math.prod(aval.shape) * aval.dtype.itemsize // devices, str(aval), scope
        inside = 1 if eqn.primitive.name == 'shard_map' else devices  # its shapes are a device's
        for inner in jaxprs_in_params(eqn.params):
            yield from _tensors(inner, inside, scope)
