"""What the processes of a mesh share in a study, with the processes played one after the other."""

import io
import json

import pytest
import study_fakes
from study_fakes import fake_train_arm, tables, write_study

from moe_vision.common.errors import UserError
from moe_vision.processes import peers
from moe_vision.processes.stop import Stop, Stopped
from moe_vision.study.load import load
from moe_vision.study.run import plan, runner, team
from moe_vision.study.run.claims import Claims
from moe_vision.study.run.runner import run


@pytest.fixture(scope='module')
def loaded(tmp_path_factory):
    return load(write_study(tmp_path_factory.mktemp('study')))


@pytest.fixture
def first(monkeypatch):
    """Makes this process 0 of several. The list holds what it shares, as the others read it."""
    shared = []

    def share(value):
        shared.append(json.loads(json.dumps(value)))
        return value

    monkeypatch.setattr(peers, 'joined', lambda: True)
    monkeypatch.setattr(peers, 'first', lambda: True)
    monkeypatch.setattr(peers, 'share', share)
    monkeypatch.setattr(peers, 'check_shared', lambda *args: None)
    monkeypatch.setattr(plan, 'training_flops', lambda config: study_fakes.FLOPS)
    monkeypatch.setattr(plan, 'this_device', lambda: {'device': 'fake', 'host_cores': 2})
    monkeypatch.setattr(runner, 'WAIT', 0.02)
    return shared


def follows(loaded, workdir, shared, monkeypatch, stop=None) -> list:
    """(k, seed, folder, whether to train it) of each run that another process hears of."""
    heard, seen = iter(shared), []

    def train_arm(configs, folders, mode, probe, done, begin):
        assert (mode, probe) == ('one_by_one', True)
        for i, (config, folder) in enumerate(zip(configs, folders, strict=True)):
            seen.append((config.model.moe.k, config.seed, folder, begin(i)))
            done(i, None)

    monkeypatch.setattr(peers, 'share', lambda value: next(heard))
    monkeypatch.setattr(peers, 'first', lambda: False)
    assert run(loaded, workdir, train_arm=train_arm, stop=stop) == 0
    assert list(heard) == []  # nothing was shared that it did not read
    return seen


def test_the_others_train_what_the_first_one_does_and_write_nothing(
    loaded, first, tmp_path, monkeypatch
):
    """Another mesh works on k1 seed 1, and gives it up as soon as this one waits for it."""
    trained = []

    def train_arm(configs, folders, mode, probe, done, begin):
        def noted(i):
            trained.append((configs[i].model.moe.k, configs[i].seed, folders[i], begin(i)))
            return trained[-1][-1]

        fake_train_arm(configs, folders, mode, probe, done, noted)

    with Claims(str(tmp_path)) as others:
        others.take(('k1', 1))

        def give_up(line):
            if 'waits' in line:
                others.release(('k1', 1))

        stream = io.StringIO()
        stream.write = give_up
        assert run(loaded, str(tmp_path), 'k1,k2', train_arm=train_arm, stream=stream) == 6
    assert sum(not yes for *_, yes in trained) == 1 and {'wait': 0.02} in first
    assert first[-1] == {}
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob('*')}
    assert follows(loaded, str(tmp_path), first, monkeypatch) == trained
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob('*')} == before


def test_the_others_end_if_all_is_done(loaded, first, tmp_path, monkeypatch):
    run(loaded, str(tmp_path), 'k1', train_arm=fake_train_arm, stream=io.StringIO())
    rows = tables(tmp_path)
    first.clear()
    assert run(loaded, str(tmp_path), 'k1', train_arm=fake_train_arm, stream=io.StringIO()) == 0
    assert first == [{}] and tables(tmp_path) == rows
    assert follows(loaded, str(tmp_path), first, monkeypatch) == []


class StopAtAsk(Stop):
    """As if SIGTERM came just before the nth time that it is asked."""

    def __init__(self, ask: int):
        super().__init__()
        self.asked, self._ask = 0, ask

    def at(self, step: int) -> bool:
        self.asked += 1
        return self.asked == self._ask


def test_all_stop_in_the_same_wait(loaded, first, tmp_path, monkeypatch):
    """Each asks once a second, and all of them stop at the same ask."""
    monkeypatch.setattr('time.sleep', lambda seconds: None)
    monkeypatch.setattr(runner, 'WAIT', 10.0)
    stops = [StopAtAsk(14), StopAtAsk(14)]
    with Claims(str(tmp_path)) as others:
        for seed in (0, 1, 2):
            others.take(('k1', seed))
        with pytest.raises(Stopped, match='stopped by SIGTERM; start again with the same command'):
            run(
                loaded,
                str(tmp_path),
                'k1',
                train_arm=fake_train_arm,
                stream=io.StringIO(),
                stop=stops[0],
            )
    assert first == [{'wait': 10.0}] * 2
    with pytest.raises(Stopped):
        follows(loaded, str(tmp_path), first, monkeypatch, stops[1])
    assert stops[0].asked == stops[1].asked == 14


def test_seeds_together_are_refused_before_anything_is_written(first, tmp_path):
    loaded = load(write_study(tmp_path, ('margin=0.3', "margin=0.3, seed_mode='together'")))
    with pytest.raises(UserError, match="seed_mode 'together'.*in one process"):
        run(loaded, str(tmp_path / 'W'), train_arm=fake_train_arm)
    assert first == [] and not (tmp_path / 'W').exists()


@pytest.mark.parametrize('change, only', [(('margin=0.3', 'margin=0.4'), ''), ((), 'k1')])
def test_another_study_or_other_arms_are_noticed(
    loaded, first, tmp_path, monkeypatch, change, only
):
    seen = []
    monkeypatch.setattr(peers, 'check_shared', lambda *args: seen.append(args))
    team.check(loaded, 'W', '')
    team.check(load(write_study(tmp_path, *[change] if change else [])), 'W', only)
    team.check(loaded, 'W', '')
    assert seen[0] == seen[2] != seen[1] and seen[0][2] == 'studies'


def test_an_error_that_another_process_caused_is_left_to_the_watch(loaded, first, tmp_path):
    """It is not the user's mistake, and its line would hide which process died."""

    def train_arm(configs, folders, mode, probe, done, begin):
        begin(0)
        raise RuntimeError('a collective failed')

    with pytest.raises(RuntimeError, match='a collective failed') as e:
        run(loaded, str(tmp_path), 'k1', train_arm=train_arm, stream=io.StringIO())
    assert e.value.__notes__[0].startswith('cell k1 seed 0: RuntimeError')
    assert list((tmp_path / 'claims').iterdir()) == []
