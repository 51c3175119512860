"""Lets SIGTERM end a run at the next step, after it is saved.

    with Stop() as stop:
        ... if stop.at(step): save; raise Stopped(...)

A single process handles the signal itself. In several, jax's preemption service receives it and
makes them agree on the step, so that all stop at the same one.
"""

import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

EXIT_CODE = 128 + signal.SIGTERM  # what the shell reports for SIGTERM: schedulers start it again
_STOPPED = 'stopped by SIGTERM; start again with the same command to continue.'


class Stopped(BaseException):
    """SIGTERM has ended the run. The message is one line for the user.

    Like KeyboardInterrupt it is no Exception, because it may be raised anywhere: code that carries
    on after an error, such as a checkpoint that cannot be written, must not catch it.
    """


class Stop:
    """Handles SIGTERM while it is open: raises Stopped, but within `later` only makes `at` true."""

    def __init__(self) -> None:
        self._received = self._later = self._several = False
        self._calls = 0  # of `at`
        self._handler_before: object = None

    def __enter__(self) -> 'Stop':
        from moe_vision.processes import peers

        self._several = peers.joined()
        if not self._several and threading.current_thread() is threading.main_thread():
            self._handler_before = signal.signal(signal.SIGTERM, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        if self._handler_before is not None:
            signal.signal(signal.SIGTERM, self._handler_before)  # type: ignore[arg-type]

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._received = True
        if not self._later:
            raise Stopped(_STOPPED)

    @contextmanager
    def later(self) -> Iterator[None]:
        """Within the block, SIGTERM waits for the next call of `at`."""
        self._later = True
        try:
            yield
        finally:
            self._later = False

    def at(self, step: int) -> bool:
        """Whether to stop after this step. All processes must call it after every step.

        The preemption service gets the number of calls, which only grows; steps begin at 1 again
        with each run of a study.
        """
        self._calls += 1
        if self._several:
            from jax.experimental import multihost_utils

            return multihost_utils.reached_preemption_sync_point(self._calls)
        return self._received

    def sleep(self, seconds: float) -> None:
        """Sleeps between runs. All processes must call it with the same time.

        Raises:
          Stopped: this process or another one received SIGTERM.
        """
        checks = max(1, math.ceil(seconds))
        for _ in range(checks):
            time.sleep(seconds / checks)
            if self.at(0):
                raise Stopped(_STOPPED)
