"""Watches the processes of a run: if one ends before the run does, all others end with a line.

Every process holds a connection to process 0 and sends a byte every second. The connection of a
process that is killed closes at once; one that is frozen, or whose machine is gone, falls silent.
Process 0 then informs the others. Otherwise they would wait in a collective until the runtime's own
heartbeat gives up.
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
SILENT_SECONDS = 30.0  # after which a silent process counts as dead
GRACE_SECONDS = 2.0  # that a process has to print its own error after another one reported one
_NEXT = (
    'start all processes again with the same command: the run continues from its newest checkpoint'
)


class Watch:
    """One process's watch over the others.

    Args:
      process, processes: number of this process, and how many the run has.
      host: address at which the others reach process 0. Only process 0 needs it.
      share: returns in every process the string that process 0 passes.
      ended: called with the line to print, at most once and from a thread, when this process must
        end.
    """

    def __init__(
        self,
        process: int,
        processes: int,
        host: str,
        share: Callable[[str], str],
        ended: Callable[[str], Any],
    ):
        self._process, self._processes, self._ended = process, processes, ended
        # By process: the connection to it, and the lines that come from there.
        self._links: dict[int, tuple[socket.socket, TextIO]] = {}
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
            logging.warning(
                'processes cannot be watched (%s); if one dies, the others end only '
                'when the heartbeat of jax.distributed gives up',
                e,
            )
            return
        for peer, (_, lines) in self._links.items():
            threading.Thread(target=self._listen, args=(peer, lines), daemon=True).start()
        threading.Thread(target=self._beat, daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        """Waits for the connections of all other processes."""
        with listener:
            while len(self._links) < self._processes - 1:
                link = listener.accept()[0]
                link.settimeout(SILENT_SECONDS)
                lines = link.makefile()
                with contextlib.suppress(ValueError, KeyError, TypeError):  # not one of ours
                    self._links[int(json.loads(lines.readline())['process'])] = link, lines

    def _beat(self) -> None:
        """Sends a sign of life to every connection until the watch is closed."""
        while not self._done:
            for link, _ in self._links.values():
                with contextlib.suppress(OSError), self._lock:
                    link.sendall(b'\n')
            time.sleep(BEAT_SECONDS)

    def _listen(self, peer: int, lines: TextIO) -> None:
        """Reads what another process sends, until it reports that it is done or is gone."""
        try:
            for line in lines:
                message = json.loads(line) if line.strip() else {}
                if message.get('done'):
                    return
                if 'ended' in message:
                    self._end(message['ended'], message['grace'])
                    return
            reason = 'has died'
        except TimeoutError:
            reason = f'has sent nothing for {SILENT_SECONDS:.0f} s'
        except (OSError, ValueError):
            reason = 'has died'
        self._end(f'process {peer} of {self._processes} {reason}', 0.0)

    def _end(self, line: str, grace: float) -> None:
        """Informs the others, waits for the grace period, and calls `ended`."""
        with self._lock:
            if self._done:
                return
            self._done = True
        self._send_all({'ended': line, 'grace': grace})
        time.sleep(grace + self._head_start)
        self._ended(f'error: {line}; {_NEXT}.')

    @property
    def _head_start(self) -> float:
        """Seconds that process 0 waits for the others to end: their runtime aborts without it."""
        return 0.0 if self._process else 1.0

    def close(self, error: str = '') -> None:
        """Stops watching because this process is done. With an error, the others must end."""
        with self._lock:
            if self._done:
                return
            self._done = True
        if not error:
            self._send_all({'done': True})
            return
        self._send_all(
            {
                'ended': f'process {self._process} of {self._processes} has stopped: {error}',
                'grace': GRACE_SECONDS,
            }
        )
        if self._process == 0:
            time.sleep(GRACE_SECONDS + self._head_start)

    def _send_all(self, message: dict[str, Any]) -> None:
        for link, _ in self._links.values():
            with contextlib.suppress(OSError), self._lock:
                _send(link, message)


def _send(link: socket.socket, message: dict[str, Any]) -> None:
    link.sendall(json.dumps(message).encode() + b'\n')
