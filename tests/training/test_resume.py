"""A run that was stopped and started again equals an uninterrupted one, bit for bit (on a CPU)."""

import json
import logging
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import train_cases

from moe_vision.common import claims
from moe_vision.common.errors import UserError
from moe_vision.processes import peers
from moe_vision.run_folder import checkpoints, metrics
from moe_vision.training import loop


class Stop(Exception):
    """Ends a run at once, as if its process had died."""


ON_DISK = []  # (step, step of the last row, best steps) when the save of a checkpoint began


@pytest.fixture(scope='module')
def whole(config, setup, tmp_path_factory):
    """The folder of an uninterrupted run."""
    workdir = tmp_path_factory.mktemp('whole')
    save = checkpoints.Folder.save

    def watched(folder, step, state):
        if 'latest' in str(folder.path):
            ON_DISK.append(
                (step, train_cases.rows(workdir)[-1]['step'], train_cases.steps(workdir, 'best'))
            )
        save(folder, step, state)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints.Folder, 'save', watched)
        loop.train(config, str(workdir), setup=setup)
    assert train_cases.steps(workdir) == [10, 12]
    return workdir


def test_what_belongs_to_a_checkpoint_is_on_disk_before_it(whole):
    """A run continued from it writes neither those rows nor that best checkpoint again."""
    scores = {
        r['step']: r['accuracy'] for r in train_cases.rows(whole) if r['split'] == 'validation'
    }
    assert [step for step, _, _ in ON_DISK] == [5, 10, 12]
    for step, row, best in ON_DISK:
        assert row == step
        until = {s: a for s, a in scores.items() if s <= step}
        assert best == [max(until, key=until.get)]  # the first of equals


@pytest.fixture
def stop_at(monkeypatch):
    """Makes the next run end after it has computed a step, before it writes anything about it."""

    def arm(step):
        add = metrics.Interval.add

        def stopping(self, n, values):
            if n == step:
                raise Stop
            add(self, n, values)

        monkeypatch.setattr(metrics.Interval, 'add', stopping if step else add)
        return lambda: monkeypatch.undo()

    return arm


def test_a_run_stopped_twice_ends_as_an_uninterrupted_one(config, setup, whole, stop_at, tmp_path):
    """Before any checkpoint and between two, each time with a best one and rows that are later."""
    for step in (5, 9):
        disarm = stop_at(step)
        with pytest.raises(Stop):
            loop.train(config, str(tmp_path), setup=setup)
        disarm()
    loop.train(config, str(tmp_path), setup=setup, full_report=False)
    train_cases.assert_same_runs(tmp_path, whole)


def test_a_checkpoint_holds_the_whole_state(whole):
    raw = checkpoints.load_raw(str(whole))
    assert int(raw['step']) == 12
    assert abs(raw['router_state']['block_1']['router']['bias']).max() > 0
    assert set(raw) >= {'params', 'opt_state', 'router_state', 'batch_stats', 'ema', 'seed_key'}
    assert raw['batch_stats'] and raw['ema'] and raw['opt_state']


@pytest.mark.slow
def test_a_run_killed_at_a_random_moment_ends_as_an_uninterrupted_one(
    config, whole, tmp_path, data_dir, jax_environment
):
    code = (
        'import json, sys; from moe_vision.config import check; '
        'from moe_vision.training import loop; '
        'loop.train(check.from_dict(json.loads(sys.argv[1])), sys.argv[2])'
    )
    from moe_vision.config import check as config_lib

    encoded = json.dumps(config_lib.to_dict(config))
    process = subprocess.Popen(
        [sys.executable, '-c', code, encoded, str(tmp_path)],
        cwd=train_cases.ROOT,
        env=jax_environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    seen = []
    for line in process.stderr:  # from the first steps on, anywhere
        seen.append(line)
        if line.startswith('step 4/12'):
            break
    time.sleep(random.random() * 1.5)
    process.send_signal(signal.SIGKILL)
    process.stderr.read()
    process.wait()
    assert seen and seen[-1].startswith('step 4/12'), ''.join(seen)
    loop.train(config, str(tmp_path), full_report=False)  # a setup of its own, as a process has
    train_cases.assert_same_runs(tmp_path, whole)


def largest(workdir: Path, step: int) -> Path:
    """The file of a checkpoint that holds most of its arrays."""
    folder = workdir / 'checkpoints' / 'latest' / str(step)
    return max((p for p in folder.rglob('*') if p.is_file()), key=lambda p: p.stat().st_size)


def cut(workdir: Path, step: int) -> None:
    file = largest(workdir, step)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 3])


def flip(workdir: Path, step: int) -> None:
    file = largest(workdir, step)
    data = bytearray(file.read_bytes())
    for at in range(512, len(data), 1024):
        data[at] ^= 1
    file.write_bytes(bytes(data))


def rename(workdir: Path, step: int) -> None:
    """Puts the checkpoint before in its place."""
    latest = workdir / 'checkpoints' / 'latest'
    shutil.rmtree(latest / str(step))
    shutil.copytree(latest / str(step - 2), latest / str(step))


@pytest.mark.slow
@pytest.mark.parametrize('damage', [cut, flip, rename], ids=lambda f: f.__name__)
def test_a_run_with_a_damaged_checkpoint_continues_from_the_one_before(
    config, setup, whole, tmp_path, caplog, damage
):
    workdir = tmp_path / 'run'
    shutil.copytree(whole, workdir)
    damage(workdir, 12)
    with caplog.at_level(logging.INFO):
        loop.train(config, str(workdir), setup=setup, full_report=False)
    messages = [r.getMessage() for r in caplog.records if 'moe_vision' in r.pathname]
    assert sum('checkpoint 12 cannot be read' in m for m in messages) == 1
    assert 'continuing at step 10 of 12' in messages
    train_cases.assert_same_runs(workdir, whole)


def test_when_no_checkpoint_can_be_read_nothing_of_the_run_is_lost(config, setup, whole, tmp_path):
    workdir = tmp_path / 'run'
    shutil.copytree(whole, workdir)
    cut(workdir, 10)
    flip(workdir, 12)
    before = {p: p.read_bytes() for p in workdir.rglob('*') if p.is_file()}
    with pytest.raises(UserError, match='none of the checkpoints') as e:
        loop.train(config, str(workdir), setup=setup)
    assert '\n' not in str(e.value)
    assert {p: p.read_bytes() for p in workdir.rglob('*') if p.is_file()} == before


def test_a_network_that_changed_is_refused_and_the_run_can_still_be_read(
    config, setup, whole, tmp_path, data_dir, monkeypatch
):
    workdir = tmp_path / 'run'
    shutil.copytree(whole, workdir)
    other = train_cases.make(data_dir, {'model.args': {'widths': (8, 24), 'depth': 1}})
    with pytest.raises(UserError, match='model.args.widths.1 16 -> 24.* another --workdir'):
        loop.train(other, str(workdir))
    assert files_of(workdir) == files_of(whole)
    monkeypatch.setattr(loop, 'Setup', lambda *args, **kwargs: setup)
    scores = loop.evaluate(config, str(workdir))
    assert scores['accuracy'] == train_cases.result(whole)['test_accuracy']


def test_a_finished_run_is_not_trained_again(config, setup, whole, tmp_path, monkeypatch):
    workdir = tmp_path / 'run'
    shutil.copytree(whole, workdir)
    monkeypatch.setattr(setup, 'step', lambda *args: pytest.fail('it takes a step'))
    loop.train(config, str(workdir), setup=setup)
    train_cases.assert_same_runs(workdir, whole)
    # the result still has the speed of the first training
    ours, theirs = (json.loads((p / 'result.json').read_text()) for p in (workdir, whole))
    assert ours == theirs and theirs['images_per_second'] > 0


def files_of(workdir: Path) -> dict[Path, bytes]:
    return {p.relative_to(workdir): p.read_bytes() for p in workdir.rglob('*') if p.is_file()}


def test_a_changed_key_that_may_change_is_named_and_each_life_keeps_its_config(
    whole, tmp_path, data_dir, caplog
):
    workdir = tmp_path / 'run'
    shutil.copytree(whole, workdir)
    for every in (4, 5):
        other = train_cases.make(data_dir, {'log.every_steps': every})
        loop.train(other, str(workdir), full_report=False)
    told = [r.getMessage() for r in caplog.records if 'differs' in r.getMessage()]
    assert [line.rpartition(': ')[2] for line in told] == [
        'log.every_steps 3 -> 4',
        'log.every_steps 4 -> 5',
    ]
    lives = [json.loads((workdir / 'lives' / f'{n}.json').read_text()) for n in (1, 2, 3)]
    assert [(x['start'], x['config']['log']['every_steps']) for x in lives] == [
        (0, 3),
        (12, 4),
        (12, 5),
    ]
    assert {'start': 12} | json.loads((workdir / 'config.json').read_text()) == lives[-1]


@pytest.mark.parametrize(
    'changes, part',
    [
        ({'seed': 1}, 'seed 0 -> 1'),
        ({'train.weight_decay': 0.5}, 'train.weight_decay 0.0001 -> 0.5'),
        ({'train.steps': 8}, 'was to take 12 steps and has done 12'),
        ({}, 'the data differ'),
    ],
    ids=str,
)
def test_another_run_is_refused_in_the_folder_of_a_finished_one(
    whole, tmp_path, data_dir, changes, part
):
    workdir = tmp_path / 'run'
    shutil.copytree(whole, workdir)
    if not changes:
        train_cases.other_data(workdir)
    before = files_of(workdir)
    with pytest.raises(UserError, match=part) as e:
        loop.train(train_cases.make(data_dir, changes), str(workdir))
    assert '\n' not in str(e.value) and '--workdir' in str(e.value)
    assert files_of(workdir) == before


def test_a_run_that_gets_longer_goes_on_where_it_ended(whole, tmp_path, data_dir):
    workdir = tmp_path / 'run'
    shutil.copytree(whole, workdir)
    longer = train_cases.make(data_dir, {'train.steps': 14})
    result = loop.train(longer, str(workdir), full_report=False)
    assert result['steps'] == 14
    assert [r for r in train_cases.rows(workdir) if r['step'] <= 12] == train_cases.rows(whole)


def test_one_of_two_processes_that_train_in_one_folder_is_refused(config, setup, whole, tmp_path):
    workdir = tmp_path / 'run'
    shutil.copytree(whole, workdir)
    other = subprocess.Popen([sys.executable, '-c', 'input()'], stdin=subprocess.PIPE)
    owner = {'pid': other.pid, 'started': claims._started(other.pid), 'host': claims._machine()}
    (workdir / 'lock.json').write_text(json.dumps(owner | {'token': 'x'}))
    with pytest.raises(UserError, match=f'^process {other.pid} on .* trains in workdir'):
        loop.train(config, str(workdir), setup=setup)
    other.kill()
    other.wait()
    loop.train(config, str(workdir), setup=setup, full_report=False)  # it is dead
    train_cases.assert_same_runs(workdir, whole)
    assert not (workdir / 'lock.json').exists()


def test_rows_that_are_there_twice_count_once(whole, tmp_path, caplog):
    """A restart was killed after it wrote the kept rows to one file, before it deleted the old."""
    shutil.copytree(whole / 'metrics', tmp_path / 'metrics')
    want = metrics.read(str(whole))
    assert [r['step'] for r in want if r['split'] == 'validation'] == [4, 8, 12]
    lines = ''.join(json.dumps(r) + '\n' for r in want)
    (tmp_path / 'metrics' / 'until-000000010.jsonl').write_text(lines + '{"step": 3, "sp\n')
    with caplog.at_level(logging.WARNING):
        assert metrics.read(str(tmp_path)) == want
    assert f'until-000000010.jsonl, line {len(want) + 1}: not JSON' in caplog.text


def test_rows_that_follow_a_stop_at_a_validation_leave_those_before_it(tmp_path):
    def row(step, split):
        return {'step': step, 'split': split, 'loss': 1.0, 'accuracy': 0.5}

    first = [row(5, 'train'), row(10, 'train')]
    writer = metrics.Writer(str(tmp_path), 0, [])
    for r in first:
        writer.add(r)
    writer.flush()
    events = {p.name: p.read_bytes() for p in (tmp_path / 'events').iterdir()}
    again = metrics.Writer(str(tmp_path), 10, metrics.read(str(tmp_path)))
    again.add(row(10, 'validation'))  # the same step as the last row there
    again.flush()
    assert metrics.read(str(tmp_path)) == [*first, row(10, 'validation')]
    assert all((tmp_path / 'events' / n).read_bytes() == data for n, data in events.items())
    assert len(list((tmp_path / 'events').iterdir())) == 2
    metrics.Writer(str(tmp_path), 5, first[:1])  # back to an older checkpoint
    assert metrics.read(str(tmp_path)) == first[:1]
    assert list((tmp_path / 'events').iterdir()) == []


def test_processes_that_read_different_data_are_refused(config, setup, tmp_path, monkeypatch):
    monkeypatch.setattr(peers, 'share', lambda value: 'another digest')
    with pytest.raises(UserError, match="different data as 'digits'; prepare the set once"):
        loop.train(config, str(tmp_path / 'run'), setup=setup)
