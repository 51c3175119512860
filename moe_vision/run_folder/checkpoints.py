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
import itertools
import math
from collections.abc import Mapping
from typing import Any, Literal

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from moe_vision.common.errors import UserError
from moe_vision.common.files import absolute, check_memory, read_json, reason
from moe_vision.run_folder import checksum, exported
from moe_vision.run_folder.checkpoint_folder import (
    CHECKSUM,
    Folder,
    check_files,
    compare,
    steps_in,
    warn_of_damage,
)

_METADATA = '_CHECKPOINT_METADATA'


class Checkpoints:
    """Saves and restores train states. Use `with` or `close`, which wait for saves.

    Args:
      workdir: the run's folder.
      keep: how many of the newest checkpoints to keep.

    Raises:
      UserError: the folder cannot be used.
    """

    def __init__(self, workdir: str, keep: int):
        root = self._root = epath.Path(workdir) / 'checkpoints'
        try:
            self._latest, self._best = Folder(root / 'latest', keep), Folder(root / 'best', 1)
        except OSError as e:
            raise UserError(
                f"'{root}' cannot be used ({reason(e)}); make room, or give another --workdir."
            ) from e
        except Exception as e:  # of orbax, which reads these files and does without them
            raise UserError(
                f"'{root}' cannot be used ({' '.join(str(e).split())[:160]}); delete the damaged "
                f'{_METADATA} of a checkpoint there: it can be read without that file.'
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
            raise self._unreadable(abstract, 'if the network changed, use another --workdir')
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
        raise self._unreadable(abstract, 'give the config of the run')

    def _unreadable(self, abstract: Any, else_do: str) -> UserError:
        best = self._best.restore_newest(abstract, warn=False)
        return _unreadable(self._root, 'latest', self.steps(), best and best[0], else_do)

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
    """The state of the newest readable checkpoint, without knowing its config or its devices; of
    an exported folder, the weights that are there.

    Returns nested dicts of host arrays, whose keys are the fields of `TrainState`. The checksum
    does not cover shapes: compare them with a network's. Names damaged checkpoints in the log.

    Raises:
      UserError: no checkpoint can be read.
    """
    if exported.holds(workdir):
        if kind == 'best':
            raise UserError(
                f"'{workdir}' is an exported folder, which holds one set of weights; leave out "
                '--best.'
            )
        return exported.read(workdir)
    root = absolute(epath.Path(workdir) / 'checkpoints')
    if state := _newest_raw(root / kind, warn=True):
        return state
    other = _newest_raw(root / ('best' if kind == 'latest' else 'latest'), warn=False)
    raise _unreadable(root, kind, steps_in(root / kind), int(other['step']) if other else None)


def load_several(workdir: str, count: int) -> list[dict[str, Any]]:
    """The states of the newest checkpoints, as `load_raw` returns them, the newest first.

    Raises:
      UserError: there are fewer, or one cannot be read.
    """
    folder = absolute(epath.Path(workdir) / 'checkpoints') / 'latest'
    steps = steps_in(folder)[:count]
    if len(steps) < count:
        raise UserError(
            f"'{workdir}' has {len(steps)} checkpoints and not {count}; train with a larger "
            'checkpoint.keep.'
        )
    try:
        return [_load_raw(folder / str(step) / 'default', step) for step in steps]
    except Exception as e:  # as in `Folder.restore_newest`
        raise UserError(
            f"a checkpoint in '{folder}' cannot be read ({' '.join(str(e).split())[:160]}); bring "
            'the files back, or take fewer.'
        ) from e


def _newest_raw(folder: epath.Path, warn: bool) -> dict[str, Any] | None:
    steps = steps_in(folder)
    for step, before in itertools.zip_longest(steps, steps[1:]):
        try:
            return _load_raw(folder / str(step) / 'default', step)
        except Exception as e:  # as in `Folder.restore_newest`
            if warn:
                warn_of_damage(folder, step, before, e)
    return None


def _unreadable(
    root: epath.Path, kind: str, steps: list[int], other: int | None, else_do: str = ''
) -> UserError:
    """The error for a folder in which no checkpoint of this kind can be read.

    Args:
      steps: of those that are there.
      other: the step of a checkpoint of the other kind that can be read.
      else_do: what can be done where that is none.
    """
    name, workdir = {'latest': '', 'best': 'best '}[kind], root.parent
    what = (
        f"none of the {name}checkpoints {steps} in '{workdir}' can be read"
        if steps
        else f"there is no {name}checkpoint in '{workdir}'"
    )
    if other is not None and kind == 'best':
        return UserError(f'{what}; leave out --best to take the last one, of step {other}.')
    if other is not None:
        return UserError(
            f'{what}, but the best one on validation, of step {other}, can: predict takes it with '
            f"--best, and every command does once you copy '{root}/best/{other}' to "
            f"'{root}/latest/{other}'."
        )
    if steps:
        return UserError(
            f'{what}{" with this config" if else_do else ""}; bring the files back'
            f'{f", or {else_do}" if else_do else ", or train again with another --workdir"}.'
        )
    return UserError(f'{what}; train there first (python main.py --config=... --workdir=...).')


def _load_raw(path: epath.Path, step: int) -> dict[str, Any]:
    check_files(path.parent)
    with contextlib.closing(ocp.PyTreeCheckpointHandler()) as reader:
        described = reader.metadata(path).tree
        arrays = [x for x in jax.tree.leaves(described) if x.shape]
        check_memory(sum(math.prod(x.shape) * np.dtype(x.dtype).itemsize for x in arrays))
        on_host = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), described)
        state = reader.restore(path, args=ocp.args.PyTreeRestore(restore_args=on_host))
    own = checksum.of_raw(read_json(path / '_METADATA'), state)
    compare(step, int(state['step']), int(state[CHECKSUM]), own)
    return state


def scored(state: Mapping[str, Any]) -> Any:
    """The weights that were scored, of a state that `load_raw` returned: their moving average, if
    the run kept one."""
    return state.get('ema') or state['params']


def abstract(state: Any, shardings: Any) -> Any:
    """The shapes, types and shardings of a state, as the functions that restore it need them."""
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, shardings
    )
