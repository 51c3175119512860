"""Describes what a config will train and what it costs, before anything is compiled."""

import math
from collections.abc import Mapping

import jax

from input_pipeline import DatasetInfo
from moe_vision.check import transforms
from moe_vision.config.schema import Config
from moe_vision.leverage import Leverage, measure, table
from moe_vision.models.parts import BATCH_NORM_MOMENTUM
from moe_vision.training import mesh as mesh_lib
from moe_vision.training import traffic
from moe_vision.training.schedule import Durations, durations

_MOST_INITIAL = 0.005  # of batch norm's running averages; 50 updates leave this share


def summary(config: Config, info: DatasetInfo) -> None:
    """Prints the pre-flight of a config, as `described` makes it."""
    print(described(config, info))


class Text(str):
    """Text that shows as its lines at a prompt and in a notebook."""

    def __repr__(self) -> str:
        return str(self)


def described(config: Config, info: DatasetInfo) -> str:
    """The pre-flight of a config, in several lines. Reads no images.

    Args:
      config, info: already checked against each other by `rules.check_data`.
    """
    transforms.check(config, info)
    expert = config.mesh.expert
    fits = jax.device_count() % expert == 0
    shape = mesh_lib.make(expert).shape if fits else {'data': 1, 'expert': expert}
    told = text(
        config, info, shape, measure(config, info), durations(config, info.split_sizes['train'])
    )
    if not fits:
        return (
            f'mesh.expert is {expert}, which does not fit the {jax.device_count()} device(s) of '
            f'this machine; shown for {expert} devices\n{told}'
        )
    return told


def text(
    config: Config,
    info: DatasetInfo,
    mesh_shape: Mapping[str, int],
    leverage: Leverage,
    times: Durations,
) -> str:
    """The pre-flight of a config on a mesh, in several lines."""
    model, train = config.model, config.train
    device = jax.devices()[0]
    h, w, c = info.image_shape
    sizes = ', '.join(f'{n:,} {split}' for split, n in info.split_sizes.items())
    lines = [
        f'devices     {math.prod(mesh_shape.values())} × {device.device_kind} ({device.platform}), '
        f'mesh data {mesh_shape["data"]} × expert {mesh_shape["expert"]}, '
        f'{jax.process_count()} process{"es" if jax.process_count() > 1 else ""}',
        f'data        {info.name}: {sizes}; {info.num_classes} classes, {h}×{w}×{c}'
        + ('' if info.scored == 'test' else '; no test split, so the run is scored on validation'),
        f'network     {model.name}, {table.network(config)}; {model.dtype}',
        f'parameters  {leverage.params_total:,} total, {leverage.params_active:,} active',
        f'training    {times.total:,} steps of {train.batch_size} images '
        f'({times.total / times.per_epoch:.1f} epochs), {train.optimizer}, '
        f'peak learning rate {train.learning_rate:g}'
        + (f', {train.micro_batches} micro-batches' if train.micro_batches > 1 else ''),
        *_short_for_batch_norm(config, times),
        '',
        *table.text(config, leverage),
    ]
    if mesh_shape['expert'] > 1:
        try:
            lines += traffic.lines(traffic.of_layers(config, leverage, mesh_shape))
        except ValueError as e:  # groups that do not fit: training will refuse them
            lines.append(f'no training on this mesh: {e}')
    return '\n'.join(lines)


def _short_for_batch_norm(config: Config, times: Durations) -> list[str]:
    """A line if so few updates are planned that evaluation will differ from training."""
    updates = times.total * config.train.micro_batches
    initial = BATCH_NORM_MOMENTUM**updates
    batch = getattr(config.model.args, 'norm', '') == 'batch'
    if not batch or config.init_from or initial < _MOST_INITIAL:
        return []
    return [
        f'batch norm  {updates} updates are few: evaluation uses running averages that still hold '
        f'{initial:.0%} of their initial values and lag behind the weights, so it scores less than '
        "training; train longer, or set model.args.norm to 'group'"
    ]
