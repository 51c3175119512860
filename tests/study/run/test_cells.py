"""The seeds of an arm train one after another or together, each in its own folder."""

import dataclasses
import functools
import shutil

import pytest
import train_cases

from moe_vision.run_folder import metrics
from moe_vision.study.run import cells
from moe_vision.study.run import together as together_lib
from moe_vision.study.run.cells import train_arm
from moe_vision.training import run

SMALL = {
    'model.moe.placement': 'head',
    'model.args': {'widths': (8,), 'depth': 1},
    'train.steps': 4,
    'eval.every_steps': 2,
    'checkpoint.every_steps': 2,
    'train.mixup': 0.0,
}


@pytest.fixture(scope='module', autouse=True)
def one_setup():
    with pytest.MonkeyPatch.context() as patch:
        train_cases.share_setups(patch, cells, together_lib)
        patch.setattr(together_lib, 'Program', functools.cache(together_lib.Program))
        yield


@pytest.fixture(scope='module')
def configs(data_dir):
    config = train_cases.make(data_dir, SMALL)
    return [dataclasses.replace(config, seed=s) for s in (3, 4, 5)]


@pytest.fixture(scope='module')
def one_by_one(configs, tmp_path_factory):
    root = tmp_path_factory.mktemp('arm')
    folders, seen = [root / str(c.seed) for c in configs], []
    train_arm(
        configs,
        [str(f) for f in folders],
        'one_by_one',
        False,
        lambda i, error: seen.append((i, error)),
    )
    return folders, seen


def test_every_seed_leaves_its_run_and_is_reported(one_by_one):
    folders, seen = one_by_one
    assert seen == [(0, None), (1, None), (2, None)]
    assert [train_cases.result(f)['seed'] for f in folders] == [3, 4, 5]
    assert not any((f / 'report.html').exists() for f in folders)
    assert len({train_cases.rows(f)[0]['loss'] for f in folders}) == 3


@pytest.fixture(scope='module')
def together(configs, tmp_path_factory):
    root = tmp_path_factory.mktemp('together')
    folders, seen = [root / str(c.seed) for c in configs], []
    train_arm(
        configs,
        [str(f) for f in folders],
        'together',
        False,
        lambda i, error: seen.append((i, error)),
    )
    return folders, seen


def test_seeds_together_leave_the_folders_of_seeds_alone(one_by_one, together):
    assert together[1] == [(0, None), (1, None), (2, None)]
    for ours, theirs in zip(together[0], one_by_one[0], strict=True):
        mine, alone = train_cases.rows(ours), train_cases.rows(theirs)
        for a, b in zip(mine, alone, strict=True):
            assert (a['step'], a['split'], list(a)) == (b['step'], b['split'], list(b))
            assert a['loss'] == pytest.approx(b['loss'], rel=1e-4)
        a, b = train_cases.result(ours), train_cases.result(theirs)
        assert list(a) == list(b) and a['seed'] == b['seed'] and a['steps'] == b['steps']
        assert a['test_loss'] == pytest.approx(b['test_loss'], rel=1e-4)
        assert train_cases.steps(ours) == train_cases.steps(theirs) == [2, 4]
        assert (ours / 'evaluation.json').exists()


def test_seeds_together_continue_where_the_slowest_was_saved(configs, together, tmp_path):
    """The seeds' newest checkpoints are of different steps, and some runs have ended."""
    folders = [tmp_path / str(c.seed) for c in configs]
    for folder, old in zip(folders, together[0], strict=True):
        shutil.copytree(old, folder)
    shutil.rmtree(folders[1] / 'checkpoints' / 'latest' / '4')
    (folders[1] / 'result.json').unlink()
    seen = []
    train_arm(
        configs,
        [str(f) for f in folders],
        'together',
        False,
        lambda i, error: seen.append((i, error)),
    )
    assert sorted(seen) == [(0, None), (1, None), (2, None)]
    for folder, old in zip(folders, together[0], strict=True):
        for a, b in zip(train_cases.rows(folder), train_cases.rows(old), strict=True):
            assert a['loss'] == pytest.approx(b['loss'], rel=1e-4)
        assert train_cases.result(folder)['steps'] == 4


def test_a_run_begun_together_is_continued_alone(configs, together, one_by_one, tmp_path):
    shutil.copytree(together[0][1], tmp_path / 'run')
    shutil.rmtree(tmp_path / 'run' / 'checkpoints' / 'latest' / '4')
    train_arm(configs[1:2], [str(tmp_path / 'run')], 'together', False, lambda i, error: None)
    want = train_cases.result(one_by_one[0][1])['test_loss']
    assert train_cases.result(tmp_path / 'run')['test_loss'] == pytest.approx(want, rel=1e-4)


@pytest.mark.parametrize('mode', ['one_by_one', 'together'])
def test_a_seed_that_diverges_does_not_stop_the_others(configs, tmp_path, monkeypatch, mode):
    row = metrics.Interval.row

    def poisoned(self, per_epoch):
        if self.seed == 4 and self._pending[-1][0] == 4:
            raise metrics.NonFiniteStep(4, 'loss')
        return row(self, per_epoch)

    init = run.Run.__init__

    def marked(self, setup, config, *rest):
        init(self, setup, config, *rest)
        self.interval.seed = config.seed

    monkeypatch.setattr(metrics.Interval, 'row', poisoned)
    monkeypatch.setattr(run.Run, '__init__', marked)
    folders, seen = [tmp_path / str(c.seed) for c in configs], {}
    train_arm(
        configs, [str(f) for f in folders], mode, False, seen.__setitem__, begin=lambda i: i < 2
    )
    well = [0, 2] if mode == 'together' else [0]  # one by one, `begin` skips the last
    assert sorted(seen) == sorted([1, *well]) and not any(seen[i] for i in well)
    assert seen[1].startswith('loss is not finite at step 4; the last finite checkpoint is step 2')
    assert '\n' not in seen[1]
    assert [(f / 'result.json').exists() for f in folders] == [True, False, 2 in well]


def test_no_seeds_are_no_work():
    done = []
    train_arm([], [], 'one_by_one', False, lambda *args: done.append(args))
    assert not done
