"""Saves and restores a run's checkpoints with orbax: the newest few, and the best on validation.

They lie in `W/checkpoints/latest/STEP` and `W/checkpoints/best/STEP`. A save runs in the background
and is atomic: a folder gets its name when it is complete. If a save fails, a warning is logged and
training continues. A checkpoint includes the optimizer state, so that training can also continue
from the best one, and a checksum, because orbax often reads damaged files without an error.
Whatever reads a checkpoint compares the checksum, and the state's step with the folder's name.

In a run of several processes all of them call every function. Each reads what its devices hold, and
a checkpoint is restored only if all processes can read it.
"""

import contextlib
import math
import os
from collections.abc import Iterable
from typing import Any, Literal

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from moe_vision.common.errors import UserError
from moe_vision.common.files import absolute, read_json, reason
from moe_vision.run_folder import abandoned, checksum
from moe_vision.run_folder.checkpoint_folder import (
    CHECKSUM,
    Folder,
    check_files,
    compare,
    steps_in,
    warn_of_damage,
)


class Checkpoints:
    """Saves and restores train states. Use `with` or `close`, which wait for saves.

    Args:
      workdir: the run's folder.
      keep: how many of the newest checkpoints to keep.

    Raises:
      UserError: the folder cannot be used.
    """

    def __init__(self, workdir: str, keep: int):
        root = epath.Path(workdir) / 'checkpoints'
        try:
            self._latest, self._best = Folder(root / 'latest', keep), Folder(root / 'best', 1)
        except OSError as e:
            raise UserError(
                f"'{root}' cannot be used ({reason(e)}); make room, or give another --workdir."
            ) from e

    def save(self, step: int, state: Any) -> None:
        """Saves the state of a step among the newest checkpoints."""
        self._best.wait()  # a run continued from this checkpoint will not save that best one again
        self._latest.save(step, state)

    def save_best(self, step: int, state: Any) -> None:
        """Saves the state of a step as the best one, in place of the one before."""
        self._best.save(step, state)

    def restore_newest(self, abstract: Any) -> tuple[int, Any] | None:
        """(step, state) of the newest readable checkpoint; None if there are no checkpoints.

        Checkpoints that cannot be read are named in the log. Those after the restored step, best
        ones included, are deleted, because the run will save these steps again.

        Args:
          abstract: the state with a `ShapeDtypeStruct` with sharding for each array.

        Raises:
          UserError: there are checkpoints, but none of them fits this config or can be read.
        """
        steps = self.steps()
        for folder in (self._latest, self._best):
            folder.clear()  # what a killed run left
        if restored := self._latest.restore_newest(abstract):
            for folder in (self._latest, self._best):
                folder.delete_after(restored[0])
            return restored
        if steps:
            raise UserError(
                f'none of the checkpoints {steps} in {self._latest.path} can be read with '
                'this config; if the network changed, use another --workdir.'
            )
        self._best.delete_after(0)
        return None

    def forget_after(self, step: int) -> None:
        """Deletes the newest checkpoints that come after this step."""
        self._latest.delete_after(step)

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, newest first. Waits for saves."""
        self.wait()
        return self._latest.steps()

    def restore_best(self, abstract: Any) -> tuple[int, Any] | None:
        """(step, state) of the best checkpoint on validation; None if none can be read."""
        self.wait()
        return self._best.restore_newest(abstract)

    def restore_for_evaluation(self, abstract: Any) -> tuple[int, Any]:
        """(step, state) of the newest readable checkpoint. Changes nothing on disk.

        Raises:
          UserError: no checkpoint can be read.
        """
        self.wait()
        if restored := self._latest.restore_newest(abstract):
            return restored
        raise UserError(
            f'no checkpoint in {self._latest.path} can be read with this config; '
            'train first (--mode=train), or give the config of the run.'
        )

    def wait(self) -> None:
        """Returns when all saves are on disk, or have failed."""
        self._latest.wait()
        self._best.wait()

    def lost(self) -> list[str]:
        """The last saves of this process, in words, where they are not on disk. Waits for saves."""
        self.wait()
        lost = {'the checkpoint': self._latest.lost(), 'the best checkpoint': self._best.lost()}
        return [f'{name} of step {step}' for name, step in lost.items() if step]

    def close(self) -> None:
        self._latest.close()
        self._best.close()

    def __enter__(self) -> 'Checkpoints':
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


def load_raw(workdir: str, kind: Literal['latest', 'best'] = 'latest') -> dict[str, Any]:
    """The state of the newest readable checkpoint, without knowing its config or its devices.

    Returns nested dicts of host arrays, whose keys are the fields of `TrainState`. The checksum
    does not cover shapes: compare them with a network's. Names damaged checkpoints in the log.

    Raises:
      UserError: no checkpoint can be read.
    """
    root = absolute(epath.Path(workdir) / 'checkpoints' / kind)
    for step in steps_in(root):
        try:
            return _load_raw(root / str(step) / 'default', step)
        except Exception as e:  # as in `Folder.restore_newest`
            warn_of_damage(root, step, e)
    raise UserError(f"there is no readable checkpoint in '{workdir}'; train there first.")


def _load_raw(path: epath.Path, step: int) -> dict[str, Any]:
    abandoned.hide()
    check_files(path.parent)
    with contextlib.closing(ocp.PyTreeCheckpointHandler()) as reader:
        described = reader.metadata(path).tree
        _check_memory(jax.tree.leaves(described))
        on_host = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), described)
        state = reader.restore(path, args=ocp.args.PyTreeRestore(restore_args=on_host))
    own = checksum.of_raw(read_json(path / '_METADATA'), state)
    compare(step, int(state['step']), int(state[CHECKSUM]), own)
    return state


def _check_memory(arrays: Iterable[Any]) -> None:
    """Raises ValueError if described arrays do not fit this machine: a few bytes can claim them."""
    wanted = sum(math.prod(x.shape) * np.dtype(x.dtype).itemsize for x in arrays if x.shape)
    memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
    if wanted > memory:
        raise ValueError(f'its arrays would take {wanted:,} bytes; this machine has {memory:,}')


def abstract(state: Any, shardings: Any) -> Any:
    """The shapes, types and shardings of a state, as the functions that restore it need them."""
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, shardings
    )
