"""SIGTERM: the run ends at the next step, saved.

    with Stop() as stop:
        ... if stop.at(step): save; raise Stopped(...)

In one process a handler of our own; over several jax's preemption service takes the signal and
agrees on when, so that all stop at the same step.
"""

import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

EXIT_CODE = 128 + signal.SIGTERM  # as of a process that SIGTERM ended: a scheduler starts it again


_TOLD = 'stopped by SIGTERM; start again with the same command to go on.'


class Stopped(BaseException):
    """The run was told to end; the message is for the user, in one line.

    Like KeyboardInterrupt it is no Exception: it may come anywhere, and whoever goes on after an
    error (a checkpoint that cannot be written) must not go on after it.
    """


class Stop:
    """Notices SIGTERM while it is open: at once, and within `later` when `at` is asked."""

    def __init__(self) -> None:
        self._asked = self._later = self._several = False
        self._asked_before = 0  # how often `at` was asked
        self._before: object = None

    def __enter__(self) -> 'Stop':
        from moe_vision.processes import peers

        self._several = peers.joined()
        if not self._several and threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._notice)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)  # type: ignore[arg-type]

    def _notice(self, number: int, frame: FrameType | None) -> None:
        self._asked = True
        if not self._later:
            raise Stopped(_TOLD)

    @contextmanager
    def later(self) -> Iterator[None]:
        """Within it SIGTERM waits for the end of a step."""
        self._later = True
        try:
            yield
        finally:
            self._later = False

    def at(self, step: int) -> bool:
        """Whether to stop after this step; every process must ask after every step.

        They agree on how often they asked, not on a step: each run of a study begins at step 1.
        """
        self._asked_before += 1
        if self._several:
            from jax.experimental import multihost_utils

            return multihost_utils.reached_preemption_sync_point(self._asked_before)
        return self._asked

    def sleep(self, seconds: float) -> None:
        """Sleeps, between runs; every process must do so for as long.

        Raises:
          Stopped: this process or another one was told to end.
        """
        looks = max(1, math.ceil(seconds))
        for _ in range(looks):
            time.sleep(seconds / looks)
            if self.at(0):
                raise Stopped(_TOLD)
