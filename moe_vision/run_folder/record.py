"""Records what a run was asked to do (`config.json`) and what came out (`result.json`)."""

import dataclasses
import functools
import importlib.metadata
import json
import math
import platform
import subprocess
import zlib
from typing import Any

import jax
from absl import logging
from etils import epath

from input_pipeline import DatasetInfo
from moe_vision.common import limits
from moe_vision.common.errors import UserError
from moe_vision.common.files import read_json, write_json
from moe_vision.common.json_values import as_dict, clean, differences, number, value_at
from moe_vision.common.paths import ROOT
from moe_vision.config import check as config_lib
from moe_vision.config import typed
from moe_vision.config.schema import Config
from moe_vision.leverage import Capacity, Leverage, soft
from moe_vision.run_folder import lives, metrics

_PACKAGES = (
    'jax',
    'jaxlib',
    'flax',
    'optax',
    'orbax-checkpoint',
    'grain',
    'tensorflow-datasets',
    'array-record',
    'numpy',
    'opencv-python-headless',
)
_PIXELS = 2**28  # values of one image; no data set comes near
_CODE = ('moe_vision', 'input_pipeline')  # the folders that decide how a config trains


def dataset_info(workdir: str) -> DatasetInfo:
    """What config.json, or the card of an exported folder, says of the run's data set.

    Raises:
      UserError: it cannot be read, or what it says cannot be.
    """
    path = config_lib.record_of(workdir)
    try:
        info = typed.build(DatasetInfo, read_json(path)['dataset'], 'dataset')
    except FileNotFoundError as e:
        raise UserError(f"'{path}' is missing; copy the whole folder of the run.") from e
    except (OSError, ValueError, KeyError, TypeError, UserError) as e:
        raise UserError(f"'{path}' is damaged: {type(e).__name__}: {e}; restore it.") from e
    for name, fits in {
        'num_classes': info.num_classes == len(info.class_names) > 0,
        'image_shape': min(info.image_shape) > 0 and math.prod(info.image_shape) < _PIXELS,
        'split_sizes': 0 < info.split_sizes.get('train', 0) < 2**63,
    }.items():
        if not fits:
            raise UserError(
                f"'{path}' is damaged: its dataset.{name} cannot be "
                f'{str(getattr(info, name))[:80]}; restore it.'
            )
    return dataclasses.replace(info, class_names=tuple(map(clean, info.class_names)))


def digest(config: Config) -> int:
    """A 32-bit hash of a config, to notice when two of them differ."""
    return zlib.crc32(json.dumps(config_lib.to_dict(config), sort_keys=True).encode())


def write_config(
    workdir: str,
    config: Config,
    config_file: str,
    info: DatasetInfo,
    leverage: Leverage,
    start: int,
) -> None:
    """Writes config.json: resolved config, versions, git commit, data set and pre-flight.

    Keeps it in `lives`, too, where the next start of the run will not replace it.

    Args:
      start: the step after which this start of the run begins.

    Raises:
      UserError: it cannot be written.
    """
    about = {
        'config': config_lib.to_dict(config),
        'config_file': config_file,
        'versions': versions(),
        'git_commit': git_commit(),
        'device': jax.devices()[0].device_kind,
        'dataset': dataclasses.asdict(info),
        'preflight': facts(leverage)
        | {
            'blocks': [dataclasses.asdict(b) for b in leverage.blocks],
            'capacity': {
                n: dataclasses.asdict(c) | {'num_groups': _groups(config, c)}
                for n, c in leverage.capacities.items()
            },
        },
    }
    lives.keep(workdir, about, start)
    write_json(epath.Path(workdir) / 'config.json', about, UserError)


def _groups(config: Config, capacity: Capacity) -> int:
    """The number of routing groups in a micro-batch."""
    images = config.train.batch_size // config.train.micro_batches
    return images * capacity.tokens_per_image // capacity.group_size


def facts(leverage: Leverage) -> dict[str, float]:
    """The numbers of the pre-flight that `result.json` repeats."""
    names = (
        'params_total',
        'params_active',
        'rho_place',
        'rho_active',
        'rho_executed',
        'flops',
        'flops_executed',
    )
    return {n: getattr(leverage, n) for n in names}


def versions() -> dict[str, str]:
    """The versions of Python and of the installed packages that decide how a config trains."""
    installed = {'python': platform.python_version()}
    for name in _PACKAGES:
        try:
            installed[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return installed


def other_code(workdir: str) -> list[str]:
    """How versions and commit differ from those in config.json: 'versions.jax 0.9 -> 0.10'."""
    try:
        before = as_dict(read_json(f'{workdir.rstrip("/")}/config.json'))
    except (OSError, ValueError):
        return []
    now = {'versions': versions(), 'git_commit': git_commit()}
    return [
        line
        for key, value in now.items()
        if before.get(key) and value
        for line in differences(before[key], value, path=(key,))
    ]


@functools.cache
def git_commit() -> str | None:
    """The last commit that changed this code, with '+changes' if files differ from it, or None.

    Commits that change only other folders, such as rows of a study, do not count. The result is
    cached, because the process does not run what is changed later.
    """

    def git(*args: str) -> str:
        return subprocess.run(
            ['git', '-C', str(ROOT), *args, '--', *_CODE],
            text=True,
            capture_output=True,
            check=True,
            timeout=10,
        ).stdout.strip()

    try:
        commit = git('log', '-1', '--format=%H')
        return commit and commit + ('+changes' if git('status', '--porcelain') else '') or None
    except (OSError, subprocess.SubprocessError):
        return None


def result(
    config: Config,
    leverage: Leverage,
    test: dict[str, Any],
    best_validation: float | None,
    selected: float | None,
    steps: int,
    images_per_second: float,
) -> dict[str, Any]:
    """What `result.json` holds; docs/run_folder.md describes every field.

    Of several routed layers it takes the worst value: the highest drop and orphan rate, the fewest
    effective experts, the most dead ones.

    Args:
      test: the score of the test split with the last weights.
      selected: test accuracy of the checkpoint that was best on validation.
      steps: optimizer steps done.
    """
    layers = list(test['layers'].values())
    out = {
        'test_accuracy': test['accuracy'],
        'test_loss': test['loss'],
        'test_accuracy_unbounded': test['accuracy_unbounded'],
        'test_accuracy_selected': selected,
        'best_validation_accuracy': best_validation,
        'seed': config.seed,
        'steps': steps,
        **facts(leverage),
        'images_per_second': images_per_second,
        'drop_rate': max((x['drop_rate'] for x in layers), default=0.0),
        'orphan_rate': max((x['orphan_rate'] for x in layers), default=0.0),
        'effective_experts': min((x['effective_experts'] for x in layers), default=None),
        'dead_experts': max((x['dead_experts'] for x in layers), default=0),
        'collapsed': collapsed(test['layers']),
    }
    if layers and not soft(config.model):
        out['rho_active'] = leverage.rho_active_at(
            {n: x['choices_per_token'] for n, x in test['layers'].items()},
            {n: x['load'] for n, x in test['layers'].items()},
        )
    return out


def collapsed(layers: dict[str, dict[str, Any]]) -> bool:
    """Whether any layer has collapsed, as `limits` defines it."""
    return any(
        limits.why_collapsed(x['effective_experts'], x['dead_experts'], len(x['load']))
        for x in layers.values()
    )


def rate_before(workdir: str) -> float:
    """Images per second as an earlier start of the run recorded them; NaN if none did."""
    rates = [value_at(r, 'timing', 'images_per_second') for r in metrics.read(workdir)]
    try:
        rates.append(
            as_dict(read_json(epath.Path(workdir) / 'result.json')).get('images_per_second')
        )
    except FileNotFoundError:
        pass
    except ValueError as e:
        logging.warning("'%s/result.json' cannot be read (%s) and will be replaced", workdir, e)
    return next((r for r in map(number, reversed(rates)) if not math.isnan(r)), math.nan)
