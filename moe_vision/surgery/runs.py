"""Reads the run that surgery begins with."""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from moe_vision.common.errors import UserError
from moe_vision.common.files import read_json
from moe_vision.common.json_values import as_dict
from moe_vision.config import check as config_lib
from moe_vision.config.schema import Config
from moe_vision.run_folder import checkpoints, metrics, record
from moe_vision.surgery.state import COLLECTIONS, State, leaves


@dataclasses.dataclass(frozen=True)
class Run:
    """A run's newest checkpoint.

    Attributes:
      weights: those it trained.
      averaged: with their moving average in the place of the weights; None if it kept none.
      moments: arrays of the optimizer's state by path.
    """

    folder: str
    config: Config
    step: int
    weights: State
    averaged: State | None
    moments: Mapping[str, np.ndarray]

    @property
    def scored(self) -> State:
        """The weights that the run was scored with."""
        return self.averaged or self.weights


def read(folder: str, state: Mapping[str, Any] | None = None) -> Run:
    """The run in a folder.

    Args:
      state: one of its checkpoints, as `load_raw` returns it; None reads the newest.

    Raises:
      UserError: there is no run, or it cannot be read.
    """
    config = config_lib.load(folder)
    names = record.dataset_info(folder).class_names
    saved = checkpoints.load_raw(folder) if state is None else state
    about = {'validation': _validation(folder), 'mechanism': _json(folder, 'mechanism')}
    arrays = {n: leaves(saved.get(n)) for n in COLLECTIONS}
    weights = State(
        arrays['params'], arrays['batch_stats'], arrays['router_state'], names, about=about
    )
    average = leaves(saved.get('ema'))
    averaged = dataclasses.replace(weights, params=average) if average else None
    step = int(saved['step'])
    return Run(folder, config, step, weights, averaged, leaves(saved.get('opt_state')))


def with_data_of(there: Config, here: Config) -> Config:
    """The config of a source, with the place of its data set as the config of the result names it.

    An exported folder names no place, and that of a run from elsewhere may not be on this machine.
    """
    if there.dataset.name != here.dataset.name or not here.dataset.data_dir:
        return there
    dataset = dataclasses.replace(there.dataset, data_dir=here.dataset.data_dir)
    return dataclasses.replace(there, dataset=dataset)


def _validation(folder: str) -> dict[str, Any]:
    """What routed layers did on validation images, by path: at the last validation of training, or
    where there was none, as `--mode=eval` says. Experts are chosen by it, never by test images."""
    rows = [row for row in metrics.read(folder) if row['split'] == 'validation']
    scored = rows[-1] if rows else _json(folder, 'evaluation-validation')
    return as_dict(scored.get('layers'))


def _json(folder: str, name: str) -> dict[str, Any]:
    path = os.path.join(folder, f'{name}.json')
    try:
        return as_dict(read_json(path))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as e:
        raise UserError(f"'{path}' cannot be read ({e}); restore it, or delete it.") from e
