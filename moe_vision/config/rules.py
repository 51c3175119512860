"""What a typed config must satisfy beyond its types: ranges, divisibility, keys that nobody reads.

What is asked of the routed places stands in `routing_rules`. No data is read.
"""

import dataclasses
import math
import os
import re
import tempfile
from collections.abc import Mapping
from typing import Any

import input_pipeline
from input_pipeline import DatasetInfo
from moe_vision.common.errors import UserError
from moe_vision.config import registry, routing_rules
from moe_vision.config.routing_rules import fits
from moe_vision.config.schema import Config

_POSITIVE = (
    'model.moe.num_experts', 'model.moe.k', 'model.moe.capacity_factor',
    'model.moe.eval_capacity_factor', 'model.moe.capacity_multiple', 'model.moe.group_size',
    'train.batch_size', 'train.micro_batches', 'train.learning_rate', 'eval.batch_size',
    'mesh.expert', 'checkpoint.keep', 'log.every_steps', 'log.warn_max_over_mean')
_BELOW_ONE = ('train.label_smoothing', 'train.ema_decay')
_MAY_BE_INFINITE = ('model.moe.capacity_factor', 'model.moe.eval_capacity_factor')
_DURATIONS = ('train.', 'eval.every_', 'checkpoint.every_')  # each with `epochs` and `steps`


def check(config: Config, defaults: Config) -> None:
    """Every rule that needs no data set.

    Args:
      config: names, arguments and types are already right.
      defaults: of the common keys, to tell which are set.

    Raises:
      UserError: the first rule that is broken, in one line.
    """
    leaves = _leaves(config)
    _ranges(leaves)
    _training(config)
    _unread(config, leaves, _leaves(defaults))
    if config.model.moe.placement == 'none':
        if config.model.twin != 'none':
            raise UserError(f"model.twin is '{config.model.twin}' but model.moe.placement is "
                            "'none'; a twin needs a routed network.")
        return
    routing_rules.check(config)


def check_data(config: Config, reads: bool) -> DatasetInfo:
    """`check_with_data`, and that the data are there where the run `reads` them; without jax.

    Returns:
      The data set's metadata.

    Raises:
      UserError, DataError: the first rule that is broken, in one line.
    """
    info = input_pipeline.info(config.dataset)
    check_with_data(config, info)
    if reads:
        input_pipeline.require(config.dataset, prepare=False)
    return info


def check_with_data(config: Config, info: DatasetInfo) -> None:
    """The rules that need the data set's metadata: image size and number of images.

    Raises:
      UserError: the first rule that is broken, in one line.
    """
    train, images = config.train, info.split_sizes['train']
    if train.batch_size > images:
        raise UserError(f"train.batch_size is {train.batch_size} but '{info.name}' has only "
                        f'{images} training images.')
    per_epoch = images / train.batch_size
    total = train.steps or train.epochs * per_epoch
    warmup = train.warmup_steps or train.warmup_epochs * per_epoch
    if warmup >= total:
        raise UserError(f'warm-up takes {warmup:.0f} of {total:.0f} steps; shorten '
                        'train.warmup_epochs (or warmup_steps), or train longer.')
    routing_rules.check_image_size(config, *info.image_shape[:2])
    routing_rules.check_classes(config, info.num_classes)


def check_init(config: Config) -> None:
    """Raises UserError where `init_from` names no folder. Buckets are not probed."""
    if config.init_from and '://' not in config.init_from and not os.path.isdir(config.init_from):
        raise UserError(f"init_from is '{config.init_from}'; there is no such folder. Give the "
                        "workdir of a run, or '' to start from fresh weights.")


def check_workdir(workdir: str, create: bool) -> None:
    """Writes to the folder once. Buckets (`gs://`) are not probed.

    Raises:
      UserError: it does not exist and may not be created, or cannot be written.
    """
    if '://' in workdir:
        return
    if not create and not os.path.isdir(workdir):
        raise UserError(f"workdir '{workdir}' does not exist; give the folder of a trained run.")
    try:
        os.makedirs(workdir, exist_ok=True)
        with tempfile.TemporaryFile(dir=workdir):
            pass
    except OSError as e:
        raise UserError(f"workdir '{workdir}' cannot be written: {e.strerror}; "
                        'give --workdir a folder of your own.') from e


def _leaves(value: Any, path: str = '') -> dict[str, Any]:
    """Common keys by dotted path. Arguments of a method stay whole."""
    if not path or path in ('dataset', 'model', 'model.moe', 'train', 'eval', 'mesh', 'checkpoint',
                            'log'):
        at = f'{path}.' if path else ''
        found: dict[str, Any] = {}
        for field in dataclasses.fields(value):
            found |= _leaves(getattr(value, field.name), at + field.name)
        return found
    return {path: value}


def _ranges(leaves: Mapping[str, Any]) -> None:
    losses = {f'model.moe.losses.{k}': v for k, v in leaves['model.moe.losses'].items()}
    for key, value in {**leaves, **losses}.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        if math.isinf(value) and key not in _MAY_BE_INFINITE:
            raise UserError(f'{key} is {value}; it must be finite.')
        if value < 0 or (value == 0 and key in _POSITIVE):
            wanted = 'be positive' if key in _POSITIVE else 'not be negative'
            raise UserError(f'{key} is {value}; it must {wanted}.')
        if key in _BELOW_ONE and value >= 1:
            raise UserError(f'{key} is {value}; allowed: 0 <= {key.split(".")[-1]} < 1.')
    if leaves['log.warn_drop_rate'] > 1:
        raise UserError(f'log.warn_drop_rate is {leaves["log.warn_drop_rate"]}; it is a share, '
                        'from 0 to 1.')
    if any(factor <= 0 for factor in leaves['eval.capacity_factors']):
        raise UserError(f'eval.capacity_factors is {leaves["eval.capacity_factors"]}; each must be '
                        'positive (inf is room for all).')
    for stem in _DURATIONS:
        if not leaves[f'{stem}epochs'] and not leaves[f'{stem}steps']:
            raise UserError(f'{stem}epochs and {stem}steps are both 0; set one of them.')


def _training(config: Config) -> None:
    train = config.train
    if train.batch_size % train.micro_batches:
        raise UserError(f'train.batch_size {train.batch_size} is not divisible by '
                        f'train.micro_batches {train.micro_batches}; '
                        f'{fits(train.batch_size, train.micro_batches)}.')
    for unit in ('epochs', 'steps'):
        warmup, total = getattr(train, f'warmup_{unit}'), getattr(train, unit)
        overruled = unit == 'epochs' and (train.steps or train.warmup_steps)
        if total and not overruled and warmup >= total:
            raise UserError(f'train.warmup_{unit} is {warmup} of train.{unit} {total}; it must be '
                            'less.')
    try:
        re.compile(train.trainable)
    except re.error as e:
        raise UserError(f"train.trainable is '{train.trainable}', not a regular expression: {e}; "
                        "'.*' trains everything.") from e


def _unread(config: Config, leaves: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Refuses a key that is set where nothing reads it.

    A twin is made from its routed config by one switch, so its routing keys may stand there.
    """
    moe, backbone = config.model.moe, registry.entry('backbone', registry.BACKBONES,
                                                     config.model.name)
    if config.model.remat and not backbone.remat:
        raise UserError(f"model.remat is True but is not read: backbone '{config.model.name}' "
                        'does not offer it; leave it at its default.')
    if moe.placement == 'none':
        because = "model.moe.placement is 'none'"
        keys = [k for k in leaves if k.startswith(('model.moe.', 'mesh.', 'log.warn_'))]
        keys = [k for k in keys if k not in ('model.moe.placement', 'mesh.shard_optimizer')]
        keys.append('eval.capacity_factors')
    else:
        router = registry.entry('router', registry.ROUTERS, moe.router)
        because = f"model.moe.router is '{moe.router}'"
        keys = [f'model.moe.{k}' for k in router.ignores]
        if 'eval_capacity_factor' in router.ignores:
            keys.append('eval.capacity_factors')
    for key in keys:
        value, default = leaves[key], defaults[key]
        if dataclasses.is_dataclass(value) and type(value) is not type(default):
            kind: Any = type(value)
            default = kind()
        if key == 'model.moe.expert':
            default = backbone.expert
        if value != default:
            given = vars(value) if dataclasses.is_dataclass(value) else value
            raise UserError(f'{key} is set to {given} but is not read: {because}; leave it at its '
                            'default.')
