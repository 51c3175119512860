"""Keeps two processes from working on the same thing: each claims it by a file in a shared folder.

A claim says who owns it: the process id, the time at which that process started, and the machine.
On the owner's machine a claim is valid as long as the owner exists, even if it is suspended; on
another machine, as long as the owner gives a sign of life at least every STALE seconds. Any other
claim is stale, and anyone may take it over.

On a file system a claim is created with O_EXCL, so only one process succeeds, and its owner touches
it every BEAT seconds. Times are those of the file system, because the machines' clocks may
disagree. A bucket (`gs://`) has neither: there a process writes the claim, waits SETTLE seconds and
reads who wrote last; its owner writes it again every BEAT seconds; and whether an owner on another
machine lives is seen by watching (`take_or_watch`).
"""

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

from moe_vision.common import files, json_values

BEAT = 10.0  # seconds
STALE = 120.0  # seconds
SETTLE = 2.0  # seconds, in a bucket: longer than it takes to write after looking
Key = TypeVar('Key')


def _read(path: Path | str) -> str:
    try:
        return files.read(path).decode().strip()
    except (OSError, ValueError):
        return ''


def _machine() -> str:
    """This machine, this boot and this container: process ids are unique within them."""
    try:
        namespace = os.readlink('/proc/self/ns/pid')
    except OSError:
        namespace = ''
    return ' '.join([socket.gethostname(), _read('/proc/sys/kernel/random/boot_id')[:8], namespace])


class Claims(Generic[Key]):
    """The claims of this process in a folder. Use `with`: leaving it releases all claims.

    Args:
      folder: where the claims are, a local path or one in a bucket.
      beat: seconds between two signs of life.
      stale: seconds without one after which a claim is stale.
    """

    def __init__(self, folder: Path, beat: float = BEAT, stale: float = STALE):
        self._folder, self._in_bucket = folder, files.in_bucket(folder)
        self._beat, self._stale = beat, stale
        self._machine = _machine()
        self._owner = {
            'pid': os.getpid(),
            'started': _started(os.getpid()),
            'host': self._machine,
            'token': os.urandom(8).hex(),
        }
        self._held: set[Key] = set()
        self._silent = ''  # a claim in a bucket that was watched and has not changed
        self._lock = threading.Lock()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._touch, daemon=True)

    def __enter__(self) -> Self:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        for key in list(self._held):
            self.release(key)

    def take(self, key: Key) -> bool:
        """Claims a key, also one that it holds; False if another process holds it."""
        if key in self._held:
            return True
        path = self._path(key)
        if self.taken(key):
            return False
        if self._in_bucket:
            path.write_text(self._own())
            time.sleep(SETTLE)
            if not self._is_own(path):
                return False
        elif (path.exists() and not self._clear(path)) or not self._create(path):
            return False
        with self._lock:
            self._held.add(key)
        return True

    def take_or_watch(self, key: Key, waits: Callable[[], Any] = lambda: None) -> bool:
        """As `take`, but if the owner is on another machine it waits until that gives a sign of
        life, or is stale: a process that has just died there looks like one that lives.

        Args:
          waits: called once, if it has to wait.
        """
        path = self._path(key)
        seen, since = self._pulse(path), -1.0
        while not self.take(key):
            pulse = self._pulse(path)
            if (pulse and pulse != seen) or self.runs_here(key):
                return False
            if since < 0:
                since = time.monotonic()
                waits()
            elif self._in_bucket and time.monotonic() - since > self._stale:
                self._silent = pulse
            time.sleep(min(self._beat / 10, 1.0))
        return True

    def holds(self, key: Key) -> bool:
        """Whether the claim is still this process's: another machine may have taken it over."""
        return key in self._held and self._is_own(self._path(key))

    def release(self, key: Key) -> None:
        """Gives up a claim."""
        with self._lock:
            self._held.discard(key)
            if self._is_own(self._path(key)):
                self._path(key).unlink(missing_ok=True)

    def taken(self, key: Key) -> bool:
        """Whether another process holds the key now."""
        return key not in self._held and self._alive(self._path(key))

    def runs_here(self, key: Key) -> bool:
        """Whether another process holds the key that certainly runs, because it is on this machine;
        or this process, by another `Claims`."""
        host = json_values.value_at(_parsed(_read(self._path(key))), 'host')
        return host == self._machine and self.taken(key)

    def owner(self, key: Key) -> str:
        """'process 12 on HOST', as the claim says; '' if it does not say."""
        try:
            claim = json_values.parse(_read(self._path(key)).encode())
            return f'process {claim["pid"]} on {claim["host"].split()[0]}'
        except (ValueError, LookupError, TypeError, AttributeError):
            return ''

    def _path(self, key: Key) -> Path:
        return self._folder / f'{key}.json'

    def _own(self) -> str:
        """What a claim of this process says. In a bucket each sign of life says another time."""
        beat = {'beat': time.time()} if self._in_bucket else {}
        return json.dumps(self._owner | beat)

    def _is_own(self, path: Path) -> bool:
        return json_values.value_at(_parsed(_read(path)), 'token') == self._owner['token']

    def _pulse(self, path: Path) -> str:
        """Something that changes with each sign of life of the owner; '' without a claim."""
        if self._in_bucket:
            return _read(path)
        try:
            return f'{_read(path)} {path.stat().st_mtime_ns}'
        except OSError:
            return ''

    def _create(self, path: Path) -> bool:
        try:
            file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        except FileExistsError:
            return False
        try:
            with os.fdopen(file, 'w') as f:
                f.write(self._own())
        except OSError:  # an empty claim would count until it is stale
            path.unlink(missing_ok=True)
            raise
        return True

    def _alive(self, path: Path) -> bool:
        text = _read(path)
        try:
            touched = 0.0 if self._in_bucket else path.stat().st_mtime
        except FileNotFoundError:
            return False
        try:
            owner = json_values.parse(text.encode())
            if owner['host'] == self._machine:
                return _runs(owner['pid'], owner.get('started', ''))
        except (ValueError, KeyError, TypeError, OverflowError):
            pass  # its owner is about to write it, or died before: its age decides
        if self._in_bucket:
            return text not in ('', self._silent)
        return self._now() - touched <= self._stale

    def _clear(self, path: Path) -> bool:
        """Removes a stale claim; one process at a time, which checks again that it is stale."""
        lock = path.with_suffix('.takeover')
        if not self._create(lock):
            if not self._alive(lock):
                lock.unlink(missing_ok=True)  # its owner died; the next try may take it
            return False
        try:
            if self._alive(path) or not self._is_own(lock):
                return False
            path.unlink(missing_ok=True)
            return True
        finally:
            if self._is_own(lock):
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
            with contextlib.suppress(OSError):
                probe.unlink(missing_ok=True)

    def _touch(self) -> None:
        while not self._end.wait(self._beat):
            for key in list(self._held):
                with self._lock, contextlib.suppress(Exception):  # it is tried again
                    if not self.holds(key):
                        continue
                    if self._in_bucket:
                        self._path(key).write_text(self._own())
                    else:
                        os.utime(self._path(key))


def _parsed(text: str) -> Any:
    try:
        return json_values.parse(text.encode())
    except ValueError:
        return None


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
