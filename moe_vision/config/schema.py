"""The checked config as plain frozen dataclasses: what every module but `config` works with.

Meanings and defaults stand in `configs/base.py`; the names here are the same.
"""

import dataclasses
import re
from typing import Any, Literal

from input_pipeline import DatasetConfig
from moe_vision.common.errors import UserError, nearest

_PLACEMENTS = ('none', 'head', 'last_1', 'every_2')


@dataclasses.dataclass(frozen=True)
class Moe:
    placement: str
    router: str
    router_args: Any  # the router's Args
    num_experts: int
    k: int
    capacity_factor: float
    eval_capacity_factor: float
    capacity_multiple: int
    group_size: int
    priority: Literal['token', 'gate', 'random']
    expert: str  # resolved: never ''
    expert_args: Any  # the expert's Args
    hidden: int
    losses: dict[str, float]


@dataclasses.dataclass(frozen=True)
class Model:
    name: str
    args: Any  # the backbone's Args
    dtype: Literal['float32', 'bfloat16']
    remat: bool
    twin: Literal['none', 'same_width', 'same_active_flops', 'same_params', 'same_drops']
    moe: Moe


@dataclasses.dataclass(frozen=True)
class Train:
    epochs: float
    steps: int
    batch_size: int
    micro_batches: int
    optimizer: str
    optimizer_args: Any
    learning_rate: float
    warmup_epochs: float
    warmup_steps: int
    weight_decay: float
    label_smoothing: float
    clip_norm: float
    ema_decay: float
    mixup: float
    cutmix: float
    trainable: str
    skip_nonfinite: int


@dataclasses.dataclass(frozen=True)
class Eval:
    split: Literal['train', 'validation', 'test']
    batch_size: int
    every_epochs: float
    every_steps: int
    capacity_factors: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Mesh:
    expert: int
    shard_optimizer: bool


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    every_epochs: float
    every_steps: int
    keep: int


@dataclasses.dataclass(frozen=True)
class Log:
    every_steps: int
    warn_drop_rate: float
    warn_max_over_mean: float


@dataclasses.dataclass(frozen=True)
class Config:
    seed: int
    init_from: str
    dataset: DatasetConfig
    model: Model
    train: Train
    eval: Eval
    mesh: Mesh
    checkpoint: Checkpoint
    log: Log


def routed_blocks(placement: str, blocks: int | None = None) -> tuple[int, ...]:
    """The numbers, from 0, of the blocks that `model.moe.placement` routes.

    `last_2` of 6 blocks is (4, 5), `every_2` is (1, 3, 5), `1,3` is (1, 3); `head` is ().

    Args:
      placement: none, head, last_N, every_N, or block numbers separated by commas.
      blocks: how many there are; None checks the spelling alone and returns ().

    Raises:
      UserError: not one of these forms, or a block that does not exist.
    """
    if placement in ('none', 'head'):
        return ()
    match = re.fullmatch(r'(last_|every_|)(\d+(?:,\d+)*)', placement.replace(' ', ''))
    form, listed = match.groups() if match else ('', '')
    numbers = [int(n) for n in listed.split(',') if n]
    if len(set(numbers)) != len(numbers) or not numbers or (
            form and (len(numbers) > 1 or numbers[0] < 1)):
        raise UserError(f"model.moe.placement is '{placement}'.{nearest(placement, _PLACEMENTS)} "
                        "Allowed: none, head, last_N, every_N, or block numbers such as '1,3'.")
    if blocks is None:
        return ()
    most = blocks if form else blocks - 1
    if max(numbers) > most:
        raise UserError(f"model.moe.placement is '{placement}' but the backbone has {blocks} "
                        f'blocks; the largest number here is {most}.')
    if form == 'last_':
        return tuple(range(blocks - numbers[0], blocks))
    if form == 'every_':
        return tuple(range(numbers[0] - 1, blocks, numbers[0]))
    return tuple(sorted(numbers))
