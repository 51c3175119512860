"""A profile of chosen training steps, for TensorBoard."""

import os
import tempfile
from typing import Any

import jax
from absl import logging
from etils import epath

from moe_vision.common.files import in_bucket


class Profile:
    """Of the steps first to last into W/profile; of none where `steps` is None.

    Args:
      steps: first and last.
      workdir: of the run; the profiler writes files itself, so a bucket gets copies.
      start, total: steps that are done, and that the run ends with.
    """

    def __init__(self, steps: tuple[int, int] | None, workdir: str, start: int, total: int):
        self._first, self._last = steps or (0, 0)
        self._last = min(self._last, total)
        self._target = epath.Path(workdir) / 'profile'
        self._local = ''  # while one is being made
        if steps and not start < self._first <= total:
            logging.warning('no profile: --profile_steps starts at step %d, this run takes steps '
                            '%d to %d', self._first, start + 1, total)

    def before(self, step: int) -> None:
        if step == self._first:
            bucket = in_bucket(self._target)
            self._local = tempfile.mkdtemp() if bucket else str(self._target)
            jax.profiler.start_trace(self._local)

    def after(self, step: int, out: Any) -> None:
        """Args: `out` is what the step gives."""
        if self._local and step == self._last:
            jax.block_until_ready(out)
            jax.profiler.stop_trace()
            if in_bucket(self._target):
                _copy(epath.Path(self._local), self._target)
            self._local = ''


def _copy(source: epath.Path, target: epath.Path) -> None:
    for folder, _, names in os.walk(source):
        into = target / os.path.relpath(folder, source)
        into.mkdir(parents=True, exist_ok=True)
        for name in names:
            (epath.Path(folder) / name).copy(into / name, overwrite=True)
