"""A study trains every cell once, whoever works on it and however often it is stopped."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import study_fakes
from study_fakes import fake_train_arm, tables, write_study

from moe_vision.common.errors import UserError
from moe_vision.study import registration, rows, stopwatch
from moe_vision.study.load import load
from moe_vision.study.run import plan, runner
from moe_vision.study.run.claims import Claims
from moe_vision.study.run.pack import pack
from moe_vision.study.run.plan import Plan
from moe_vision.study.run.runner import run

CELLS = [(a, s) for a in ('dense', 'k1', 'k2', 'again') for s in (0, 1, 2)]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(runner, 'WAIT', 0.02)
    monkeypatch.setattr(plan, 'training_flops', lambda config: study_fakes.FLOPS)
    monkeypatch.setattr(plan, 'this_device', lambda: {'device': 'fake', 'host_cores': 2})


@pytest.fixture(scope='module')
def loaded(tmp_path_factory):
    return load(write_study(tmp_path_factory.mktemp('study')))


@pytest.fixture(scope='module')
def together(tmp_path_factory):
    return load(
        write_study(
            tmp_path_factory.mktemp('together'), ('margin=0.3', "margin=0.3, seed_mode='together'")
        )
    )


@pytest.fixture(scope='module')
def unbroken(loaded, tmp_path_factory):
    """The tables of a study that nothing disturbed."""
    workdir = tmp_path_factory.mktemp('unbroken')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, 'training_flops', lambda config: study_fakes.FLOPS)
        patch.setattr(plan, 'this_device', lambda: {'device': 'fake', 'host_cores': 2})
        run(loaded, str(workdir), train_arm=fake_train_arm, stream=io.StringIO())
    return tables(workdir)


class Reacting(io.StringIO):
    """A stream that calls `then` whenever a line says that the runner waits."""

    def __init__(self, then):
        super().__init__()
        self._then = then

    def write(self, text):
        if 'waits' in text:
            self._then()
        return super().write(text)


def go(loaded, workdir, train_arm=fake_train_arm, then=None, **options) -> tuple[int, str]:
    """(cells done, what it printed). `then` is called when it waits."""
    stream = Reacting(then)
    return run(
        loaded, str(workdir), train_arm=train_arm, stream=stream, **options
    ), stream.getvalue()


def log(workdir) -> list[str]:
    file = Path(workdir) / 'log.txt'
    return file.read_text().splitlines() if file.exists() else []


def started(workdir, *arguments, **environment) -> subprocess.Popen:
    """Starts the command with the fake trainer as a process of its own."""
    file = write_study(Path(workdir).parent)
    return subprocess.Popen(
        [
            sys.executable,
            study_fakes.__file__,
            'run',
            f'--study={file}',
            f'--workdir={workdir}',
            *arguments,
        ],
        env=os.environ | environment,
        cwd=study_fakes.ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # a shell ignores it


def until(condition, seconds=20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, 'it never happened'
        time.sleep(0.01)


def test_every_cell_is_trained_once_and_never_again(loaded, tmp_path):
    count, printed = go(loaded, tmp_path)
    assert count == 12 and len(log(tmp_path)) == 12 * study_fakes.STEPS
    assert list(tables(tmp_path)) == sorted(f'{a}/seed_{s}.json' for a, s in CELLS)
    assert '12 of 12 cells, 100% of the FLOPs' in printed
    assert go(loaded, tmp_path) == (0, 'study tiny: 12 of 12 cells are done\n')
    assert len(log(tmp_path)) == 12 * study_fakes.STEPS
    assert list((tmp_path / 'claims').iterdir()) == []


def test_the_clock_stands_beside_the_rows(loaded, tmp_path):
    go(loaded, tmp_path, only='k1')
    timing = json.loads((tmp_path / 'timings' / 'k1' / 'seed_1.json').read_text())
    assert timing['seconds'] > 0 and timing['images_per_second'] > 0
    assert 0 <= timing['compile_seconds'] < timing['seconds']
    assert (timing['device'], timing['host_cores'], timing['flops'], timing['first']) == (
        'fake',
        2,
        6000,
        False,
    )
    assert json.loads((tmp_path / 'timings' / 'k1' / 'seed_0.json').read_text())['first']
    assert 'per_second' not in (tmp_path / 'rows' / 'k1' / 'seed_1.json').read_text()


def test_checkpoints_go_and_metrics_stay(loaded, tmp_path):
    go(loaded, tmp_path, only='k1')
    go(loaded, tmp_path, only='k2', keep_runs=True)
    for arm, kept in (('k1', False), ('k2', True)):
        folder = tmp_path / 'runs' / arm / 'seed_1'
        assert (folder / 'checkpoints').exists() == kept
        assert (folder / 'metrics').exists() and (folder / 'result.json').exists()


def test_only_some_arms(loaded, tmp_path):
    assert go(loaded, tmp_path, only='k?,again')[0] == 9
    assert {p.name for p in (tmp_path / 'rows').iterdir()} == {'k1', 'k2', 'again'}
    with pytest.raises(UserError, match="'kk'"):
        go(loaded, tmp_path, only='kk')


def test_a_run_that_diverges_is_a_row(loaded, tmp_path, monkeypatch):
    monkeypatch.setenv('FAKE_DIVERGES', '1:1')
    count, printed = go(loaded, tmp_path)
    row = json.loads((tmp_path / 'rows' / 'k1' / 'seed_1.json').read_text())
    assert count == 12 and 'k1 seed 1: diverged' in printed
    assert (row['status'], row['error']) == ('diverged', 'loss is not finite at step 4')
    timing = json.loads((tmp_path / 'timings' / 'k1' / 'seed_1.json').read_text())
    assert timing['images_per_second'] is None and timing['trained_flops'] is None
    assert go(loaded, tmp_path)[0] == 0


def test_another_error_stops_the_study_and_leaves_what_is_done(
    loaded, unbroken, tmp_path, monkeypatch
):
    monkeypatch.setenv('FAKE_FAILS', '1:1')
    with pytest.raises(UserError) as e:
        go(loaded, tmp_path)
    assert 'cell k1 seed 1: ValueError: a worker' in str(e.value)
    assert 'Traceback' in (tmp_path / 'runs/k1/seed_1/error.txt').read_text()
    assert len(tables(tmp_path)) == 4 and list((tmp_path / 'claims').iterdir()) == []
    monkeypatch.delenv('FAKE_FAILS')
    assert go(loaded, tmp_path)[0] == 8 and tables(tmp_path) == unbroken


def test_a_user_error_names_its_cell(loaded, tmp_path):
    def train_arm(configs, folders, mode, probe, done, begin):
        begin(0)
        raise UserError('no room on the disk.')

    with pytest.raises(UserError, match='^cell dense seed 0: no room on the disk.$'):
        go(loaded, tmp_path, train_arm)


def test_a_row_that_cannot_be_used_is_set_aside_and_made_again(loaded, unbroken, tmp_path):
    go(loaded, tmp_path)
    (tmp_path / 'rows' / 'k1' / 'seed_1.json').write_text('{"half')
    count, printed = go(loaded, tmp_path)
    assert count == 1 and 'cannot be used and is kept as' in printed
    assert tables(tmp_path) == unbroken
    assert (tmp_path / 'rows/k1/seed_1.json.set_aside_1').read_text() == '{"half'


def test_a_study_continues_from_rows_of_another_machine(loaded, unbroken, tmp_path):
    """Only the record and some rows are there, as from version control."""
    registration.register(loaded, str(tmp_path))
    for name in ('k1/seed_0.json', 'dense/seed_2.json'):
        (tmp_path / 'rows' / name).parent.mkdir(parents=True)
        (tmp_path / 'rows' / name).write_bytes(unbroken[name])
    assert go(loaded, tmp_path)[0] == 10 and tables(tmp_path) == unbroken


def test_a_packed_study_continues(loaded, unbroken, tmp_path):
    """It is packed when half is done: those cells stay done, and the rest is written as files."""
    assert go(loaded, tmp_path, only='k1,dense')[0] == 6
    pack(str(tmp_path))
    assert tables(tmp_path) == {}
    count, printed = go(loaded, tmp_path)
    assert count == 6 and '12 of 12 cells, 100% of the FLOPs' in printed
    assert {name.partition('/')[0] for name in tables(tmp_path)} == {'again', 'k2'}
    assert len(log(tmp_path)) == 12 * study_fakes.STEPS
    pack(str(tmp_path))
    assert go(loaded, tmp_path) == (0, 'study tiny: 12 of 12 cells are done\n')
    lines = (tmp_path / 'rows.jsonl').read_text().splitlines()
    assert list(map(json.loads, lines)) == [
        json.loads(unbroken[f'{a}/seed_{s}.json']) for a, s in CELLS
    ]
    timings = stopwatch.timings(str(tmp_path))
    assert all(timings[a][s]['trained_flops'] == study_fakes.FLOPS for a, s in CELLS)


def test_a_packed_row_that_cannot_be_used_is_made_again_and_kept(loaded, unbroken, tmp_path):
    go(loaded, tmp_path)
    pack(str(tmp_path))
    file = tmp_path / 'rows.jsonl'
    whole = file.read_bytes().splitlines(keepends=True)
    half = whole[4][:300]
    file.write_bytes(b''.join([*whole[:4], half + b'\n', *whole[5:]]))
    count, printed = go(loaded, tmp_path)
    assert count == 1 and f'k1 seed 1 cannot be used and is kept as {file}, line 5' in printed
    assert tables(tmp_path) == {'k1/seed_1.json': unbroken['k1/seed_1.json']}
    assert half in file.read_bytes()
    record, digest = registration.read(str(tmp_path))
    assert rows.read(str(tmp_path), record, digest)[1] == []
    pack(str(tmp_path))
    assert file.read_bytes() == b''.join(whole)
    assert (tmp_path / 'rows.jsonl.set_aside_1').read_bytes() == half + b'\n'


def test_states_of_cells(loaded, tmp_path, monkeypatch):
    record, _ = registration.register(loaded, str(tmp_path))
    monkeypatch.setenv('FAKE_FAILS', '2:0')
    monkeypatch.setenv('FAKE_DIVERGES', '2:2')
    for only in ('k1', 'again', 'k2'):
        try:
            go(loaded, tmp_path, only=only)
        except UserError:
            pass
    (tmp_path / 'rows/k1/seed_1.json').write_text('')
    (tmp_path / 'runs/k2/seed_1').mkdir()
    with Claims(str(tmp_path)) as others, Claims(str(tmp_path)) as ours:
        assert others.take(('dense', 2))
        found = plan.states(str(tmp_path), record, record['arms'], ours)
    assert list(found.values()) == [
        'missing',
        'missing',
        'running',
        'done',
        'unusable',
        'done',
        'half-done',
        'half-done',
        'missing',
        'done',
        'done',
        'done',
    ]


def test_two_processes_share_the_work(tmp_path, unbroken):
    both = [started(tmp_path / 'W', FAKE_SECONDS='0.02') for _ in range(2)]
    printed = [p.communicate(timeout=60)[1] for p in both]
    assert [p.returncode for p in both] == [0, 0], printed
    assert tables(tmp_path / 'W') == unbroken
    lines = log(tmp_path / 'W')
    assert len(lines) == len(set(lines)) == 12 * study_fakes.STEPS
    begun = [
        [line.split()[2] for line in text.splitlines() if ' starts' in line] for text in printed
    ]
    assert begun[0] and begun[1] and begun[0][0] != begun[1][0]  # each took an arm of its own
    assert sum(map(len, begun)) == 12
    assert all(text.endswith('12 of 12 cells are done\n') for text in printed)


def test_it_waits_for_a_suspended_process_and_takes_over_from_one_that_died(tmp_path, unbroken):
    workdir = tmp_path / 'W'
    stopped = started(workdir, '--only=k1', FAKE_SECONDS='0.2')
    until(lambda: len(log(workdir)) >= 2)
    stopped.send_signal(signal.SIGSTOP)
    claim = workdir / 'claims' / 'k1.seed_0.json'
    os.utime(claim, (0, 0))  # as if suspended for long
    other = started(workdir)
    until(lambda: len(tables(workdir)) == 11)
    with pytest.raises(subprocess.TimeoutExpired):
        other.communicate(timeout=0.5)
    stopped.kill()
    stopped.communicate()
    printed = other.communicate(timeout=20)[1]
    assert other.returncode == 0 and tables(workdir) == unbroken, printed
    assert printed.count('waits') == 1
    assert f'waits for k1 seed 0 (process {stopped.pid} on ' in printed
    assert 'k1 seed 0: continues' in printed and printed.endswith('12 of 12 cells are done\n')


def test_a_second_process_helps_with_the_last_arm(loaded, tmp_path):
    """Cells of an arm are claimed one by one, so nobody waits for all of them."""
    with Claims(str(tmp_path)) as others:
        others.take(('k1', 1))
        count, printed = go(loaded, tmp_path, only='k1', then=lambda: others.release(('k1', 1)))
    assert count == 3 and printed.index('k1 seed 2: done') < printed.index(
        f'waits for k1 seed 1 (process {os.getpid()} on '
    ) < printed.index('k1 seed 1: starts')


def test_it_ends_when_others_have_done_the_rest(loaded, unbroken, tmp_path):
    def ends():
        row = tmp_path / 'rows' / 'k1' / 'seed_1.json'
        row.write_bytes(unbroken['k1/seed_1.json'])

    with Claims(str(tmp_path)) as others:
        others.take(('k1', 1))
        count, printed = go(loaded, tmp_path, only='k1', then=ends)
    assert count == 2 and printed.endswith('3 of 3 cells are done\n')


def test_a_claim_that_goes_stale_meanwhile_is_taken_over(loaded, tmp_path):
    claim = tmp_path / 'claims' / 'k1.seed_1.json'
    claim.parent.mkdir()
    claim.write_text('{"pid": 1, "host": "elsewhere"}')
    count, printed = go(loaded, tmp_path, only='k1', then=lambda: os.utime(claim, (0, 0)))
    assert count == 3 and 'waits for k1 seed 1 (process 1 on elsewhere works on it)' in printed


def test_it_says_from_time_to_time_that_it_waits(loaded, tmp_path, monkeypatch):
    monkeypatch.setattr(runner, 'REMIND', 0.4)
    times = []

    def then():
        times.append(time.monotonic())
        if len(times) == 3:
            others.release(('k1', 1))

    with Claims(str(tmp_path)) as others:
        others.take(('k1', 1))
        assert go(loaded, tmp_path, only='k1', then=then)[0] == 3
    assert len(times) == 3 and times[2] - times[0] >= 0.4  # 0.8, minus the delay of the first


def test_a_takeover_that_hangs_is_waited_for(loaded, tmp_path, monkeypatch):
    """A process of another machine died while it took over the claim of a dead process."""
    monkeypatch.setattr(runner, 'AGAIN', 0.0)
    folder = tmp_path / 'claims'
    folder.mkdir()
    (folder / 'k1.seed_0.json').write_text('{"pid": 1, "host": "elsewhere"}')
    os.utime(folder / 'k1.seed_0.json', (0, 0))
    lock = folder / 'k1.seed_0.takeover'
    lock.write_text('{"pid": 1, "host": "elsewhere"}')
    take, tries = Claims.take, []

    def counted(self, cell):
        tries.append(cell)
        if len(tries) == 1200:
            os.utime(lock, (0, 0))
        return take(self, cell)

    monkeypatch.setattr(Claims, 'take', counted)
    assert go(loaded, tmp_path, only='k1')[0] == 3
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize('before', [(0, 1), (0,)])
def test_a_cell_that_was_done_just_before_it_was_claimed(
    loaded, unbroken, tmp_path, monkeypatch, before
):
    def done(seed):
        row = tmp_path / 'rows' / 'k1' / f'seed_{seed}.json'
        row.parent.mkdir(parents=True, exist_ok=True)
        row.write_bytes(unbroken[f'k1/seed_{seed}.json'])

    for seed in before:
        done(seed)
    states, chosen, held = plan.states, len(before), []

    def late(*args):
        found = states(*args)
        held.append([p.name for p in (tmp_path / 'claims').iterdir() if p.name[0] != '.'])
        done(chosen)  # by another process, after this one looked
        return found

    monkeypatch.setattr(plan, 'states', late)
    assert go(loaded, tmp_path, only='k1')[0] == 2 - chosen
    assert held[0] == held[-1] == []


def test_the_commit_is_that_of_the_start(monkeypatch):
    from moe_vision.run_folder import record

    found = record.git_commit()
    monkeypatch.setattr(subprocess, 'run', lambda *a, **k: pytest.fail('asked again'))
    assert record.git_commit() == found


def test_a_cell_that_was_done_meanwhile_is_left_out(loaded, unbroken, tmp_path):
    asked = []

    def train_arm(configs, folders, mode, probe, done, begin):
        other = tmp_path / 'rows' / 'k1' / 'seed_1.json'  # another process ends its cell
        other.parent.mkdir(parents=True)
        other.write_bytes(unbroken['k1/seed_1.json'])
        fake_train_arm(
            configs, folders, mode, probe, done, lambda i: asked.append(begin(i)) or asked[-1]
        )

    assert go(loaded, tmp_path, train_arm, only='k1')[0] == 2
    assert asked == [True, False, True] and list((tmp_path / 'claims').iterdir()) == []


@pytest.mark.slow
def test_killed_at_several_moments_it_ends_with_the_same_rows(tmp_path, unbroken):
    workdir, marks = tmp_path / 'W', []
    for lines in (2, 9, 21):  # within the first cell, within an arm, between arms
        process = started(workdir, FAKE_SECONDS='0.02')
        until(lambda n=lines: len(log(workdir)) >= n)
        process.kill()
        process.communicate()
        marks.append(len(tables(workdir)) if (workdir / 'rows').exists() else 0)
    assert 0 == marks[0] < marks[1] < marks[2] < 12 and list((workdir / 'claims').iterdir())
    process = started(workdir)
    printed = process.communicate(timeout=60)[1]
    assert process.returncode == 0 and ': continues' in printed, printed
    assert tables(workdir) == unbroken
    assert len(set(log(workdir))) == len(log(workdir))  # no step was trained twice


@pytest.mark.parametrize('number, code', [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_gives_the_claims_back(tmp_path, number, code):
    workdir = tmp_path / 'W'
    process = started(workdir, FAKE_SECONDS='0.05')
    until(lambda: len(log(workdir)) >= 2)
    process.send_signal(number)
    printed = process.communicate(timeout=20)[1]
    assert process.returncode == code and 'Traceback' not in printed
    assert list((workdir / 'claims').iterdir()) == []


def test_together_takes_all_seeds_of_an_arm_that_have_no_row(together, tmp_path):
    calls = []

    def train_arm(configs, folders, mode, probe, done, begin):
        calls.append([c.seed for c in configs])
        assert mode == 'together' and len(list((tmp_path / 'claims').glob('*'))) == len(configs)
        if len(calls) == 2:
            fake_train_arm(configs[:1], folders[:1], mode, probe, done)
            raise ValueError('killed')
        fake_train_arm(configs, folders, mode, probe, done)

    with pytest.raises(UserError, match='cell k1 seed 0'):
        go(together, tmp_path, train_arm)
    before = tables(tmp_path)
    assert len(before) == 4 and list((tmp_path / 'claims').iterdir()) == []
    assert go(together, tmp_path, train_arm)[0] == 8
    assert calls == [[0, 1, 2], [0, 1, 2], [1, 2], [0, 1, 2], [100, 101, 102]]
    assert {k: v for k, v in tables(tmp_path).items() if k in before} == before
    assert not list(tmp_path.glob('runs/*/*/checkpoints'))


def test_together_a_seed_that_diverged_is_not_trained_again(together, tmp_path, monkeypatch):
    """It is killed after seed 1 diverged: the others continue where they were."""
    monkeypatch.setenv('FAKE_DIVERGES', '1:1')
    calls = []

    def train_arm(configs, folders, mode, probe, done, begin):
        calls.append([c.seed for c in configs])
        if len(calls) == 1:
            fake_train_arm(configs[1:2], folders[1:2], mode, probe, lambda i, error: done(1, error))
            (Path(folders[0]) / 'checkpoints' / 'latest' / '3').mkdir(parents=True)
            raise KeyboardInterrupt
        fake_train_arm(configs, folders, mode, probe, done)

    with pytest.raises(KeyboardInterrupt):
        go(together, tmp_path, train_arm, only='k1')
    before = tables(tmp_path)
    assert json.loads(before['k1/seed_1.json'])['status'] == 'diverged'
    assert not (tmp_path / 'runs/k1/seed_1/checkpoints').exists()
    assert go(together, tmp_path, train_arm, only='k1')[0] == 2
    assert calls == [[0, 1, 2], [0, 2]]
    assert [line for line in log(tmp_path) if line.startswith('k1 1:0')] == ['k1 1:0 step 4']
    assert tables(tmp_path)['k1/seed_1.json'] == before['k1/seed_1.json']


def test_together_leaves_an_arm_to_whoever_works_on_it(together, tmp_path):
    with Claims(str(tmp_path)) as others:
        others.take(('k1', 2))

        def then():
            assert len(tables(tmp_path)) == 9 and not (tmp_path / 'rows' / 'k1').exists()
            others.release(('k1', 2))

        assert go(together, tmp_path, then=then)[0] == 12


def timing(seconds, flops, first=False, device='fake'):
    return {'seconds': seconds, 'trained_flops': flops, 'first': first, 'device': device}


def test_the_time_left_by_hand():
    """a takes 2 s for 10 FLOPs; b was not timed and gets the rate of all, 6 s for 30; compiling
    takes 5 s per arm."""
    todo = Plan({'a': 10, 'b': 40}, {'a': 2, 'b': 3}, {'a': 4, 'b': 4})
    timings = {
        'a': {0: timing(7.0, 10, first=True), 1: timing(2.0, 10)},
        'c': {0: timing(4.0, 20), 1: timing(99.0, 1, device='other'), 2: timing(50.0, None)},
    }
    here = {'device': 'fake'}
    assert todo.seconds(timings, here) == {'a': 2 * 2.0 + 5.0, 'b': 3 * 40 * 0.2 + 5.0}
    assert todo.seconds(timings, here, started='a') == {'a': 4.0, 'b': 29.0}
    assert todo.seconds({}, here) is None and todo.seconds(timings, {'device': 'x'}) is None
    assert todo.share_done() == pytest.approx(1 - (2 * 10 + 3 * 40) / (4 * 10 + 4 * 40))
    text = plan.table(todo, timings, here)
    timings['c'] |= {
        3: {'trained_flops': 20, 'seconds': 4.0, 'device': 'fake'},  # no 'first'
        4: {'trained_flops': 20, 'device': 'fake'},
    }  # no 'seconds'
    assert todo.seconds(timings, here) == {'a': 9.0, 'b': 29.0}
    assert '1.400e+02' in text and '0:00:38' in text and '3 x forward' in text
    assert 'unknown: no cell has been timed yet' in plan.table(todo, {}, here)


def test_the_time_left_is_that_of_as_many_devices():
    """A timing without `devices` counts as one device, as in older timings."""
    todo = Plan({'a': 10}, {'a': 1}, {'a': 2})
    timings = {'a': {0: timing(2.0, 10), 1: timing(0.5, 10) | {'devices': 8}}}
    assert todo.seconds(timings, {'device': 'fake', 'devices': 1}) == {'a': 2.0}
    assert todo.seconds(timings, {'device': 'fake', 'devices': 8}) == {'a': 0.5}
    assert todo.seconds(timings, {'device': 'fake', 'devices': 4}) is None


def test_training_flops_are_three_forward_passes(loaded, monkeypatch):
    """The study takes 4 steps of 64 images."""
    monkeypatch.undo()
    import input_pipeline
    from moe_vision import leverage

    config = loaded.configs['k1']
    forward = leverage.measure(config, input_pipeline.info(config.dataset)).flops_executed
    assert plan.training_flops(config) == 3 * forward * 4 * 64


def test_costs_are_not_traced_again_for_arms_that_were_timed(loaded):
    configs = {a: loaded.configs[a] for a in ('k1', 'k2')}
    assert plan.costs(configs, {'k1': {0: {'flops': 5}}}) == {'k1': 5, 'k2': study_fakes.FLOPS}


def test_a_claim_that_was_lost_writes_no_row(loaded, tmp_path):
    def train_arm(configs, folders, mode, probe, done, begin):
        begin(0)
        (tmp_path / 'claims' / 'dense.seed_0.json').write_text('{}')  # now another process's
        done(0, None)

    with pytest.raises(UserError, match='cell dense seed 0: its claim was lost'):
        go(loaded, tmp_path, train_arm)
    assert not (tmp_path / 'rows').exists() and (tmp_path / 'claims/dense.seed_0.json').exists()
    assert stopwatch.timings(str(tmp_path)) == {}
