"""Keeps two processes from working on the same cell: each claims it by a file under W/claims.

A claim file is created with O_EXCL, so only one process succeeds. It holds the process id, the time
at which that process started, and the machine; its owner touches it every BEAT seconds. On the
owner's machine a claim is valid as long as the owner exists, even if it is suspended; on another
machine, as long as the file was touched within STALE seconds. Any other claim is stale, and anyone
may take it over. Times are those of the file system, because the machines' clocks may disagree.
"""

import contextlib
import json
import os
import socket
import threading
import time
from pathlib import Path

from input_pipeline import json_data
from input_pipeline.files import irregular

BEAT = 10.0  # seconds
STALE = 120.0  # seconds
Cell = tuple[str, int]  # arm, seed


def _read(path: str) -> str:
    if irregular(path):
        return ''
    try:
        return Path(path).read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ''


def _machine() -> str:
    """This machine, this boot and this container: process ids are unique within them."""
    try:
        namespace = os.readlink('/proc/self/ns/pid')
    except OSError:
        namespace = ''
    return ' '.join([socket.gethostname(), _read('/proc/sys/kernel/random/boot_id')[:8], namespace])


class Claims:
    """The claims of this process in a workdir. Use `with`: leaving it releases all claims.

    Args:
      beat: seconds between two touches.
      stale: seconds without a touch after which a claim is stale.
    """

    def __init__(self, workdir: str, beat: float = BEAT, stale: float = STALE):
        self._folder = Path(workdir) / 'claims'
        self._beat, self._stale = beat, stale
        self._machine = _machine()
        self._own = json.dumps(
            {
                'pid': os.getpid(),
                'started': _started(os.getpid()),
                'host': self._machine,
                'token': os.urandom(8).hex(),
            }
        )
        self._held: set[Cell] = set()
        self._lock = threading.Lock()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._touch, daemon=True)

    def __enter__(self) -> 'Claims':
        self._folder.mkdir(parents=True, exist_ok=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        for cell in list(self._held):
            self.release(cell)

    def take(self, cell: Cell) -> bool:
        """Claims a cell, also one that it holds; False if another process works on it."""
        if cell in self._held:
            return True
        path = self._path(cell)
        if self.taken(cell):
            return False
        if path.exists() and not self._clear(path):
            return False
        if not self._create(path):
            return False
        with self._lock:
            self._held.add(cell)
        return True

    def holds(self, cell: Cell) -> bool:
        """Whether the claim is still this process's: another machine may have taken it over."""
        return cell in self._held and _read(str(self._path(cell))) == self._own

    def release(self, cell: Cell) -> None:
        """Gives up the claim of a cell."""
        with self._lock:
            self._held.discard(cell)
            if _read(str(self._path(cell))) == self._own:
                self._path(cell).unlink(missing_ok=True)

    def taken(self, cell: Cell) -> bool:
        """Whether another process works on the cell now."""
        return cell not in self._held and self._alive(self._path(cell))

    def owner(self, cell: Cell) -> str:
        """'process 12 on HOST', as the claim says; '' if it does not say."""
        try:
            claim = json_data.parse(_read(str(self._path(cell))).encode())
            return f'process {claim["pid"]} on {claim["host"].split()[0]}'
        except (ValueError, LookupError, TypeError, AttributeError):
            return ''

    def _path(self, cell: Cell) -> Path:
        return self._folder / f'{cell[0]}.seed_{cell[1]}.json'

    def _create(self, path: Path) -> bool:
        try:
            file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        except FileExistsError:
            return False
        with os.fdopen(file, 'w') as f:
            f.write(self._own)
        return True

    def _alive(self, path: Path) -> bool:
        try:
            touched = path.stat().st_mtime
        except FileNotFoundError:
            return False
        try:
            owner = json_data.parse(_read(str(path)).encode())
            if owner['host'] == self._machine:
                return _runs(owner['pid'], owner.get('started', ''))
        except (ValueError, KeyError, TypeError, OverflowError):
            pass  # its owner is about to write it, or died before: its age decides
        return self._now() - touched <= self._stale

    def _clear(self, path: Path) -> bool:
        """Removes a stale claim; one process at a time, which checks again that it is stale."""
        lock = path.with_suffix('.takeover')
        if not self._create(lock):
            if not self._alive(lock):
                lock.unlink(missing_ok=True)  # its owner died; the next try may take it
            return False
        try:
            if self._alive(path) or _read(str(lock)) != self._own:
                return False
            path.unlink(missing_ok=True)
            return True
        finally:
            if _read(str(lock)) == self._own:
                lock.unlink(missing_ok=True)

    def _now(self) -> float:
        """The time by the file system's clock."""
        probe = self._folder / f'.now-{os.urandom(8).hex()}'
        try:
            probe.touch()
            return probe.stat().st_mtime
        except OSError:
            return time.time()
        finally:
            probe.unlink(missing_ok=True)

    def _touch(self) -> None:
        while not self._end.wait(self._beat):
            for cell in list(self._held):
                with self._lock:
                    if self.holds(cell):
                        with contextlib.suppress(OSError):
                            os.utime(self._path(cell))


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on; [] if it cannot be read."""
    return _read(f'/proc/{pid}/stat').rpartition(')')[2].split()


def _started(pid: int) -> str:
    """When a process started, in clock ticks since boot; '' if unknown."""
    return ''.join(_stat(pid)[19:20])


def _runs(pid: int, started: str) -> bool:
    """Whether the process exists; not if another one has its id by now."""
    if pid <= 0 or _stat(pid)[:1] == ['Z']:
        return False  # Z: it ended, but its parent has not collected it yet
    if started and _started(pid) not in ('', started):
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
