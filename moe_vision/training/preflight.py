"""A table of what a config will do, shown before anything is compiled."""

import math
from collections.abc import Mapping

import jax

from input_pipeline import DatasetInfo
from moe_vision.config.schema import Config
from moe_vision.leverage import Leverage, measure, table
from moe_vision.training import mesh as mesh_lib
from moe_vision.training import traffic
from moe_vision.training.schedule import Durations, durations


def summary(config: Config, info: DatasetInfo) -> None:
    """Prints the pre-flight of a config; reads no data.

    Args:
      config, info: checked against each other, as `rules.check_data` does.
    """
    expert = config.mesh.expert
    fits = jax.device_count() % expert == 0
    shape = mesh_lib.make(expert).shape if fits else {'data': 1, 'expert': expert}
    if not fits:
        print(f'mesh.expert {expert} does not divide the {jax.device_count()} of this machine: '
              f'shown as on {expert} devices')
    print(text(config, info, shape, measure(config, info),
               durations(config, info.split_sizes['train'])))


def text(config: Config, info: DatasetInfo, mesh_shape: Mapping[str, int], leverage: Leverage,
         times: Durations) -> str:
    """The pre-flight as lines."""
    model, train = config.model, config.train
    device = jax.devices()[0]
    h, w, c = info.image_shape
    sizes = ', '.join(f'{n:,} {split}' for split, n in info.split_sizes.items())
    lines = [
        f'devices     {math.prod(mesh_shape.values())} × {device.device_kind} ({device.platform}), '
        f'mesh data {mesh_shape["data"]} × expert {mesh_shape["expert"]}, '
        f'{jax.process_count()} process{"es" if jax.process_count() > 1 else ""}',
        f'data        {info.name}: {sizes}; {info.num_classes} classes, {h}×{w}×{c}',
        f'network     {model.name}, {table.network(config)}; {model.dtype}',
        f'parameters  {leverage.params_total:,} total, {leverage.params_active:,} active',
        f'training    {times.total:,} steps of {train.batch_size} images '
        f'({times.total / times.per_epoch:.1f} epochs), {train.optimizer}, '
        f'peak learning rate {train.learning_rate:g}'
        + (f', {train.micro_batches} micro-batches' if train.micro_batches > 1 else ''),
        '', *table.text(config, leverage)]
    if mesh_shape['expert'] > 1:
        try:
            lines += traffic.text(traffic.of_layers(config, leverage, mesh_shape))
        except ValueError as e:  # a summary shows what training would refuse
            lines.append(f'no training on this mesh: {e}')
    return '\n'.join(lines)
