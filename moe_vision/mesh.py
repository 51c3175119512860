"""Devices as a ('data', 'expert') mesh, and how arrays lie on it."""

from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from moe_vision.errors import UserError
from moe_vision.layers.exchange import param_spec


def make(expert: int) -> Mesh:
    """All devices; `expert` of them share one copy of the experts.

    Raises:
      UserError: the device count is not divisible by it.
    """
    devices = jax.device_count()
    if devices % expert:
        fits = [n for n in range(1, devices + 1) if devices % n == 0]
        raise UserError(f'mesh.expert is {expert}, but there are {devices} devices; '
                        f'allowed: {", ".join(map(str, fits))}.')
    return jax.make_mesh((devices // expert, expert), ('data', 'expert'),
                         axis_types=(AxisType.Auto, AxisType.Auto))


def check_groups(images: int, images_per_group: int, mesh: Mesh, what: str) -> None:
    """Each device must hold whole groups.

    Raises:
      UserError: it cannot; says which group sizes fit.
    """
    share = images / mesh.size
    if images % mesh.size or share % images_per_group:
        fits = [n for n in range(1, images + 1) if images % (n * mesh.size) == 0]
        sizes = ', '.join(map(str, fits[-6:])) or f'none: make {what} a multiple of {mesh.size}'
        raise UserError(
            f'{what} gives each of {mesh.size} devices {share:g} images, which do not make whole '
            f'routing groups of {images_per_group} images; groups that fit, in images: {sizes}.')


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, P())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """[micro-batches, rows, ...]: rows over all devices."""
    return NamedSharding(mesh, P(None, ('data', 'expert')))


def state_shardings(mesh: Mesh, state: Any) -> Any:
    """A sharding for each array of a train state: expert banks and what the optimizer keeps of
    them over 'expert', all else on every device."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: NamedSharding(mesh, param_spec(path)), state)


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
