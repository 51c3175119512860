"""Trackers get exactly what a run's folder gets, and nothing that they do reaches the run."""

import copy
import dataclasses
import json
import logging
import re
import sys
import threading
import types

import pytest
import train_cases

from moe_vision.common.errors import UserError
from moe_vision.config import check as config_lib
from moe_vision.run_folder import metrics, trackers
from moe_vision.run_folder.trackers import Tracker
from moe_vision.training import loop


class Kept(Tracker):
    """Keeps what it is told."""

    runs: list['Kept'] = []

    def __init__(self, run):
        super().__init__(run)
        self.rows, self.results, self.closed = [], [], False
        self.runs.append(self)

    def row(self, row):
        self.rows.append(row)

    def result(self, result):
        self.results.append(result)

    def close(self):
        self.closed = True


class Changes(Tracker):
    def row(self, row):
        row.clear()


class FailsToStart(Tracker):
    def __init__(self, run):
        raise ValueError('no\nlogin')


class FailsAtRows(Kept):
    runs = []

    def row(self, row):
        super().row(row)
        raise SystemExit(f'no network at {row["step"]}')


class Hangs(Tracker):
    until = threading.Event()

    def row(self, row):
        self.until.wait(60)


class NoTracker:
    pass


def at(config, setup, **log):
    """The tiny config with other log keys, and the setup for it: it shares the programs."""
    config = dataclasses.replace(config, log=dataclasses.replace(config.log, **log))
    setup = copy.copy(setup)
    setup.config = config
    return config, setup


@pytest.fixture
def warned(caplog):
    caplog.set_level(logging.WARNING)
    return lambda: [r.getMessage() for r in caplog.records if 'tracker' in r.getMessage()]


def test_a_run_with_broken_trackers_ends_as_one_without(
    config, setup, tmp_path, monkeypatch, warned
):
    """A tracker that works beside them gets each row as it is on disk, and the result."""
    monkeypatch.setattr(trackers, 'SECONDS', 0.5)
    monkeypatch.setitem(sys.modules, 'wandb', None)  # as if it were not installed
    loop.train(*at(config, setup)[:1], str(tmp_path / 'plain'), setup=setup, full_report=False)
    own = [f'{__name__}:{c.__name__}' for c in (Changes, FailsToStart, FailsAtRows, Hangs, Kept)]
    config, setup = at(config, setup, trackers=('wandb', *own))
    result = loop.train(config, str(tmp_path / 'w'), setup=setup, full_report=False)
    Hangs.until.set()

    assert train_cases.rows(tmp_path / 'w') == train_cases.rows(tmp_path / 'plain')
    assert train_cases.result(tmp_path / 'w') == train_cases.result(tmp_path / 'plain')
    kept = Kept.runs.pop()
    assert kept.rows == metrics.read(str(tmp_path / 'w'))  # with 'timing' and 'probe'
    assert {r['split'] for r in kept.rows} == {'train', 'validation'}
    assert kept.results == [json.loads((tmp_path / 'w' / 'result.json').read_text())]
    assert kept.results[0]['test_accuracy'] == result['test_accuracy'] and kept.closed
    assert kept.run.config == json.loads((tmp_path / 'w' / 'config.json').read_text())['config']
    assert FailsAtRows.runs.pop().rows == kept.rows  # it failed and was told on
    named = [re.match(r"tracker '([\w:.]+)' fails \((\w+)", line).groups() for line in warned()]
    names = [n for n, _ in named]
    assert sorted(names) == sorted(['wandb', *own[1:4]])  # once each
    assert dict(named)[own[1]] == 'ValueError' and dict(named)[own[2]] == 'SystemExit'
    assert dict(named)['wandb'] == 'ModuleNotFoundError'


def test_a_continued_run_stays_the_same_one_for_its_trackers(config, setup, tmp_path):
    name = f'{__name__}:Kept'
    config, setup = at(config, setup, trackers=(name,))
    with pytest.raises(loop.Stopped):
        loop.train(config, str(tmp_path), setup=setup, stop=train_cases.StopAt(7))
    loop.train(config, str(tmp_path), setup=setup, full_report=False)
    first, second = Kept.runs[-2:]
    assert (first.run.start, second.run.start) == (0, 7)
    assert first.run.id == second.run.id and first.run.name == tmp_path.name
    assert first.closed and not first.results and len(second.results) == 1
    assert first.rows + second.rows == metrics.read(str(tmp_path))
    again = trackers.Trackers(config, str(tmp_path), start=0)  # from the beginning: another one
    again.close()
    assert Kept.runs.pop().run.id != first.run.id


ROW = {
    'step': 3,
    'epoch': 0.5,
    'split': 'train',
    'loss': float('nan'),
    'losses': {'my.losses:l1': 0.25},
    'layers': {'block_1': {'load': [0.5, 0.5]}},
    'probe': {'block_1': [1, 0]},
}
NUMBERS = {'epoch': 0.5, 'losses/my.losses:l1': 0.25}
NUMBERS |= {'layers/block_1/load/0': 0.5, 'layers/block_1/load/1': 0.5}
RESULT = {'test_accuracy': 0.5, 'steps': 12, 'scored_split': 'test', 'test_loss': None}


def told(config, name, folder, start=0):
    """Tells a tracker of the table one row and a result; returns what it warned of."""
    config = dataclasses.replace(config, log=dataclasses.replace(config.log, trackers=(name,)))
    sent = trackers.Trackers(config, str(folder), start)
    sent.row(ROW)
    sent.result(RESULT)
    sent.close()
    return json.loads((folder / 'tracked.json').read_text())['id']


def test_wandb_gets_rows_by_step_and_the_result_as_summary(config, tmp_path, monkeypatch, warned):
    calls = []
    run = types.SimpleNamespace(
        define_metric=lambda *a, **k: calls.append(('define_metric', a, k)),
        log=lambda values: calls.append(('log', values)),
        summary=types.SimpleNamespace(update=lambda values: calls.append(('summary', values))),
        finish=lambda: calls.append(('finish',)),
    )
    fake = types.SimpleNamespace(init=lambda **k: calls.append(('init', k)) or run)
    monkeypatch.setitem(sys.modules, 'wandb', fake)
    number = told(config, 'wandb', tmp_path)
    (_, given), *rest = calls
    assert given['id'] == number and given['resume'] == 'allow' and given['name'] == tmp_path.name
    assert given['config']['model']['moe']['k'] == config.model.moe.k
    assert rest == [
        ('define_metric', ('*',), {'step_metric': 'step'}),
        ('log', {'step': 3, **{f'train/{n}': v for n, v in NUMBERS.items()}}),
        ('summary', {f'result/{n}': v for n, v in RESULT.items()}),
        ('finish',),
    ]
    assert not warned()


def test_mlflow_gets_names_that_it_takes_and_finds_the_run_again(
    config, tmp_path, monkeypatch, warned
):
    calls, runs = [], []

    def start_run(**given):
        calls.append(('start_run', given))
        if 'tags' in given:
            runs.append(types.SimpleNamespace(info=types.SimpleNamespace(run_id='r1')))

    fake = types.SimpleNamespace(
        search_runs=lambda filter_string, output_format: list(runs),
        start_run=start_run,
        log_params=lambda values: calls.append(('params', values)),
        log_metrics=lambda values, step: calls.append(('metrics', values, step)),
        end_run=lambda: calls.append(('end_run',)),
    )
    monkeypatch.setitem(sys.modules, 'mlflow', fake)
    number = told(config, 'mlflow', tmp_path)
    assert calls[0] == (
        'start_run',
        {'run_name': tmp_path.name, 'tags': {'moe_vision.id': number}},
    )
    parameters = [values for what, values in (c[:2] for c in calls if c[0] == 'params')]
    assert all(len(p) <= 100 for p in parameters)
    assert {k: v for p in parameters for k, v in p.items()}['model.moe.k'] == config.model.moe.k
    numbers = {f'train/{n.replace(":", "_")}': v for n, v in NUMBERS.items()}
    assert [c for c in calls if c[0] == 'metrics'] == [
        ('metrics', numbers, 3),
        ('metrics', {'result/test_accuracy': 0.5, 'result/steps': 12.0}, 12),
    ]
    calls.clear()
    assert told(config, 'mlflow', tmp_path, start=5) == number
    assert calls[0] == ('start_run', {'run_id': 'r1'}) and calls[-1] == ('end_run',)
    assert 'params' not in {c[0] for c in calls}  # MLflow refuses to change them
    assert not warned()


@pytest.mark.parametrize(
    'name, said',
    [
        ('wanbd', "unknown tracker 'wanbd'. Did you mean 'wandb'?"),
        (f'{__name__}:NoTracker', 'must be a subclass of moe_vision.run_folder.trackers.Tracker'),
        (f'{__name__}:Keep', "Did you mean 'Kept'?"),
    ],
)
def test_what_is_no_tracker_is_refused_before_anything_runs(name, said, data_dir):
    with pytest.raises(UserError, match=re.escape(said)):
        train_cases.make(data_dir, {'log.trackers': ('mlflow', name)})


def test_the_command_line_takes_names_with_commas():
    from moe_vision.config import source

    common, opened, _ = source.take_overrides(['--config.log.trackers=wandb,mlflow'])
    made = config_lib.check(source.load('configs/digits_k2.py', common, opened))
    assert made.log.trackers == ('wandb', 'mlflow')
