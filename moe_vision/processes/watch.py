"""Watches the processes of a run: if one ends before the run does, all others end with a line.

Every process holds a connection to process 0 and sends a byte every second. The connection of a
process that is killed closes at once; one that is frozen, or whose machine is gone, falls silent.
Process 0 then informs the others. Otherwise they would wait in a collective until the runtime's own
heartbeat gives up.

Process 0 listens only while the run starts, only at the address that the processes use, and only to
those that know a token which it gives them over jax's own connections (`admit`).
"""

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable
from typing import Any, TextIO

from absl import logging

from moe_vision.processes import address, admit

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
      host: the coordinator's host. Only process 0 needs it.
      share: returns in every process what process 0 passes; JSON must hold it.
      ended: called with the line to print, at most once and from a thread, when this process must
        end.
    """

    def __init__(
        self,
        process: int,
        processes: int,
        host: str,
        share: Callable[[Any], Any],
        ended: Callable[[str], Any],
    ):
        self._process, self._processes, self._ended = process, processes, ended
        # By process: the connection to it, and the lines that come from there.
        self._links: dict[int, tuple[socket.socket, TextIO]] = {}
        self._lock = threading.Lock()
        self._done = False
        for peer, link in self._connect(host, share).items():
            link.settimeout(SILENT_SECONDS)
            self._links[peer] = link, link.makefile()
        for peer, (_, lines) in self._links.items():
            threading.Thread(target=self._listen, args=(peer, lines), daemon=True).start()
        threading.Thread(target=self._beat, daemon=True).start()

    def _connect(self, host: str, share: Callable[[Any], Any]) -> dict[int, socket.socket]:
        """The connections to process 0 or, in process 0, to the others. Warns if one is missing."""
        seconds = SILENT_SECONDS / 2  # those who are in hear nothing until process 0 has them all
        if self._process:
            shared = share(None)
            if not shared:
                return {}  # process 0 warns
            ip, port, token = shared
            try:
                return {0: admit.join((ip, port), token, self._process, seconds)}
            except OSError as e:
                _warn('this process cannot', f'{ip}, port {port}: {e}')
                return {}
        try:
            listener = address.listen(host or socket.gethostname())
        except OSError as e:
            share(None)
            _warn('processes cannot', str(e))
            return {}
        token = admit.new_token()
        share([*listener.getsockname()[:2], token])
        others = range(1, self._processes)
        links = admit.admit(listener, token, others, seconds)
        missing = ', '.join(str(p) for p in others if p not in links)
        if missing:
            _warn(f'process {missing} cannot', f'not connected after {seconds:.0f} s')
        return links

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


def _warn(who: str, why: str) -> None:
    logging.warning(
        '%s be watched (%s); if one dies, the others end only when the heartbeat of '
        'jax.distributed gives up',
        who,
        why,
    )


def _send(link: socket.socket, message: dict[str, Any]) -> None:
    link.sendall(json.dumps(message).encode() + b'\n')
