"""How a process proves to process 0 that it belongs to the run, and how process 0 lets it in.

A process connects and sends at once the run's token, which only the run's processes know, and its
own number, always HELLO_BYTES in all. Process 0 answers with an empty line. It reads no more than
those bytes before it knows who has sent them.
"""

import contextlib
import secrets
import selectors
import socket
import time
from collections.abc import Iterable

HELLO_SECONDS = 5.0  # within which a connection must have proved itself
PENDING = 64  # connections that may be about to: of more, the oldest is closed
_TOKEN_BYTES, _DIGITS = 32, 8
HELLO_BYTES = _TOKEN_BYTES + _DIGITS


def new_token() -> str:
    """A run's secret, 128 random bits in hexadecimal."""
    return secrets.token_hex(_TOKEN_BYTES // 2)


def hello(token: str, process: int) -> bytes:
    """What a process sends first."""
    return f'{token}{process:0{_DIGITS}d}'.encode()


def admit(
    listener: socket.socket, token: str, processes: Iterable[int], seconds: float
) -> dict[int, socket.socket]:
    """The connections of these processes, of as many as prove themselves in time.

    One that sends something else, or too little within HELLO_SECONDS, is closed, and so is a second
    one of the same process. Whatever they send, they do not hold up the others. Closes
    the listener.
    """
    missing, links = {hello(token, p): p for p in processes}, {}
    pending: dict[socket.socket, tuple[float, bytes]] = {}  # until when, what came; oldest first
    until = time.monotonic() + seconds

    def read(link: socket.socket) -> None:
        end, came = pending.pop(link)
        try:
            new = link.recv(HELLO_BYTES - len(came))
            came += new
            if new and len(came) < HELLO_BYTES:
                pending[link] = end, came
                return
            if came in missing:
                link.sendall(b'\n')
                links[missing.pop(came)] = link
        except OSError:
            pass
        selector.unregister(link)
        if link not in links.values():
            link.close()

    def close(link: socket.socket) -> None:
        del pending[link]
        selector.unregister(link)
        link.close()

    with selectors.DefaultSelector() as selector, listener:
        listener.setblocking(False)
        selector.register(listener, selectors.EVENT_READ)
        while missing and (now := time.monotonic()) < until:
            wait = min([until, *(end for end, _ in pending.values())]) - now
            for key, _ in selector.select(max(wait, 0.0)):
                if key.fileobj in pending:
                    read(key.fileobj)
                elif key.fileobj is listener:
                    with contextlib.suppress(OSError):
                        link = listener.accept()[0]
                        link.setblocking(False)
                        pending[link] = time.monotonic() + HELLO_SECONDS, b''
                        selector.register(link, selectors.EVENT_READ)
            late = [link for link, (end, _) in pending.items() if end <= time.monotonic()]
            for link in late or list(pending)[: max(0, len(pending) - PENDING)]:
                close(link)
        for link in list(pending):
            close(link)
    return links


def join(address: tuple[str, int], token: str, process: int, seconds: float) -> socket.socket:
    """This process's connection to process 0, which has let it in.

    Raises:
      OSError: not within so many seconds.
    """
    until = time.monotonic() + seconds
    while True:
        try:
            link = socket.create_connection(address, timeout=max(until - time.monotonic(), 0.1))
            try:
                link.sendall(hello(token, process))
                if link.recv(1):
                    return link
                raise ConnectionError('process 0 has closed the connection')
            except OSError:
                link.close()
                raise
        except OSError:
            if time.monotonic() >= until:
                raise
        time.sleep(0.2)
