"""Routing over a mesh: groups stay on their device, slots travel to the device of their expert.

Mesh axes are ('data', 'expert'). Groups are laid over both, expert weights over 'expert' alone.
A routed layer exchanges twice forward (slots out, outputs back) and twice backward; with one
device on the expert axis it exchanges nothing.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

GROUPS = P(('data', 'expert'))  # leading axis over all devices
EXPERTS = P('expert')
REPLICATED = P()


def exchanged(experts: Callable, mesh: Mesh | None) -> Callable:
    """Runs `experts` where their weights are: [E, slots, *] in and out, on each device.

    Inside shard_map each device holds slots for all E experts from its own groups, and the weights
    of E / x of them, where x is the size of the expert axis.
    """
    if mesh is None or mesh.shape['expert'] == 1:
        return experts

    def run(slots):
        slots = jax.lax.all_to_all(slots, 'expert', split_axis=0, concat_axis=1, tiled=True)
        out = experts(slots)
        return jax.lax.all_to_all(out, 'expert', split_axis=1, concat_axis=0, tiled=True)

    return run


def over_groups(fn: Callable, mesh: Mesh | None) -> Callable:
    """fn(replicated, expert_weights, grouped) -> grouped, on each device's own groups."""
    if mesh is None or mesh.size == 1:  # one device needs no shard_map
        return fn
    return jax.shard_map(fn, mesh=mesh, in_specs=(REPLICATED, EXPERTS, GROUPS), out_specs=GROUPS,
                         check_vma=False)


def expected_all_to_alls(mesh_shape: dict[str, int], routed_layers: int,
                         first_input_has_gradient: bool = True) -> int:
    """How many all-to-alls a training step without remat has: two forward, two backward a layer.

    One less where nothing that learns stands before the first routed layer.
    """
    if mesh_shape.get('expert', 1) == 1 or routed_layers == 0:
        return 0
    return 4 * routed_layers - (0 if first_input_has_gradient else 1)


def param_spec(path: tuple[Any, ...]) -> P:
    """How an array of the train state lies on the mesh, from its path: expert banks split."""
    return EXPERTS if any(getattr(k, 'key', getattr(k, 'name', None)) == 'experts'
                          for k in path) else REPLICATED
