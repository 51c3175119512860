"""What a config will do, in a table, before anything is compiled."""

import jax

import input_pipeline
from input_pipeline import DatasetInfo
from moe_vision import mesh as mesh_lib
from moe_vision import rules, traffic
from moe_vision.durations import Durations, durations
from moe_vision.leverage import Leverage, measure, table
from moe_vision.settings import Config


def summary(config: Config) -> None:
    """Prints the pre-flight of a config; needs the data set's metadata, but no data."""
    info = input_pipeline.info(config.dataset)
    rules.check_with_data(config, info)
    mesh = mesh_lib.make(config.mesh.expert)
    print(text(config, info, mesh, measure(config, info),
               durations(config, info.split_sizes['train'])))


def text(config: Config, info: DatasetInfo, mesh: jax.sharding.Mesh, leverage: Leverage,
         times: Durations) -> str:
    """The pre-flight as lines."""
    model, train = config.model, config.train
    device = jax.devices()[0]
    h, w, c = info.image_shape
    sizes = ', '.join(f'{n:,} {split}' for split, n in info.split_sizes.items())
    lines = [
        f'devices     {jax.device_count()} × {device.device_kind} ({device.platform}), '
        f'mesh data {mesh.shape["data"]} × expert {mesh.shape["expert"]}, '
        f'{jax.process_count()} process{"es" if jax.process_count() > 1 else ""}',
        f'data        {info.name}: {sizes}; {info.num_classes} classes, {h}×{w}×{c}',
        f'network     {model.name}, {table.network(config)}; {model.dtype}',
        f'parameters  {leverage.params_total:,} total, {leverage.params_active:,} active',
        f'training    {times.total:,} steps of {train.batch_size} images '
        f'({times.total / times.per_epoch:.1f} epochs), {train.optimizer}, '
        f'peak learning rate {train.learning_rate:g}'
        + (f', {train.micro_batches} micro-batches' if train.micro_batches > 1 else ''),
        '', *table.text(config, leverage)]
    if mesh.size > 1:
        lines += traffic.text(traffic.of_layers(config, leverage, mesh.shape))
    return '\n'.join(lines)
