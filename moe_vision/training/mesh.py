"""Arranges devices as a ('data', 'expert') mesh, and says how arrays are split over it."""

from collections.abc import Sequence
from typing import Any

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from moe_vision.common.errors import UserError
from moe_vision.layers.exchange import param_spec


def make(expert: int, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of all devices, of which each `expert` in one slice share one copy of the experts.

    Args:
      expert: size of the 'expert' axis.
      devices: devices to use instead of `jax.devices()`.

    Raises:
      UserError: `expert` does not divide the number of devices in a slice.
    """
    devices = jax.devices() if devices is None else devices
    slices = len({getattr(d, 'slice_index', 0) for d in devices})
    count = len(devices) // slices
    if count % expert:
        fits = [n for n in range(1, count + 1) if count % n == 0]
        raise UserError(
            f'mesh.expert is {expert}, but there {_devices(count)}'
            f'{" in a slice" if slices > 1 else ""}; allowed: {", ".join(map(str, fits))}. '
            f'Set --config.mesh.expert={fits[-1]}, or start where there are more devices.'
        )
    inner, split = (count // expert, expert), {'allow_split_physical_axes': True}
    grid = (
        mesh_utils.create_device_mesh(inner, devices, **split)
        if slices == 1
        else mesh_utils.create_hybrid_device_mesh(inner, (slices, 1), devices, **split)
    )
    return Mesh(grid, ('data', 'expert'), (AxisType.Auto, AxisType.Auto))


def _devices(count: int) -> str:
    return 'is 1 device' if count == 1 else f'are {count} devices'


def check_groups(images: int, images_per_group: int, mesh: Mesh, what: str) -> None:
    """Checks that the devices that share one copy of the experts hold whole groups together.

    Args:
      images: in a micro-batch.
      what: the config key that decides `images`, for the error.

    Raises:
      UserError: they do not; names the group sizes that fit.
    """
    rows, expert = mesh.shape['data'], mesh.shape['expert']
    share = images / rows
    if images % mesh.size or share % images_per_group:
        fits = [n for n in range(1, images + 1) if images % mesh.size == 0 and share % n == 0]
        sizes = ', '.join(map(str, fits[-6:])) or f'none: make {what} a multiple of {mesh.size}'
        holders = (
            f'each of {mesh.size} devices'
            if expert == 1
            else f'the {expert} devices of each of {rows} expert axes'
        )
        raise UserError(
            f'{what} gives {holders} {share:g} images, which do not make whole routing groups of '
            f'{images_per_group} images; groups that fit, in images: {sizes}.'
        )


def replicated(mesh: Mesh) -> NamedSharding:
    """A whole copy on every device."""
    return NamedSharding(mesh, P())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Splits the rows of arrays [micro-batches, rows, ...] over all devices."""
    return NamedSharding(mesh, P(None, ('data', 'expert')))


def state_shardings(mesh: Mesh, state: Any, shard_optimizer: bool = False) -> Any:
    """A sharding for each array of a train state.

    Expert banks and their optimizer state are split over 'expert'; the rest is on every device, and
    so is an array that a transform keeps of a bank if its leading axis cannot be split.

    Args:
      shard_optimizer: also split the rest of the optimizer state over 'data', each array along its
        longest divisible axis (of equally long ones, the first).
    """

    def spec(path, leaf):
        by_expert, data = param_spec(path), mesh.shape['data']
        if path[0].name == 'opt_state' and (not leaf.shape or leaf.shape[0] % mesh.shape['expert']):
            by_expert = P()
        if not shard_optimizer or data == 1 or by_expert != P() or path[0].name != 'opt_state':
            return by_expert
        divisible = [n if n % data == 0 else 0 for n in leaf.shape]
        if not any(divisible):
            return by_expert
        axis = divisible.index(max(divisible))
        return P(*[None] * axis, 'data')

    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: NamedSharding(mesh, spec(path, leaf)), state
    )


def rows_of_process(rows: int, mesh: Mesh) -> list[int]:
    """The rows of a batch that the devices of this process hold, in ascending order."""
    index = NamedSharding(mesh, P(('data', 'expert'))).addressable_devices_indices_map((rows,))
    ranges = sorted(
        {
            (s[0].start or 0, rows if s[0].stop is None else s[0].stop)
            for s in index.values()
            if s is not None
        }
    )
    return [r for a, b in ranges for r in range(a, b)]


def to_devices(batch: dict[str, Any], mesh: Mesh, micro_batches: int) -> dict[str, jax.Array]:
    """Places this process's rows [R, ...] in global arrays [micro-batches, rows, ...].

    The R rows of the first micro-batch come first, then those of the second, and so on.
    """
    sharding = batch_sharding(mesh)

    def place(x):
        local = x.reshape(micro_batches, -1, *x.shape[1:])
        return jax.make_array_from_process_local_data(sharding, local)

    return {name: place(x) for name, x in batch.items()}
