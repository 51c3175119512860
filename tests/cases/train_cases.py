"""A tiny run with everything: router state, batch norm, moving average, mixing, two groups."""

import functools
import json
import os
from pathlib import Path

import jax
import numpy as np

from configs import base
from moe_vision.common import quick
from moe_vision.common.paths import path_name
from moe_vision.config import check as config_lib
from moe_vision.config.schema import Config
from moe_vision.processes.stop import Stop
from moe_vision.run_folder import checkpoints, metrics, record
from moe_vision.training.setup import Setup

ROOT = Path(__file__).resolve().parent.parent.parent

TINY = {
    'dataset.cache': True,
    'dataset.augment': 'pad_crop',
    'model.args': {'widths': (8, 16), 'depth': 1},
    'model.moe.router': 'bias_balanced',
    'model.moe.router_args': {'bias_rate': 0.01},
    'model.moe.losses': {'switch': 0.01},
    'model.moe.num_experts': 4,
    'model.moe.group_size': 16,
    'train.batch_size': 32,
    'train.steps': 12,
    'train.warmup_epochs': 0.0,
    'train.warmup_steps': 2,
    'train.learning_rate': 3e-3,
    'train.label_smoothing': 0.1,
    'train.ema_decay': 0.8,
    'train.mixup': 0.2,
    'eval.every_steps': 4,
    'checkpoint.every_steps': 5,
    'log.every_steps': 3,
}
TOP_K = {
    'model.moe.router': 'top_k',
    'model.moe.router_args': {'noise': 'gaussian'},
    'model.moe.losses': {'importance': 0.01, 'load': 0.01},
}
VIT = {
    'model.name': 'vit',
    'model.moe.group_size': 16,
    'model.args': {'width': 8, 'depth': 2, 'heads': 2, 'patch_size': 2},
}


def round_as_users_do(patch) -> None:
    """Draws initial values without the flag of conftest.py by which the rounding of a value depends
    on what else the program computes."""
    if 'CPU_OPT_PRESET_FAST' in os.environ.get('XLA_FLAGS', ''):
        options = {'xla_cpu_opt_preset': 'CPU_OPT_PRESET_DEFAULT'}
        patch.setattr(quick, 'UNOPTIMIZED', quick.UNOPTIMIZED | options)


def make(data_dir: str, changes: dict | None = None, start: dict | None = None) -> Config:
    """The checked tiny config, with the keys in `changes` set by dotted path."""
    c = base.get_config()
    for path, value in {
        **(TINY if start is None else start),
        'dataset.data_dir': data_dir,
        **(changes or {}),
    }.items():
        holder, *rest = path.split('.')
        section = c
        for part in [holder, *rest][:-1]:
            section = section[part]
        with section.unlocked(), section.ignore_type():
            section[path.split('.')[-1]] = value
    return config_lib.check(c)


def saved(config: Config, folder, change=lambda state: state):
    """Writes a run's folder with its config and one checkpoint, without training.

    Returns (setup, state).
    """
    setup = Setup(config)
    record.write_config(str(folder), config, 'mine.py', setup.info, setup.cost, 0)
    state = change(setup.fresh_state())
    with checkpoints.Checkpoints(str(folder), 1) as saves:
        saves.save(int(state.step), state)
    return setup, state


def share_setups(patch, *modules) -> None:
    """Makes modules take the setup of an equal config that they built before.

    The programs are traced and compiled once; test_seeds.py holds that this changes no bit.
    """
    built: list[tuple[Setup, bool]] = []

    def shared(config: Config, for_training: bool = True) -> Setup:
        for setup, trains in built:
            if setup.fits(config) and trains >= for_training:
                return setup
        built.append((Setup(config, for_training), for_training))
        return built[-1][0]

    for module in modules:
        patch.setattr(module, 'Setup', shared)


def rows(workdir) -> list[dict]:
    """The metrics rows of a run, without what depends on the clock."""
    return [{k: v for k, v in r.items() if k != 'timing'} for r in metrics.read(str(workdir))]


def result(workdir) -> dict:
    """result.json, without what depends on the clock."""
    values = json.loads((Path(workdir) / 'result.json').read_text())
    return {k: v for k, v in values.items() if k != 'images_per_second'}


def steps(workdir, kind: str = 'latest') -> list[int]:
    folder = Path(workdir) / 'checkpoints' / kind
    return sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit())


def other_data(workdir) -> str:
    """Makes a run's record name other data; returns the digest of its own."""
    file = Path(workdir) / 'config.json'
    record = json.loads(file.read_text())
    digest, record['dataset']['digest'] = record['dataset']['digest'], '0' * 64
    file.write_text(json.dumps(record))
    return digest


def raw(workdir, kind: str = 'latest'):
    """What `load_raw` reads; read once as long as the files stay the same."""
    files = [p for p in (Path(workdir) / 'checkpoints' / kind).rglob('*') if p.is_file()]
    return _raw(str(workdir), kind, tuple(sorted((str(p), p.stat().st_mtime_ns) for p in files)))


@functools.lru_cache(maxsize=4)
def _raw(workdir: str, kind: str, files: tuple) -> dict:
    return checkpoints.load_raw(workdir, kind)


def named(tree) -> dict[str, np.ndarray]:
    """The arrays of a tree by their paths, such as 'params/block_1/router/kernel'."""
    return {path_name(p): np.asarray(x) for p, x in jax.tree_util.tree_leaves_with_path(tree)}


def assert_same_bits(ours, theirs) -> None:
    ours, theirs = (dict(jax.tree_util.tree_leaves_with_path(t)) for t in (ours, theirs))
    assert ours.keys() == theirs.keys()
    for path, value in ours.items():
        a, b = np.asarray(value), np.asarray(theirs[path])
        assert a.dtype == b.dtype and a.shape == b.shape, path
        assert a.tobytes() == b.tobytes(), (path, np.abs(a - b).max())


def assert_same_runs(ours, theirs) -> None:
    """Two folders hold the same run: states, best state, metrics rows and result."""
    assert steps(ours) == steps(theirs)
    assert steps(ours, 'best') == steps(theirs, 'best')
    for kind in ('latest', 'best'):
        assert_same_bits(checkpoints.load_raw(str(ours), kind), raw(theirs, kind))
    assert rows(ours) == rows(theirs)
    assert result(ours) == result(theirs)


class StopAt(Stop):
    """Acts as if SIGTERM came during a certain step."""

    def __init__(self, step: int):
        super().__init__()
        self._step = step

    def at(self, step: int) -> bool:
        return step == self._step
