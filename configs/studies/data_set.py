"""What a data set gives to the experiments: networks, lengths of training, margins."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

Overrides = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Network:
    """One network with routed places.

    Attributes:
      overrides: keys of the config that say it.
      rho: rho_place, to three digits; a test holds it to what is measured.
    """

    overrides: Overrides
    rho: float


@dataclasses.dataclass(frozen=True)
class DataSet:
    """The numbers of one data set.

    Attributes:
      name: the argument of study files, and what the names of studies start with.
      config: the config file that every arm starts from.
      recipe: overrides of every arm: data, training, evaluation.
      learning_rate, epochs: of every arm; tuned on validation where `tuning` says so.
      classes: number of classes, to place E * slots beside it.
      seeds: of the reported runs.
      margin: of equivalence, pp.
      seed_mode: as in `Study`.
      tuning: how learning rate and epochs were chosen.
      sweep: E1, family -> the networks of growing hidden width.
      backbone: E3 to E7, a network whose routed places have a rho near 0.38.
      half_hidden: the hidden width at which one of its experts has half the FLOPs.
      head, every: E2, the same network routed at the head (rho below 1 %), at every so many blocks.
      soft_group: images over which batch-axis Soft MoE mixes.
      soft_batch: (E, slots per expert) of batch-axis Soft MoE, rising E * slots, the first below
        and the last above the number of classes.
      soft_per_sample: E of per-sample Soft MoE, where each expert is one slot.
      rates, lengths: the grid of learning rates and epochs that was tuned over; () where none was.
    """

    name: str
    config: str
    recipe: Overrides
    learning_rate: float
    epochs: float
    classes: int
    seeds: tuple[int, ...]
    margin: float
    tuning: str
    sweep: Mapping[str, tuple[Network, ...]]
    backbone: Network
    half_hidden: int
    head: Network
    every: Network
    soft_group: int
    soft_batch: tuple[tuple[int, int], ...]
    soft_per_sample: tuple[int, ...]
    rates: tuple[float, ...] = ()
    lengths: tuple[float, ...] = ()
    seed_mode: Literal['one_by_one', 'together'] = 'one_by_one'
