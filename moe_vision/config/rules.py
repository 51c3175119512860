"""What a typed config must satisfy beyond its types: ranges, divisibility, keys that nobody reads.

`schema` states the ranges; `routing_rules` holds the rules of the routed places. These rules read
no data.
"""

import contextlib
import dataclasses
import math
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import input_pipeline
from input_pipeline import DataError, DatasetInfo
from moe_vision.common.errors import UserError
from moe_vision.common.paths import runs_near
from moe_vision.config import registry, routing_rules, schema, surgery
from moe_vision.config.group_rules import check_image_size, fits
from moe_vision.config.schema import Config

_INT = 2**31 - 1  # the largest number of steps, images or sizes: an int32 on the device
_FLOAT = 3.4e38  # the largest float32, in digits that people read
_DURATIONS = ('train.', 'eval.every_', 'checkpoint.every_')  # each with `epochs` and `steps`


def check(config: Config, defaults: Config) -> None:
    """Every rule that needs no data set.

    Args:
      config: one whose names, arguments and types were checked.
      defaults: the same with every key at its default, to see which keys are set.

    Raises:
      UserError: the first rule that is broken, in one line.
    """
    _ranges(config)
    for name in config.log.trackers:
        registry.entry('tracker', registry.TRACKERS, name)
    _durations(_values(config))
    _training(config)
    _initial(config)
    _unread(config, _values(config), _values(defaults))
    if config.model.moe.placement == 'none':
        if config.model.twin != 'none':
            raise UserError(
                f"model.twin is '{config.model.twin}' but model.moe.placement is "
                "'none'; a twin needs a routed network."
            )
        return
    routing_rules.check(config)


def check_data(config: Config, reads: bool, split: str = '') -> DatasetInfo:
    """`check_with_data`, and if the run `reads` images, that they are there. Imports no jax.

    All images that are scored must be there and whole, so that a run does not end without a result.

    Args:
      split: the one split that is scored, as `eval.split` says it; '' for all that training scores.

    Returns:
      The data set's metadata.

    Raises:
      UserError, DataError: the first rule that is broken, in one line.
    """
    info = input_pipeline.info(config.dataset)
    check_with_data(config, info)
    if reads:
        input_pipeline.require(config.dataset, prepare=False)
        splits = [to_score(split, info)] if split else check_to_train(config, info)
        input_pipeline.check_images(config.dataset, splits)
    return info


def check_to_train(config: Config, info: DatasetInfo) -> list[str]:
    """Returns the splits that a training run scores.

    Raises:
      UserError, DataError: there is none, or memory cannot hold the images that are to be kept.
    """
    input_pipeline.check_kept(config.dataset)
    if info.scored not in info.split_sizes:
        raise UserError(
            f"'{info.name}' has neither test nor validation images to score a run on; set "
            'dataset.validation_fraction above 0 (0.1 is usual), or add test images.'
        )
    return [split for split in ('validation', 'test') if split in info.split_sizes]


def to_score(split: str, info: DatasetInfo) -> str:
    """The split that `eval.split` means: the test split of a set without one is validation.

    Raises:
      UserError: the set has no such split.
    """
    split = info.scored if split == 'test' else split
    if split not in info.split_sizes:
        raise UserError(
            f"eval.split is '{split}', but {info.name} has {', '.join(info.split_sizes)}."
        )
    return split


def check_with_data(config: Config, info: DatasetInfo) -> None:
    """The rules that need the data set's metadata: image size, number of images and of classes.

    Raises:
      UserError: the first rule that is broken, in one line.
    """
    train, images = config.train, info.split_sizes['train']
    if train.batch_size > images:
        raise UserError(
            f"train.batch_size is {train.batch_size} but '{info.name}' has only "
            f'{images} training images.'
        )
    if config.eval.train_images > images:
        raise UserError(
            f"eval.train_images is {config.eval.train_images} but '{info.name}' has only {images} "
            'training images; give at most that many, or 0 to score none.'
        )
    total = total_steps(config, images)
    warmup = train.warmup_steps or train.warmup_epochs * images / train.batch_size
    if warmup >= total:
        raise UserError(
            f'warm-up takes {warmup:.0f} of {total:.0f} steps; shorten '
            'train.warmup_epochs (or warmup_steps), or train longer.'
        )
    check_image_size(config, *info.image_shape[:2])
    routing_rules.check_classes(config, info.num_classes)


def total_steps(config: Config, train_images: int) -> int:
    """How many optimizer steps a run on `train_images` images takes; at least 1.

    Raises:
      UserError: too many to count.
    """
    train = config.train
    total = train.steps or train.epochs * (train_images / train.batch_size)
    if total > _INT:
        raise UserError(
            f'train.{"steps" if train.steps else "epochs"} makes {total:,.12g} optimizer steps; at '
            f'most {_INT:,} can be counted.'
        )
    return max(round(total), 1)


def _initial(config: Config) -> None:
    kind = config.init_kind
    if config.init_args and not kind:
        raise UserError("init_args is set but is not read: init_kind is ''; set that, too.")
    if kind and not config.init_from:
        raise UserError(f"init_kind is '{kind}' but is not read: init_from names no run.")
    if kind and surgery.SURGERY[kind].needs:
        reads = {'file': 'a file', 'runs': 'several runs'}[surgery.SURGERY[kind].needs[0]]
        raise UserError(
            f"init_kind is '{kind}', which reads {reads}; "
            f'python -m moe_vision.surgery {kind} makes a run of it, and init_from reads that.'
        )


def check_init(config: Config) -> None:
    """Raises UserError if `init_from` names no folder of a run. Does not probe buckets."""
    folder = config.init_from
    if not folder or '://' in folder:
        return
    if not os.path.isdir(folder):
        raise UserError(
            f"init_from is '{folder}'; there is no such folder. Give the "
            "workdir of a run, or '' to start from fresh weights."
        )
    if not os.path.isdir(os.path.join(folder, 'checkpoints', 'latest')):
        raise UserError(
            f"init_from is '{folder}', which holds no checkpoints; {runs_near(folder)}, or '' to "
            'start from fresh weights.'
        )


def check_workdir(workdir: str, create: bool) -> None:
    """Tries to write to the folder. Does not probe buckets (`gs://`).

    Raises:
      UserError: the folder does not exist and may not be created, or cannot be written.
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
        raise UserError(
            f"workdir '{workdir}' cannot be written: {e.strerror}; "
            'give --workdir a folder of your own.'
        ) from e


@contextlib.contextmanager
def workdir(folder: str, create: bool) -> Iterator[None]:
    """`check_workdir`; if what follows is refused and wrote nothing, removes the folder it made."""
    existed = os.path.isdir(folder)
    check_workdir(folder, create)
    try:
        yield
    except (UserError, DataError):
        if not existed and '://' not in folder:
            with contextlib.suppress(OSError):  # it is not empty, or gone
                os.rmdir(folder)
        raise


def _values(config: Config) -> dict[str, Any]:
    """The value of every key by its dotted path."""
    return {key: value for key, value, _ in schema.keys(config)}


def _ranges(config: Config) -> None:
    for key, value, limits in schema.keys(config):
        if isinstance(value, tuple) and limits.get('positive') and any(v <= 0 for v in value):
            raise UserError(f'{key} is {value}; each must be positive (inf is room for all).')
        numbers = [(key, value)]
        if isinstance(value, Mapping):  # such as model.moe.losses
            numbers = [(f'{key}.{n}', v) for n, v in value.items()]
        elif isinstance(value, tuple):
            numbers = [(key, v) for v in value]
        for name, number in numbers:
            if isinstance(number, int | float) and not isinstance(number, bool):
                _range(name, number, limits)
    ranges = {f.name: f.metadata for f in dataclasses.fields(schema.Moe)}
    for layer, at in config.model.moe.layers.items():
        for name, number in dataclasses.asdict(at).items():
            if number is not None:
                _range(f'model.moe.layers.{layer}.{name}', number, ranges[name])


def largest(number: int | float, limits: Mapping[str, Any]) -> int | float:
    """The largest value of a key that holds a number.

    Args:
      limits: what `key` was given.
    """
    if limits.get('at_most') is not None:
        return limits['at_most']
    return _INT if isinstance(number, int) else _FLOAT


def _range(key: str, number: float, limits: Mapping[str, Any]) -> None:
    if math.isinf(number) and not limits.get('infinite'):
        raise UserError(f'{key} is {number}; it must be finite.')
    most = largest(number, limits)
    if most < number < math.inf:
        shown = f'{most:,}' if isinstance(most, int) else f'{most:g}'
        raise UserError(f'{key} is {number}; it must be at most {shown}.')
    positive = limits.get('positive')
    if number < 0 or (number == 0 and positive):
        wanted = 'be positive' if positive else 'not be negative'
        raise UserError(f'{key} is {number}; it must {wanted}.')
    if limits.get('below_one') and number >= 1:
        raise UserError(f'{key} is {number}; allowed: 0 <= {key.split(".")[-1]} < 1.')
    if limits.get('share') and number > 1:
        raise UserError(f'{key} is {number}; it is a share, from 0 to 1.')


def _durations(values: Mapping[str, Any]) -> None:
    for stem in _DURATIONS:
        if not values[f'{stem}epochs'] and not values[f'{stem}steps']:
            raise UserError(f'{stem}epochs and {stem}steps are both 0; set one of them.')


def _training(config: Config) -> None:
    train = config.train
    if train.batch_size % train.micro_batches:
        raise UserError(
            f'train.batch_size {train.batch_size} is not divisible by '
            f'train.micro_batches {train.micro_batches}; '
            f'{fits(train.batch_size, train.micro_batches)}.'
        )
    for unit in ('epochs', 'steps'):
        warmup, total = getattr(train, f'warmup_{unit}'), getattr(train, unit)
        overruled = unit == 'epochs' and (train.steps or train.warmup_steps)
        if total and not overruled and warmup >= total:
            raise UserError(
                f'train.warmup_{unit} is {warmup} of train.{unit} {total}; it must be less.'
            )
    try:
        re.compile(train.trainable)
    except re.error as e:
        raise UserError(
            f"train.trainable is '{train.trainable}', not a regular expression: {e}; "
            "'.*' trains everything."
        ) from e


def _unread(config: Config, values: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Refuses a key that is set where nothing reads it.

    A dense twin is its routed config with `model.twin` set, so it may keep the routing keys.
    """
    moe, backbone = (
        config.model.moe,
        registry.entry('backbone', registry.BACKBONES, config.model.name),
    )
    if config.model.remat and not backbone.remat:
        raise UserError(
            f"model.remat is True but is not read: backbone '{config.model.name}' "
            'does not offer it; leave it at its default.'
        )
    if moe.placement == 'none':
        because = "model.moe.placement is 'none'"
        keys = [k for k in values if k.startswith(('model.moe.', 'mesh.', 'log.warn_'))]
        keys = [k for k in keys if k not in ('model.moe.placement', 'mesh.shard_optimizer')]
        keys.append('eval.capacity_factors')
    else:
        router = registry.entry('router', registry.ROUTERS, moe.router)
        because = f"model.moe.router is '{moe.router}'"
        keys = [f'model.moe.{k}' for k in router.ignores]
        if 'eval_capacity_factor' in router.ignores:
            keys.append('eval.capacity_factors')
        for layer, at in moe.layers.items():
            for key in router.ignores:
                if getattr(at, key, None) is not None:
                    raise UserError(
                        f'model.moe.layers.{layer}.{key} is set to {getattr(at, key)} but is not '
                        f'read: {because}; leave it out.'
                    )
    for key in keys:
        value, default = values[key], defaults[key]
        if dataclasses.is_dataclass(value) and type(value) is not type(default):
            kind: Any = type(value)
            default = kind()
        if key == 'model.moe.expert':
            default = backbone.expert
        if value != default:
            given = vars(value) if dataclasses.is_dataclass(value) else value
            raise UserError(
                f'{key} is set to {given} but is not read: {because}; leave it at its default.'
            )
