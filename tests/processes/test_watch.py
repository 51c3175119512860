"""Processes that watch each other: who dies, hangs or fails is named by all others."""

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

NEXT = 'start all processes again with the same command: the run goes on at its newest checkpoint.'


@pytest.fixture
def three(monkeypatch):
    """Watches of processes 0 and 1; 2 is a bare connection. And what each was told."""
    monkeypatch.setattr(watch, 'BEAT_SECONDS', 0.05)
    monkeypatch.setattr(watch, 'SILENT_SECONDS', 1.0)
    monkeypatch.setattr(watch, 'GRACE_SECONDS', 0.0)
    addresses: queue.Queue[str] = queue.Queue()
    told: list[list[str]] = [[], []]
    made: dict[int, Watch] = {}

    def share(text: str) -> str:
        for _ in range(2 if text else 0):
            addresses.put(text)
        return text or addresses.get(timeout=10)

    def make(process: int) -> None:
        made[process] = Watch(process, 3, '127.0.0.1' if process == 0 else '', share,
                              told[process].append)
    threads = [threading.Thread(target=make, args=(i,)) for i in range(2)]
    for t in threads:
        t.start()
    host, _, port = addresses.get(timeout=10).rpartition(':')
    bare = socket.create_connection((host, int(port)))
    bare.sendall(json.dumps({'process': 2}).encode() + b'\n')
    for t in threads:
        t.join()
    yield made, bare, told
    for w in made.values():
        w.close()
    bare.close()


def until(condition, seconds: float = 10.0) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()


def test_a_process_that_dies_is_named_by_all_others_at_once(three):
    _, bare, told = three
    bare.close()
    assert until(lambda: told[1], 0.8)  # before anyone is taken for silent
    assert until(lambda: told[0])
    assert told == [[f'error: process 2 of 3 has died; {NEXT}']] * 2


def test_a_process_that_hangs_is_named_by_all_others(three):
    """Its connection stays open, but it sends nothing."""
    _, _, told = three
    assert until(lambda: told[0] and told[1])
    assert told == [[f'error: process 2 of 3 has not been heard of for 1 s; {NEXT}']] * 2


def test_the_error_of_a_process_is_told_by_all_others(three):
    made, bare, told = three
    made[1].close('the disk burns')
    assert until(lambda: told[0])
    assert told == [[f'error: process 1 of 3 has stopped: the disk burns; {NEXT}'], []]
    said = next(line for line in bare.makefile() if line.strip())
    assert json.loads(said)['ended'].startswith('process 1 of 3 has stopped')


def test_a_process_that_is_done_ends_nobody(three):
    made, bare, told = three
    bare.sendall(b'{"done": true}\n')
    bare.close()
    time.sleep(1.5)
    assert told == [[], []]
    made[1].close()
    made[0].close()
    time.sleep(0.2)
    assert told == [[], []]


def test_the_last_line_is_written_at_once(monkeypatch):
    """The runtime's threads write to the same stream: a line and its end must not be parted."""
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
