"""Reads a run's folder without trusting it: missing or damaged files become remarks.

Null, NaN and numbers that no float32 holds are all read as NaN. Text loses the characters that no
page may hold.
"""

import dataclasses
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from moe_vision.common import files, limits, metric_rows
from moe_vision.common.errors import UserError
from moe_vision.common.json_values import as_dict, as_list, clean, number, value_at
from moe_vision.common.paths import in_order, runs_near

_LARGEST = 3.5e38  # no number that a run computes in float32 is larger


class Newest(NamedTuple):
    """Numbers of a layer, where they come from in words, and whether that is training."""

    values: dict[str, Any]
    where: str
    trained: bool


class NoRun(UserError):
    """The folder holds no training run; the message is one line."""


@dataclasses.dataclass(frozen=True)
class Run:
    """What a run's folder says. A missing file is an empty dictionary, and a line in `missing`."""

    path: epath.Path
    record: dict[str, Any]  # config.json
    rows: list[dict[str, Any]]  # metrics/*.jsonl by step
    result: dict[str, Any]
    evaluation: dict[str, Any]
    missing: list[str]

    @property
    def folder(self) -> str:
        """The folder's name."""
        return clean(self.path_name) or 'run'

    @property
    def path_name(self) -> str:
        """The folder's name as the file system has it."""
        return self.path.name.strip('.') and self.path.name or files.absolute(self.path).name

    @property
    def name(self) -> str:
        """The data set and the folder, which tell runs apart."""
        return ' · '.join(filter(None, (_text(self.section('dataset').get('name')), self.folder)))

    @property
    def config_name(self) -> str:
        """The config file's name without its folder; '' if it is not known."""
        stem = _text(self.record.get('config_file')).replace('\\', '/').rsplit('/', 1)[-1]
        return stem.replace('.py', '', 1)

    def section(self, key: str) -> dict[str, Any]:
        """A dictionary of config.json (`config`, `dataset`, `preflight`, `versions`), or empty."""
        return as_dict(self.record.get(key))

    def setting(self, dotted: str) -> Any:
        """The value of a dotted config key, or None."""
        return value_at(self.record, 'config', *dotted.split('.'))

    def split(self, name: str) -> list[dict[str, Any]]:
        """The metric rows of `train` or `validation`, by step."""
        return [row for row in self.rows if row.get('split') == name]

    def layers(self) -> list[str]:
        """Names of the routed layers, in the order of the files."""
        names: dict[str, None] = {}
        for source in (*(r.get('layers') for r in self.rows), self.evaluation.get('layers')):
            names.update(dict.fromkeys(as_dict(source)))
        return in_order(names)

    def routed_rows(self) -> list[dict[str, Any]]:
        """The rows whose routing is drawn over time: training, or validation if there is none."""
        train = [row for row in self.split('train') if as_dict(row.get('layers'))]
        return train or [r for r in self.split('validation') if as_dict(r.get('layers'))]

    def latest(self, layer: str) -> 'Newest':
        """The numbers of a layer in the last evaluation or, before there is one, in training."""
        if tested := as_dict(value_at(self.evaluation, 'layers', layer)):
            return Newest(tested, f'on the {self.scored} set', False)
        for name, words in (('validation', 'validation'), ('train', 'training')):
            for row in reversed(self.split(name)):
                if values := as_dict(value_at(row, 'layers', layer)):
                    return Newest(values, f'in {words} at step {row["step"]:,}', name == 'train')
        return Newest({}, 'nowhere yet', True)

    @property
    def scored(self) -> str:
        """The split that the result is about: test, or validation in a set without test."""
        return 'validation' if self.evaluation.get('split') == 'validation' else 'test'

    @property
    def dense(self) -> bool:
        """Whether nothing is routed, as far as is known."""
        routed = self.setting('model.moe.placement') != 'none' and self.setting('model.twin') in (
            'none',
            'same_drops',
            'same_measured_drops',
            None,
        )
        return not self.layers() and bool(self.rows or self.evaluation or not routed)

    @property
    def can_drop(self) -> bool:
        """Whether a choice can find no slot in an evaluation."""
        sizes = map(as_dict, as_dict(value_at(self.record, 'preflight', 'capacity')).values())
        room = [
            s.get('can_drop') is False
            or number(s.get('eval_capacity')) == 0  # soft routing, in an older record
            or number(s.get('eval_capacity')) >= number(s.get('group_size'))
            for s in sizes
        ]
        return bool(self.layers()) and not (room and all(room))

    @property
    def drop_limit(self) -> float:
        """The share of choices above which a layer drops too many."""
        limit = number(self.setting('log.warn_drop_rate'))
        return limit if 0 <= limit <= 1 else limits.DROPS

    def confusion(self) -> np.ndarray | None:
        """Images by truth and prediction `[L, L]` of the last evaluation; None if not known."""
        counts = matrix(self.evaluation.get('confusion'))
        if counts is None or counts.shape[0] != counts.shape[1]:
            return None
        return counts

    def num_experts(self, layer: str) -> int:
        """E of a layer (the length of its load), 0 if not known."""
        loads = [value_at(row, 'layers', layer, 'load') for row in self.rows[-3:]]
        return max(vector(load).size for load in (self.latest(layer)[0].get('load'), *loads))

    def class_names(self) -> list[str]:
        """The names of the classes; [] if they are not known."""
        names = self.evaluation.get('class_names') or self.section('dataset').get('class_names')
        return [str(n) for n in names] if isinstance(names, list) else []


def load(workdir: epath.PathLike) -> Run:
    """Reads all files of a run. Raises `NoRun` if there is none."""
    path = epath.Path(workdir)
    if not path.is_dir():
        raise NoRun(f"'{workdir}' is not a folder; give the folder of a run that was trained.")
    remarks: list[str] = []
    record = _document(path / 'config.json', remarks, 'the run’s settings and sizes are unknown')
    rows = _metrics(path / 'metrics', remarks)
    result = _document(path / 'result.json', remarks, 'the run has not finished')
    evaluation = _document(path / 'evaluation.json', remarks, 'the test set was not evaluated')
    if evaluation.get('split') == 'validation':
        remarks.append('The data set has no test split: the run is scored on validation.')
    if not (record or rows or result or evaluation):
        raise NoRun(
            f"'{workdir}' holds no run (no config.json, no metrics/*.jsonl, no result.json); "
            f'{runs_near(str(workdir))}.'
        )
    return Run(path, record, rows, result, evaluation, remarks)


def _document(path: epath.Path, remarks: list[str], means: str) -> dict[str, Any]:
    try:
        value = _clean_tree(files.read_json(path))
    except FileNotFoundError:
        remarks.append(f'{path.name} is missing: {means}.')
        return {}
    except ValueError:
        remarks.append(f'{path.name} cannot be read (half-written or damaged): {means}.')
        return {}
    if not isinstance(value, dict):
        remarks.append(f'{path.name} is not a dictionary: {means}.')
    return as_dict(value)


def _metrics(folder: epath.Path, remarks: list[str]) -> list[dict[str, Any]]:
    rows, damaged = metric_rows.read(folder)
    if not rows:
        remarks.append('metrics/*.jsonl hold no rows yet, so there are no curves.')
    if damaged:
        remarks.append(f'{len(damaged)} metric line(s) could not be read and are left out.')
    return [_clean_tree(row) for row in rows]


def _clean_tree(value: Any, key: str = '') -> Any:
    if isinstance(value, dict):
        return {clean(k): _clean_tree(v, k) for k, v in value.items()}
    if isinstance(value, list):
        return [_clean_tree(v) for v in value]
    if isinstance(value, int | float) and abs(value) > _LARGEST:
        return None
    return clean(value) if isinstance(value, str) and key != 'image_png' else value


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ''


def vector(value: Any) -> np.ndarray:
    """A list of numbers `[N]`, NaN where they are not; empty if it is not a list."""
    return np.array([number(v) for v in as_list(value)], float)


def matrix(value: Any) -> np.ndarray | None:
    """A rectangular list of lists `[M, N]`, NaN where no number; None if it is not one."""
    rows = [vector(row) for row in as_list(value)]
    if not rows or not rows[0].size or len({row.size for row in rows}) != 1:
        return None
    return np.stack(rows)
