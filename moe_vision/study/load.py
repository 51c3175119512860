"""Loads a study file and checks all of it, every arm's config included, without importing jax."""

import dataclasses
import fnmatch
import os
from collections.abc import Iterable, Mapping
from typing import Any

import input_pipeline
from input_pipeline import DataError
from moe_vision.common.errors import UserError, unknown
from moe_vision.common.paths import ROOT, expanded
from moe_vision.config import check as config_lib
from moe_vision.config import rules, source
from moe_vision.config.schema import Config
from moe_vision.study.checks import checked
from moe_vision.study.types import Arm, Study

OPERATIONAL = (
    'dataset.data_dir',
    'dataset.workers',
    'dataset.cache',
    'dataset.resident',
    'checkpoint.',
    'log.',
)  # keys that change no result
_SETTABLE = tuple(k for k in OPERATIONAL if k not in ('dataset.cache', 'dataset.resident'))


def operational(key: str) -> bool:
    """Whether a config key changes only how a run is carried out, not its result."""
    return any(key == k or (k.endswith('.') and key.startswith(k)) for k in OPERATIONAL)


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A study that passed all checks.

    Attributes:
      configs: arm -> its config, with seed 0.
      overrides: as `load` was given them.
      tuned: what `study.tuning` chose; it is part of `configs` and of the registration.
    """

    study: Study
    configs: dict[str, Config]
    overrides: tuple[str, ...] = ()
    tuned: dict[str, Any] | None = None

    def config(self, arm: str, seed: int) -> Config:
        """The config of one cell."""
        return dataclasses.replace(self.configs[arm], seed=self.run_seed(arm, seed))

    def run_seed(self, arm: str, seed: int) -> int:
        """The seed that the run of a cell uses: the study's seed plus the arm's offset."""
        return seed + self.study.arms[arm].seed_offset


def load(file: str, overrides: Iterable[str] = ()) -> Loaded:
    """Loads a study and checks it.

    Args:
      file: `FILE.py`, which defines `get_study()`, or `FILE.py:ARGUMENT` for `get_study(ARGUMENT)`.
      overrides: '--config.key=value' of operational keys, for all arms.

    Raises:
      UserError, DataError: the first thing that is wrong, in one line.
    """
    study = source.run(file, 'study', 'configs/studies')
    if not isinstance(study, Study):
        raise UserError(
            f"study file '{file}': get_study() returned a {type(study).__name__}; it "
            'must return a moe_vision.study.types.Study.'
        )
    overrides = tuple(overrides)
    for override in overrides:
        key = override.removeprefix('--config.').split('=', 1)[0]
        if not any(key == k or (k.endswith('.') and key.startswith(k)) for k in _SETTABLE):
            raise UserError(
                f"'--config.{key}' cannot be set for a study, because its arms are "
                'registered. Set it in the study file and use a new --workdir. '
                'Allowed: '
                f'{", ".join(k + "*" if k.endswith(".") else k for k in _SETTABLE)}.'
            )
    return of_study(checked(study), overrides)


def of_study(study: Study, overrides: tuple[str, ...]) -> Loaded:
    """Resolves the config of every arm of a study that passed `checked`.

    Raises:
      UserError, DataError: the first thing that is wrong, in one line.
    """
    configs = {}
    for name, arm in study.arms.items():
        try:
            configs[name] = _config(arm, list(overrides), study.metric)
        except (UserError, DataError) as e:
            raise UserError(f"arm '{name}': {e}") from e
    _check_pairs(study, configs)
    return Loaded(study, configs, overrides)


def matching(names: Iterable[str], patterns: str) -> list[str]:
    """The names that one of the comma-separated patterns (`*`, `?`) matches; '' matches all.

    Raises:
      UserError: a pattern matches none.
    """
    names = list(names)
    matched = set() if patterns else set(names)
    for pattern in filter(None, patterns.split(',')):
        hits = fnmatch.filter(names, pattern)
        if not hits:
            raise unknown('arm in --only', pattern, names)
        matched.update(hits)
    return [n for n in names if n in matched]


def _config(arm: Arm, overrides: list[str], metric: str) -> Config:
    as_flags = [f'--config.{k}={v}' for k, v in arm.overrides.items()]
    common, opened, _ = source.take_overrides(as_flags)
    path = expanded(arm.config)
    path = path if os.getcwd() == str(ROOT) else str(ROOT / path)
    values = source.load(
        path, [*common, *overrides], {k: arm.overrides[k] for k in opened}
    )  # the values, not their text
    config = dataclasses.replace(config_lib.check(values), seed=0)
    info = input_pipeline.info(config.dataset)
    rules.check_with_data(config, info)
    if metric == 'validation_accuracy' and 'validation' not in info.split_sizes:
        raise UserError(
            f"the study's metric is {metric}, but '{info.name}' has no validation images here; set "
            'dataset.validation_fraction above 0 (0.1 is usual).'
        )
    return config


def _check_pairs(study: Study, configs: Mapping[str, Config]) -> None:
    """Refuses a comparison whose two arms read different data."""
    for name, c in study.comparisons.items():
        ours, theirs = (dataclasses.asdict(configs[a].dataset) for a in (c.arm, c.baseline))
        for key in ours:
            if ours[key] != theirs[key] and not operational(f'dataset.{key}'):
                raise UserError(
                    f"comparison '{name}': dataset.{key} is {ours[key]!r} in "
                    f"'{c.arm}' and {theirs[key]!r} in '{c.baseline}'; both must read "
                    'the same data set.'
                )
