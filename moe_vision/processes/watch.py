"""Watches over the processes of a run: where one ends before the run does, all end, with a line.

Every process holds a connection to process 0 and sends a byte a second. A process that is killed
closes it at once; one that is frozen, or whose machine is gone, falls silent. Process 0 tells the
others. Without this they would wait in a collective until the runtime's own heartbeat gives up.
"""

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable
from typing import Any, TextIO

from absl import logging

BEAT_SECONDS = 1.0
SILENT_SECONDS = 30.0  # of a process that is taken for dead
GRACE_SECONDS = 2.0  # for this process to tell its own error, where another one told one
_NEXT = ('start all processes again with the same command: the run goes on at its newest '
         'checkpoint')


class Watch:
    """Of one process; `ended(line)` is called at most once, from a thread.

    Args:
      process, processes: of the run.
      host: of process 0, as the others reach it; nobody else knows it.
      share: gives every process the text that process 0 puts in.
    """

    def __init__(self, process: int, processes: int, host: str, share: Callable[[str], str],
                 ended: Callable[[str], Any]):
        self._process, self._processes, self._ended = process, processes, ended
        self._links: dict[int, tuple[socket.socket, TextIO]] = {}  # by process; and its lines
        self._lock = threading.Lock()
        self._done = False
        listener = None
        if process == 0:
            listener = socket.create_server(('', 0), backlog=processes)
            listener.settimeout(SILENT_SECONDS)
        address = share(f'{host}:{listener.getsockname()[1]}' if listener else '')
        try:
            if listener:
                self._accept(listener)
            else:
                host, _, port = address.rpartition(':')
                link = socket.create_connection((host, int(port)), timeout=SILENT_SECONDS)
                _send(link, {'process': process})
                self._links[0] = link, link.makefile()
        except OSError as e:
            logging.warning('processes cannot be watched (%s); where one dies, the others end '
                            'when the heartbeat of jax.distributed gives up', e)
            return
        for peer, (_, lines) in self._links.items():
            threading.Thread(target=self._listen, args=(peer, lines), daemon=True).start()
        threading.Thread(target=self._beat, daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        with listener:
            while len(self._links) < self._processes - 1:
                link = listener.accept()[0]
                link.settimeout(SILENT_SECONDS)
                lines = link.makefile()
                with contextlib.suppress(ValueError, KeyError, TypeError):  # a stranger
                    self._links[int(json.loads(lines.readline())['process'])] = link, lines

    def _beat(self) -> None:
        while not self._done:
            for link, _ in self._links.values():
                with contextlib.suppress(OSError), self._lock:
                    link.sendall(b'\n')
            time.sleep(BEAT_SECONDS)

    def _listen(self, peer: int, lines: TextIO) -> None:
        """Reads what a process sends until it says that it is done, or is gone."""
        try:
            for line in lines:
                said = json.loads(line) if line.strip() else {}
                if said.get('done'):
                    return
                if 'ended' in said:
                    self._end(said['ended'], said['grace'])
                    return
            why = 'has died'
        except TimeoutError:
            why = f'has not been heard of for {SILENT_SECONDS:.0f} s'
        except (OSError, ValueError):
            why = 'has died'
        self._end(f'process {peer} of {self._processes} {why}', 0.0)

    def _end(self, line: str, grace: float) -> None:
        with self._lock:
            if self._done:
                return
            self._done = True
        self._tell({'ended': line, 'grace': grace})
        time.sleep(grace + self._last)
        self._ended(f'error: {line}; {_NEXT}.')

    @property
    def _last(self) -> float:
        """Seconds by which process 0 ends later: the runtime of the others would not survive it."""
        return 0.0 if self._process else 1.0

    def close(self, error: str = '') -> None:
        """This process is done; with `error` because of it, and the others must end, too."""
        with self._lock:
            if self._done:
                return
            self._done = True
        if not error:
            self._tell({'done': True})
            return
        self._tell({'ended': f'process {self._process} of {self._processes} has stopped: {error}',
                    'grace': GRACE_SECONDS})
        if self._process == 0:
            time.sleep(GRACE_SECONDS + self._last)

    def _tell(self, said: dict[str, Any]) -> None:
        for link, _ in self._links.values():
            with contextlib.suppress(OSError), self._lock:
                _send(link, said)


def _send(link: socket.socket, said: dict[str, Any]) -> None:
    link.sendall(json.dumps(said).encode() + b'\n')
