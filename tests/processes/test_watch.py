"""Processes watch each other: when one dies, hangs or fails, all others name it."""

import contextlib
import json
import logging
import os
import queue
import socket
import sys
import threading
import time

import pytest

from moe_vision.processes import admit, peers, watch
from moe_vision.processes.watch import Watch

NEXT = (
    'start all processes again with the same command: the run continues from its newest checkpoint.'
)

pytestmark = pytest.mark.slow  # they wait for each other, in seconds


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(watch, 'BEAT_SECONDS', 0.05)
    monkeypatch.setattr(watch, 'SILENT_SECONDS', 1.0)
    monkeypatch.setattr(watch, 'GRACE_SECONDS', 0.0)


class Run:
    """Watches of one run in threads, and the lines with which each of them has ended.

    Args:
      watched: the processes that have a watch here, of three.
      host: the coordinator's.
      first: called with what process 0 shares before the others receive it. What it returns, if
        anything, is received instead.
    """

    def __init__(self, *watched: int, host: str = '127.0.0.1', first=lambda shared: None):
        self.shared: queue.Queue = queue.Queue()
        self.lines: dict[int, list[str]] = {i: [] for i in watched}
        self.watches: dict[int, Watch] = {}
        self._first = first
        self._threads = [threading.Thread(target=self._watch, args=(i, host)) for i in watched]
        for t in self._threads:
            t.start()

    def _watch(self, process: int, host: str) -> None:
        def share(value):
            if process:
                return self.shared.get(timeout=10)
            received = self._first(value) or value
            for _ in range(2):
                self.shared.put(received)
            return value

        self.watches[process] = Watch(process, 3, host, share, self.lines[process].append)

    def started(self, seconds: float = 10.0) -> bool:
        """Waits for all watches. Whether they were there in time."""
        end = time.monotonic() + seconds
        for t in self._threads:
            t.join(max(0.0, end - time.monotonic()))
        return not any(t.is_alive() for t in self._threads)

    def close(self) -> None:
        for t in self._threads:
            t.join()
        for w in self.watches.values():
            w.close()


@pytest.fixture
def three(quick):
    """The watches of processes 0 and 1, a bare connection as process 2, and the lines with which
    each watch has ended."""
    run = Run(0, 1)
    ip, port, token = run.shared.get(timeout=10)
    bare = socket.create_connection((ip, port))
    bare.sendall(admit.hello(token, 2))
    assert run.started()
    yield run.watches, bare, [run.lines[0], run.lines[1]]
    run.close()
    bare.close()


def until(condition, seconds: float = 10.0) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()


def test_a_process_that_dies_is_named_by_all_others_at_once(three):
    _, bare, lines = three
    bare.close()
    assert until(lambda: lines[1], 0.8)  # before any process counts as silent
    assert until(lambda: lines[0])
    assert lines == [[f'error: process 2 of 3 has died; {NEXT}']] * 2


def test_a_process_that_hangs_is_named_by_all_others(three):
    """Its connection stays open, but it sends nothing."""
    _, _, lines = three
    assert until(lambda: lines[0] and lines[1])
    assert lines == [[f'error: process 2 of 3 has sent nothing for 1 s; {NEXT}']] * 2


def test_the_error_of_a_process_is_reported_by_all_others(three):
    watches, bare, lines = three
    watches[1].close('the disk burns')
    assert until(lambda: lines[0])
    assert lines == [[f'error: process 1 of 3 has stopped: the disk burns; {NEXT}'], []]
    message = next(line for line in bare.makefile() if line.strip())
    assert json.loads(message)['ended'].startswith('process 1 of 3 has stopped')


def test_a_process_that_is_done_ends_nobody(three):
    watches, bare, lines = three
    bare.sendall(b'{"done": true}\n')
    bare.close()
    time.sleep(1.5)
    assert lines == [[], []]
    watches[1].close()
    watches[0].close()
    time.sleep(0.2)
    assert lines == [[], []]


def connect(shared, data: bytes = b'') -> socket.socket:
    link = socket.create_connection(tuple(shared[:2]), timeout=10)
    threading.Thread(target=send, args=(link, data), daemon=True).start()
    return link


def send(link: socket.socket, data: bytes) -> None:
    with contextlib.suppress(OSError):  # refused before the end of the data
        link.sendall(data)


def refused(link: socket.socket) -> bool:
    """Whether process 0 has closed the connection and has sent nothing."""
    try:
        return not link.recv(1)
    except ConnectionError:  # closed with bytes that it has not read
        return True


STRANGERS = {
    'silent': [b''],
    'halves': [b'0' * 20],
    'huge': [b'x' * 10_000_000],
    'many': [b''] * 100,
    'http': [b'GET / HTTP/1.1\r\nHost: a\r\n\r\n'],
    'old': [b'{"process": 1}\n', b'{"process": 2}\n'],
    'json': [
        b'[]\n',
        b'null\n',
        b'{"process": [1]}\n',
        b'{"process": 1e999}\n',
        b'{"done": true}\n',
        b'{"ended": "you", "grace": 0}\n',
        b'[' * 100_000,
    ],
    'wrong token': [admit.hello('0' * 32, 1), admit.hello('0' * 32, 2)],
}


@pytest.mark.parametrize('kind', STRANGERS)
def test_strangers_neither_delay_nor_end_a_run_nor_take_a_place(quick, kind, monkeypatch):
    """They connect before the run's own processes do."""
    monkeypatch.setattr(watch, 'SILENT_SECONDS', 8.0)
    strangers = []

    def first(shared):
        strangers.extend(connect(shared, data) for data in STRANGERS[kind])

    run = Run(0, 1, 2, first=first)
    assert run.started(3.0)  # and not only after HELLO_SECONDS or SILENT_SECONDS / 2
    assert all(map(refused, strangers))
    assert {p: sorted(w._links) for p, w in run.watches.items()} == {0: [1, 2], 1: [0], 2: [0]}
    time.sleep(0.2)
    assert run.lines == {0: [], 1: [], 2: []}
    run.watches[2].close('the disk burns')
    assert until(lambda: run.lines[0] and run.lines[1])
    run.close()


def test_nobody_can_connect_after_the_start(quick):
    seen = []
    run = Run(0, 1, 2, first=seen.append)
    assert run.started()
    with pytest.raises(ConnectionRefusedError):
        connect(seen[0])
    run.close()


def test_the_port_is_open_only_at_the_address_that_the_processes_use(quick):
    """127.0.0.2 is this machine, too."""
    seen = []

    def first(shared):
        seen.append(shared[0])
        with socket.socket() as s:
            seen.append(s.connect_ex(('127.0.0.2', shared[1])))

    run = Run(0, 1, 2, first=first)
    assert run.started() and seen[0] == '127.0.0.1' and seen[1] != 0
    run.close()


def test_each_run_has_its_own_token(quick):
    tokens = []
    for _ in range(2):
        run = Run(0, 1, 2, first=lambda shared: tokens.append(shared[2]))
        assert run.started()
        run.close()
    assert len(set(tokens)) == 2 and all(len(t) == 32 for t in tokens)


def test_without_an_address_nobody_is_watched_and_the_run_goes_on(quick, caplog):
    with caplog.at_level(logging.WARNING):
        run = Run(0, 1, 2, host='203.0.113.7')
        assert run.started()
    assert [r.getMessage() for r in caplog.records] == [
        "processes cannot be watched ('203.0.113.7' is not an address of this machine); if one "
        'dies, the others end only when the heartbeat of jax.distributed gives up'
    ]
    time.sleep(1.2)
    assert run.lines == {0: [], 1: [], 2: []}
    run.close()


def test_a_process_that_cannot_connect_costs_only_its_own_watch(quick, caplog):
    with caplog.at_level(logging.WARNING):
        run = Run(0, 1)  # process 2 does not come
        assert run.started()
    assert 'process 2 cannot be watched' in caplog.text
    time.sleep(1.2)
    assert run.lines == {0: [], 1: []}
    run.watches[1].close('the disk burns')
    assert until(lambda: run.lines[0])
    run.close()


def test_a_process_that_is_refused_says_so_and_goes_on(quick, caplog):
    with caplog.at_level(logging.WARNING):
        run = Run(0, 1, 2, first=lambda shared: [*shared[:2], '0' * 32])
        assert run.started()
    assert 'process 1, 2 cannot be watched' in caplog.text
    assert caplog.text.count('this process cannot be watched') == 2
    time.sleep(1.2)
    assert run.lines == {0: [], 1: [], 2: []}
    run.close()


def test_the_last_line_is_one_write(monkeypatch):
    """The runtime's threads write to the same stream and could come between a line and its end."""

    class Stream:
        def __init__(self):
            self.writes = []

        def write(self, text):
            self.writes.append(text)

        def flush(self):
            pass

    stream, codes = Stream(), []
    monkeypatch.setattr(sys, 'stderr', stream)
    monkeypatch.setattr(os, '_exit', codes.append)
    peers.end(1, 'error: process 0 of 2 has died')
    assert (stream.writes, codes) == (['error: process 0 of 2 has died\n'], [1])
