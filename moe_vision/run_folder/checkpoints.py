"""Checkpoints of a run, behind orbax: the newest few, and the best on validation.

`W/checkpoints/latest/STEP` and `W/checkpoints/best/STEP`. Saving is asynchronous and atomic: a
folder appears under its name when it is whole. One that cannot be written is told and given up:
training goes on. The optimizer state is saved too, so the best checkpoint can be trained on. With
the arrays goes a checksum of them: files whose bytes were changed can often still be read.

Over several processes all call everything; each reads what its devices hold, and one is restored
where all can read it.
"""

import contextlib
from typing import Any, Literal

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath

from moe_vision.common.errors import UserError
from moe_vision.common.files import absolute
from moe_vision.run_folder.checkpoint_folder import Folder, why


class Checkpoints:
    """Saves and restores train states. Close it, or use `with`: closing waits for saves."""

    def __init__(self, workdir: str, keep: int):
        root = epath.Path(workdir) / 'checkpoints'
        self._latest, self._best = Folder(root / 'latest', keep), Folder(root / 'best', 1)

    def save(self, step: int, state: Any) -> None:
        self._best.wait()  # a run that goes on from here will not make it again
        self._latest.save(step, state)

    def save_best(self, step: int, state: Any) -> None:
        self._best.save(step, state)

    def restore_newest(self, abstract: Any) -> tuple[int, Any] | None:
        """(step, state) of the newest checkpoint that can be read, or None where there is none.

        A damaged one is named in the log, set aside, and the one before is tried.

        Args:
          abstract: arrays as `ShapeDtypeStruct` with shardings.

        Raises:
          UserError: there are checkpoints, but none fits this config or can be read.
        """
        steps = self.steps()
        for folder in (self._latest, self._best):
            folder.clear()  # of a run that was killed
        for step in steps:
            try:
                state = self._latest.restore(step, abstract)
            except Exception as e:  # whatever a damaged file makes orbax say
                logging.warning('checkpoint %d cannot be read (%s); trying the one before',
                                step, why(e))
                continue
            self._latest.delete_after(step)
            self._best.delete_after(step)
            return step, state
        if steps:
            raise UserError(
                f'none of the checkpoints {steps} in {self._latest.path} can be read with '
                'this config; if the network changed, use another --workdir.')
        self._best.delete_after(0)
        return None

    def forget_after(self, step: int) -> None:
        """Removes the newest checkpoints down to this step."""
        self._latest.delete_after(step)

    def steps(self) -> list[int]:
        """Steps of the checkpoints that are whole, newest first. Waits for saves."""
        self.wait()
        return self._latest.steps()

    def restore_best(self, abstract: Any) -> tuple[int, Any] | None:
        """(step, state) of the best on validation; None where there is none that can be read."""
        self.wait()
        for step in self._best.steps():
            try:
                return step, self._best.restore(step, abstract)
            except Exception as e:
                logging.warning('best checkpoint %d cannot be read (%s)', step, why(e))
        return None

    def restore_for_evaluation(self, abstract: Any) -> tuple[int, Any]:
        """The newest checkpoint, changing nothing on disk.

        Raises:
          UserError: there is none that can be read.
        """
        for step in self.steps():
            try:
                return step, self._latest.restore(step, abstract)
            except Exception as e:
                logging.warning('checkpoint %d cannot be read (%s)', step, why(e))
        raise UserError(f'no checkpoint in {self._latest.path} can be read with this config; '
                        'train first (--mode=train), or give the config the run was made with.')

    def wait(self) -> None:
        self._latest.wait()
        self._best.wait()

    def close(self) -> None:
        self._latest.close()
        self._best.close()

    def __enter__(self) -> 'Checkpoints':
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


def load_raw(workdir: str, kind: Literal['latest', 'best'] = 'latest') -> dict[str, Any]:
    """A state as nested dicts of host arrays, without knowing its config or its devices.

    Keys as the fields of `TrainState`. The newest checkpoint that can be read.

    Raises:
      UserError: there is none.
    """
    root = absolute(epath.Path(workdir) / 'checkpoints' / kind)
    steps = [int(p.name) for p in root.iterdir() if p.name.isdigit()] if root.exists() else []
    for step in sorted(steps, reverse=True):
        try:
            with contextlib.closing(ocp.PyTreeCheckpointHandler()) as reader:
                path = root / str(step) / 'default'
                on_host = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray),
                                       reader.metadata(path).tree)
                return reader.restore(path, args=ocp.args.PyTreeRestore(restore_args=on_host))
        except Exception as e:
            logging.warning('checkpoint %d cannot be read (%s)', step, why(e))
    raise UserError(f"there is no readable checkpoint in '{workdir}'; train there first.")


def abstract(state: Any, shardings: Any) -> Any:
    """Shapes, types and placement of a state, to restore onto."""
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
                        state, shardings)
