"""Process 0 lets in who knows the token, once per process, and waits for nobody else."""

import socket
import threading
import time

import pytest

from moe_vision.processes import address, admit

TOKEN = admit.new_token()


class Door:
    """Process 0's side, in a thread, for a run of three processes."""

    def __init__(self, seconds: float = 10.0):
        self.listener = address.listen('127.0.0.1')
        self.address = self.listener.getsockname()
        self.links = {}
        self._thread = threading.Thread(target=self._admit, args=(seconds,))
        self._thread.start()

    def _admit(self, seconds: float) -> None:
        self.links = admit.admit(self.listener, TOKEN, [1, 2], seconds)

    def closed(self, seconds: float) -> bool:
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def knock(self, data: bytes = b'') -> socket.socket:
        link = socket.create_connection(self.address, timeout=10)
        link.sendall(data)
        return link


def test_a_hello_may_come_in_pieces():
    door = Door()
    link = door.knock()
    for byte in admit.hello(TOKEN, 1):
        link.sendall(bytes([byte]))
        time.sleep(0.002)
    assert link.recv(1) == b'\n'
    admit.join(door.address, TOKEN, 2, 5.0)
    assert door.closed(5) and sorted(door.links) == [1, 2]


def test_what_follows_the_hello_is_left_for_the_watch():
    door = Door()
    links = [door.knock(admit.hello(TOKEN, p) + b'\n{"done": true}\n') for p in (2, 1)]
    assert door.closed(5)
    assert door.links[2].recv(100) == b'\n{"done": true}\n'
    assert [link.recv(1) for link in links] == [b'\n', b'\n']


@pytest.mark.parametrize('process', [0, 1, 3, 99_999_999])
def test_a_second_connection_of_a_process_and_a_number_out_of_range_are_refused(process):
    door = Door()
    first = admit.join(door.address, TOKEN, 1, 5.0)
    second = door.knock(admit.hello(TOKEN, process))
    assert second.recv(1) == b''
    admit.join(door.address, TOKEN, 2, 5.0)
    assert door.closed(5)
    first.sendall(b'still here')
    assert door.links[1].recv(100) == b'still here'


def test_a_stranger_has_a_short_time(monkeypatch):
    """Also one that sends a byte now and then."""
    monkeypatch.setattr(admit, 'HELLO_SECONDS', 0.3)
    door = Door(seconds=2.0)
    silent, slow, began = door.knock(), door.knock(), time.monotonic()
    with pytest.raises(OSError):
        while True:
            slow.sendall(b'0')
            time.sleep(0.05)
    assert silent.recv(1) == b'' and time.monotonic() - began < 1.0
    assert door.closed(5) and not door.links


def test_of_many_strangers_the_oldest_is_closed_and_the_run_gets_in():
    door = Door()
    began, crowd = time.monotonic(), [door.knock() for _ in range(3 * admit.PENDING)]
    assert crowd[0].recv(1) == b'' and time.monotonic() - began < admit.HELLO_SECONDS
    links = [admit.join(door.address, TOKEN, p, 5.0) for p in (1, 2)]
    assert door.closed(5)
    assert len(links) == len(door.links) == 2


def test_a_process_that_is_turned_away_in_a_crowd_tries_again():
    with socket.create_server(('127.0.0.1', 0)) as server:

        def serve():
            for answer in (b'', b'\n'):
                link = server.accept()[0]
                link.recv(admit.HELLO_BYTES, socket.MSG_WAITALL)
                link.sendall(answer)
                if not answer:
                    link.close()

        threading.Thread(target=serve, daemon=True).start()
        assert admit.join(server.getsockname(), TOKEN, 1, 5.0)


def test_joining_ends_in_time():
    began = time.monotonic()
    with socket.create_server(('127.0.0.1', 0)) as silent, pytest.raises(OSError):
        admit.join(silent.getsockname(), TOKEN, 1, 0.5)
    assert time.monotonic() - began < 2.0
