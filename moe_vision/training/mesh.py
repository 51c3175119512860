"""Devices as a ('data', 'expert') mesh, and how arrays lie on it."""

from collections.abc import Sequence
from typing import Any

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from moe_vision.common.errors import UserError
from moe_vision.layers.exchange import param_spec


def make(expert: int, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """All devices; `expert` of them, of one slice, share one copy of the experts.

    Args:
      expert: size of that axis.
      devices: in place of all that this process knows.

    Raises:
      UserError: the device count, or that of a slice where there are several, is not divisible
        by it.
    """
    devices = jax.devices() if devices is None else devices
    slices = len({getattr(d, 'slice_index', 0) for d in devices})
    count = len(devices) // slices
    if count % expert:
        fits = [n for n in range(1, count + 1) if count % n == 0]
        raise UserError(f'mesh.expert is {expert}, but there are {count} devices'
                        f'{" in a slice" if slices > 1 else ""}; '
                        f'allowed: {", ".join(map(str, fits))}.')
    inner, split = (count // expert, expert), {'allow_split_physical_axes': True}
    grid = (mesh_utils.create_device_mesh(inner, devices, **split) if slices == 1 else
            mesh_utils.create_hybrid_device_mesh(inner, (slices, 1), devices, **split))
    return Mesh(grid, ('data', 'expert'), (AxisType.Auto, AxisType.Auto))


def check_groups(images: int, images_per_group: int, mesh: Mesh, what: str) -> None:
    """Devices that share one copy of the experts must hold whole groups together.

    Raises:
      UserError: they cannot; says which group sizes fit.
    """
    rows, expert = mesh.shape['data'], mesh.shape['expert']
    share = images / rows
    if images % mesh.size or share % images_per_group:
        fits = [n for n in range(1, images + 1) if images % mesh.size == 0 and share % n == 0]
        sizes = ', '.join(map(str, fits[-6:])) or f'none: make {what} a multiple of {mesh.size}'
        holders = (f'each of {mesh.size} devices' if expert == 1 else
                   f'the {expert} devices of each of {rows} expert axes')
        raise UserError(
            f'{what} gives {holders} {share:g} images, which do not make whole routing groups of '
            f'{images_per_group} images; groups that fit, in images: {sizes}.')


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, P())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """[micro-batches, rows, ...]: rows over all devices."""
    return NamedSharding(mesh, P(None, ('data', 'expert')))


def state_shardings(mesh: Mesh, state: Any, shard_optimizer: bool = False) -> Any:
    """A sharding for each array of a train state: expert banks and what the optimizer keeps of
    them over 'expert', all else on every device.

    Args:
      shard_optimizer: lay the rest of the optimizer's state over 'data', each array along the
        longest axis that divides, the first of equals.
    """
    def spec(path, leaf):
        found = param_spec(path)
        data = mesh.shape['data']
        if not shard_optimizer or data == 1 or found != P() or path[0].name != 'opt_state':
            return found
        fits = [n if n % data == 0 else 0 for n in leaf.shape]
        if not any(fits):
            return found
        axis = fits.index(max(fits))
        return P(*[None] * axis, 'data')

    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: NamedSharding(mesh, spec(path, leaf)), state)


def rows_of_process(rows: int, mesh: Mesh) -> list[int]:
    """Which of a batch's rows the devices of this process hold, in order."""
    index = NamedSharding(mesh, P(('data', 'expert'))).addressable_devices_indices_map((rows,))
    ranges = sorted({(s[0].start or 0, rows if s[0].stop is None else s[0].stop)
                     for s in index.values() if s is not None})
    return [r for a, b in ranges for r in range(a, b)]


def to_devices(batch: dict[str, Any], mesh: Mesh, micro_batches: int) -> dict[str, jax.Array]:
    """Rows [R, ...] of this process to global arrays [micro-batches, rows, ...].

    R is ordered micro-batch by micro-batch.
    """
    sharding = batch_sharding(mesh)

    def place(x):
        local = x.reshape(micro_batches, -1, *x.shape[1:])
        return jax.make_array_from_process_local_data(sharding, local)

    return {name: place(x) for name, x in batch.items()}
