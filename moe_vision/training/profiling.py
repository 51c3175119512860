"""Profiles chosen training steps for TensorBoard."""

import os
import shutil
import tempfile
from typing import Any

import jax
from absl import logging
from etils import epath

from moe_vision.common.files import in_bucket


class Profile:
    """Writes a profile of some steps to W/profile. Use `with`: leaving it ends a profile that runs.

    Args:
      steps: first and last step to profile; None profiles nothing.
      workdir: the run's folder. The profiler can only write local files, which are then copied if
        this is a bucket.
      start, total: steps that are done, and the number of the run's last step.
    """

    def __init__(self, steps: tuple[int, int] | None, workdir: str, start: int, total: int):
        self._first, self._last = steps or (0, 0)
        self._last = min(self._last, total)
        self._target = epath.Path(workdir) / 'profile'
        self._local = ''  # where the profiler writes; '' while it does not run
        if steps and not start < self._first <= total:
            logging.warning(
                'no profile: --profile_steps starts at step %d, this run takes steps %d to %d',
                self._first,
                start + 1,
                total,
            )

    def before(self, step: int) -> None:
        """Starts the profile before its first step."""
        if step == self._first:
            bucket = in_bucket(self._target)
            self._local = tempfile.mkdtemp() if bucket else str(self._target)
            jax.profiler.start_trace(self._local)

    def after(self, step: int, out: Any) -> None:
        """Ends the profile after its last step, once that step's results `out` are there."""
        if self._local and step == self._last:
            jax.block_until_ready(out)
            self._end()

    def __enter__(self) -> 'Profile':
        return self

    def __exit__(self, *_: Any) -> None:
        if self._local:
            self._end()

    def _end(self) -> None:
        """Writes what was profiled. If that fails, a warning says so, and the run goes on."""
        try:
            jax.profiler.stop_trace()
            if in_bucket(self._target):
                _copy(epath.Path(self._local), self._target)
        except (OSError, RuntimeError) as e:
            logging.warning("no profile: '%s' cannot be written (%s)", self._target, e)
        finally:
            if in_bucket(self._target):
                shutil.rmtree(self._local, ignore_errors=True)
            self._local = ''


def _copy(source: epath.Path, target: epath.Path) -> None:
    for folder, _, names in os.walk(source):
        into = target / os.path.relpath(folder, source)
        into.mkdir(parents=True, exist_ok=True)
        for name in names:
            (epath.Path(folder) / name).copy(into / name, overwrite=True)
