"""Processes watch each other: when one dies, hangs or fails, all others name it."""

import json
import os
import queue
import socket
import sys
import threading
import time

import pytest

from moe_vision.processes import peers, watch
from moe_vision.processes.watch import Watch

NEXT = (
    'start all processes again with the same command: the run continues from its newest checkpoint.'
)


@pytest.fixture
def three(monkeypatch):
    """The watches of processes 0 and 1, a bare connection as process 2, and the lines with which
    each watch has ended."""
    monkeypatch.setattr(watch, 'BEAT_SECONDS', 0.05)
    monkeypatch.setattr(watch, 'SILENT_SECONDS', 1.0)
    monkeypatch.setattr(watch, 'GRACE_SECONDS', 0.0)
    addresses: queue.Queue[str] = queue.Queue()
    lines: list[list[str]] = [[], []]
    watches: dict[int, Watch] = {}

    def share(address: str) -> str:
        for _ in range(2 if address else 0):
            addresses.put(address)
        return address or addresses.get(timeout=10)

    def make(process: int) -> None:
        watches[process] = Watch(
            process, 3, '127.0.0.1' if process == 0 else '', share, lines[process].append
        )

    threads = [threading.Thread(target=make, args=(i,)) for i in range(2)]
    for t in threads:
        t.start()
    host, _, port = addresses.get(timeout=10).rpartition(':')
    bare = socket.create_connection((host, int(port)))
    bare.sendall(json.dumps({'process': 2}).encode() + b'\n')
    for t in threads:
        t.join()
    yield watches, bare, lines
    for w in watches.values():
        w.close()
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
