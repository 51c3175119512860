"""A claim has one owner at a time, and never a dead one."""

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from moe_vision.common import claims
from moe_vision.study.run.claims import Claims

CELL = ('k1', 3)


@pytest.fixture
def two(tmp_path):
    with Claims(str(tmp_path)) as a, Claims(str(tmp_path)) as b:
        yield a, b


def file(tmp_path):
    return tmp_path / 'claims' / 'k1.seed_3.json'


def write(tmp_path, age=0.0, **owner):
    """A claim that another process left."""
    file(tmp_path).parent.mkdir(exist_ok=True)
    file(tmp_path).write_text(json.dumps(owner))
    now = time.time()
    os.utime(file(tmp_path), (now - age, now - age))


def dead_pid() -> int:
    done = subprocess.Popen([sys.executable, '-c', ''])
    done.wait()
    return done.pid


def test_a_cell_has_one_owner(two, tmp_path):
    a, b = two
    assert a.take(CELL) and a.take(CELL) and not b.take(CELL)
    assert a.holds(CELL) and not b.holds(CELL) and b.taken(CELL) and not a.taken(CELL)
    found = json.loads(file(tmp_path).read_text())
    assert found['pid'] == os.getpid() and found['host']
    b.release(CELL)  # not its own
    assert a.holds(CELL)
    a.release(CELL)
    assert not b.taken(CELL) and b.take(CELL)


def test_leaving_gives_everything_back(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        with Claims(str(tmp_path)) as a:
            a.take(CELL)
            a.take(('k1', 4))
            raise KeyboardInterrupt
    assert list((tmp_path / 'claims').iterdir()) == []


@pytest.mark.parametrize('age, alive', [(0, False), (1000, False)])
def test_a_dead_process_of_this_machine_owns_nothing(two, tmp_path, age, alive):
    write(tmp_path, age, pid=dead_pid(), host=claims._machine())
    assert two[0].taken(CELL) == alive and two[0].take(CELL) and two[0].holds(CELL)


def test_a_process_that_ended_unnoticed_owns_nothing(two, tmp_path):
    child = subprocess.Popen([sys.executable, '-c', ''])
    while child.returncode is None and claims._runs(child.pid, ''):
        time.sleep(0.01)
    write(tmp_path, pid=child.pid, host=claims._machine())
    assert two[0].take(CELL)
    child.wait()


def test_a_suspended_process_keeps_its_cell(two, tmp_path):
    child = subprocess.Popen([sys.executable, '-c', 'input()'], stdin=subprocess.PIPE)
    child.send_signal(signal.SIGSTOP)
    owner = {'pid': child.pid, 'started': claims._started(child.pid), 'host': claims._machine()}
    assert owner['started'].isdigit()
    write(tmp_path, 1000 * claims.STALE, **owner)
    assert two[0].taken(CELL) and not two[0].take(CELL)
    assert two[0].owner(CELL) == f'process {child.pid} on {claims._machine().split()[0]}'
    child.kill()
    child.wait()
    assert not two[0].taken(CELL) and two[0].take(CELL)


def test_a_process_that_reuses_the_id_of_an_ended_one_owns_nothing(two, tmp_path):
    write(tmp_path, pid=os.getpid(), started='1', host=claims._machine())
    assert not two[0].taken(CELL) and two[0].take(CELL)


def test_a_claim_without_a_start_time_is_believed(two, tmp_path):
    write(tmp_path, 1000, pid=os.getpid(), host=claims._machine())
    assert two[0].taken(CELL) and not two[0].take(CELL)


@pytest.mark.parametrize('pid, alive', [('x', True), (10**40, True), (-1, False), (0, False)])
def test_a_claim_that_names_no_process_is_judged_by_its_age(two, tmp_path, pid, alive):
    write(tmp_path, pid=pid, host=claims._machine())
    assert two[0].taken(CELL) == alive
    os.utime(file(tmp_path), (0, 0))
    assert not two[0].taken(CELL) and two[0].take(CELL)


def test_a_process_of_another_machine_is_believed_while_it_beats(two, tmp_path):
    write(tmp_path, claims.STALE - 20, pid=dead_pid(), host='elsewhere')
    assert two[0].taken(CELL) and not two[0].take(CELL)
    write(tmp_path, claims.STALE + 20, pid=dead_pid(), host='elsewhere')
    assert not two[0].taken(CELL) and two[0].take(CELL)


def test_an_owner_beats(tmp_path):
    with Claims(str(tmp_path), beat=0.02, stale=0.5) as a, Claims(str(tmp_path), stale=0.5) as b:
        b._machine = 'elsewhere'
        a.take(CELL)
        os.utime(file(tmp_path), (0, 0))
        end = time.monotonic() + 10
        while file(tmp_path).stat().st_mtime == 0 and time.monotonic() < end:
            time.sleep(0.01)
        assert b.taken(CELL) and not b.take(CELL)


def test_a_claim_that_was_taken_over_is_no_longer_held(two, tmp_path):
    a, b = two
    a.take(CELL)
    b._machine = 'elsewhere'
    os.utime(file(tmp_path), (0, 0))  # it was suspended
    assert b.take(CELL) and b.holds(CELL) and not a.holds(CELL)
    a.release(CELL)
    assert b.holds(CELL)


def test_an_empty_claim_waits_for_its_age(two, tmp_path):
    file(tmp_path).write_text('')
    assert not two[0].take(CELL)
    os.utime(file(tmp_path), (0, 0))
    assert two[0].take(CELL)


def test_a_takeover_that_died_does_not_block_for_ever(two, tmp_path):
    write(tmp_path, pid=dead_pid(), host=claims._machine())
    lock = file(tmp_path).with_suffix('.takeover')
    lock.write_text('')
    assert not two[0].take(CELL)
    os.utime(lock, (0, 0))
    two[0].take(CELL)
    assert two[0].take(CELL)


def test_a_takeover_of_a_dead_process_of_this_machine_blocks_one_try(two, tmp_path):
    write(tmp_path, pid=dead_pid(), host=claims._machine())
    file(tmp_path).with_suffix('.takeover').write_bytes(file(tmp_path).read_bytes())
    assert not two[0].take(CELL) and two[0].take(CELL)


def test_a_takeover_that_lost_its_lock_takes_nothing(two, tmp_path, monkeypatch):
    write(tmp_path, pid=dead_pid(), host=claims._machine())
    lock, alive = file(tmp_path).with_suffix('.takeover'), Claims._alive

    def stands_still(self, path):
        found = alive(self, path)
        if lock.exists():
            lock.write_text('of another process')
        return found

    monkeypatch.setattr(Claims, '_alive', stands_still)
    assert not two[0].take(CELL) and file(tmp_path).exists() and lock.exists()


@pytest.mark.parametrize('stale', [False, True])
def test_one_of_many_at_once_wins(tmp_path, stale):
    with ThreadPoolExecutor(16) as pool:
        for number in range(20):
            cell = ('k1', number)
            all_of_them = [Claims(str(tmp_path)) for _ in range(16)]
            (tmp_path / 'claims').mkdir(exist_ok=True)
            if stale:
                path = tmp_path / 'claims' / f'k1.seed_{number}.json'
                path.write_text(json.dumps({'pid': 1, 'host': 'gone'}))
                os.utime(path, (0, 0))
            won = list(pool.map(lambda c, cell=cell: c.take(cell), all_of_them))
            assert sum(won) == 1


def test_an_owner_on_another_machine_is_watched_until_it_shows_that_it_lives(tmp_path):
    waited = []
    with Claims(str(tmp_path), 0.05, 5) as a, Claims(str(tmp_path), 0.05, 5) as b:
        b._machine = 'elsewhere'
        a.take(CELL)
        assert not b.take_or_watch(CELL, lambda: waited.append(1)) and waited == [1]
        assert a.holds(CELL)


def test_an_owner_that_died_on_another_machine_is_waited_for_no_longer_than_it_must(tmp_path):
    with Claims(str(tmp_path), 0.05, 0.5) as a:
        write(tmp_path, 0.2, pid=dead_pid(), host='elsewhere')
        start = time.monotonic()
        assert a.take_or_watch(CELL) and 0.1 < time.monotonic() - start < 3


def test_an_owner_on_this_machine_is_not_waited_for(two):
    a, b = two
    a.take(CELL)
    assert not b.take_or_watch(CELL, lambda: pytest.fail('it waits'))
    a.release(CELL)
    assert b.take_or_watch(CELL)


def test_a_claim_that_cannot_be_written_is_not_left_behind(tmp_path, monkeypatch):
    def full(number, mode):
        os.close(number)
        raise OSError(28, 'No space left on device')

    with Claims(str(tmp_path)) as a:
        with monkeypatch.context() as patch:
            patch.setattr(claims.os, 'fdopen', full)
            with pytest.raises(OSError, match='No space'):
                a.take(CELL)
        assert not file(tmp_path).exists() and a.take(CELL)
