"""Checkpoints of a run, behind orbax: the newest few, and the best on validation.

`W/checkpoints/latest/STEP` and `W/checkpoints/best/STEP`. A save runs in the background and is
atomic: a folder appears under its name when it is whole. If a save fails, the log says so and
training goes on. The optimizer state is saved too, so that training can go on from the best
checkpoint. A checksum is saved beside the arrays, because files whose bytes were changed can often
still be read.

Where a run has several processes, all of them call everything. Each reads what its devices hold,
and a checkpoint is restored only if all processes can read it.
"""

import contextlib
import errno
import logging as std_logging
import os
import shutil
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath

from moe_vision.common.errors import UserError
from moe_vision.common.files import absolute, in_bucket
from moe_vision.processes import peers

_CHECKSUM = 'checksum'


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


class Folder:
    """The checkpoints in one folder, at most `keep` of them."""

    def __init__(self, path: epath.Path, keep: int):
        self.path = absolute(path)
        self._manager = ocp.CheckpointManager(
            self.path, item_handlers=ocp.StandardCheckpointHandler(),
            options=ocp.CheckpointManagerOptions(max_to_keep=keep, create=True,
                                                 enable_async_checkpointing=True))
        self._saving = 0  # the step of the last save

    def save(self, step: int, state: Any) -> None:
        self.wait()
        if step in self._manager.all_steps():
            return
        values = _as_dict(state) | {_CHECKSUM: np.asarray(checksum(state))}
        self._saving = step
        try:
            self._check_room(state)
            self._manager.save(step, args=ocp.args.StandardSave(values), force=True)
        except Exception as e:  # as in `wait`
            self._give_up(e)

    def _check_room(self, state: Any) -> None:
        """Raises in all processes where one cannot write, or sees no room for the state: orbax lets
        the others wait for it for 20 minutes."""
        if not peers.several() or in_bucket(self.path):
            return
        probe, error = self.path / f'.process_{jax.process_index()}', None
        try:
            probe.write_text('')
            probe.unlink()
            if shutil.disk_usage(self.path).free < sum(x.nbytes for x in jax.tree.leaves(state)):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as e:
            error = e
        if not peers.all_agree(error is None):
            raise error or OSError('another process cannot write')

    def wait(self) -> None:
        """Returns when the last save is on disk, or given up."""
        try:
            self._manager.wait_until_finished()
        except Exception as e:  # a full disk comes in many types
            self._give_up(e)

    def _give_up(self, error: Exception) -> None:
        logging.warning('checkpoint %d cannot be saved (%s); training goes on, and the checkpoints '
                        'before it stay', self._saving, why(error))
        std_logging.getLogger('asyncio').addFilter(_not_told)
        self.clear(str(self._saving))
        self._manager.reload()  # it has already forgotten the one that should have made room

    def clear(self, step: str = '*') -> None:
        """Removes what was begun and not finished; the folder must be this run's alone."""
        if peers.first():
            for part in self.path.glob(f'{step}.orbax-checkpoint-tmp*'):
                part.rmtree(missing_ok=True)

    def steps(self) -> list[int]:
        return sorted(self._manager.all_steps(), reverse=True)

    def delete_after(self, step: int) -> None:
        """The run will come to those again, and an old one would stand in the way."""
        for newer in self.steps():
            if newer > step:
                self._manager.delete(newer)

    def restore(self, step: int, state: Any) -> Any:
        """The state at a step; raises whatever is wrong with it, in every process."""
        wanted = _as_dict(state) | {_CHECKSUM: np.zeros((), np.uint32)}
        values = read(self.path / str(step), ocp.StandardCheckpointHandler,
                      lambda _: ocp.args.StandardRestore(wanted))
        expected = int(values.pop(_CHECKSUM))
        found = type(state)(**values)
        if int(checksum(found)) != expected:
            raise ValueError('its checksum is wrong')
        return found

    def close(self) -> None:
        self.wait()
        self._manager.close()


def read(path: epath.Path, handler: Any, args: Any) -> Any:
    """What a checkpoint holds, in every process, or an error in all of them.

    Orbax would wait for all after reading: with one that failed the others would wait for ever.

    Args:
      handler: a handler's class.
      args: makes the restore arguments, given the reader.
    """
    me = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=me, active_processes={me}, barrier_sync_key_prefix=f'process_{me}')
    found, error = None, None
    try:
        with ocp.Checkpointer(handler(multiprocessing_options=alone),
                              multiprocessing_options=alone) as reader:
            found = reader.restore(path / 'default', args=args(reader))
    except Exception as e:
        error = e
    if not peers.all_agree(error is None):
        raise error or ValueError('another process cannot read it')
    return found


@jax.jit
def checksum(state: Any) -> jax.Array:
    """A uint32 of all bits and where they stand, the same however the arrays are laid out."""
    total = jnp.uint32(0)
    for x in jax.tree.leaves(state):
        unsigned = jnp.dtype(f'uint{8 * x.dtype.itemsize}')
        bits = jax.lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32)
        place = jnp.uint32(0)  # in row-major order; a reshape would gather what is split
        for axis, size in enumerate(x.shape):
            place = place * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
        total = total * jnp.uint32(31) + jnp.sum(bits * (2 * place + 1), dtype=jnp.uint32)
    return total


def _not_told(record: std_logging.LogRecord) -> bool:
    """Orbax leaves the writes of a save that failed to the garbage collector, which tells each."""
    return 'exception was never retrieved' not in record.getMessage()


def why(error: Exception) -> str:
    """The beginning of what orbax says, in one line."""
    return ' '.join(str(error).split()).split(' See full ')[0][:160]


def _as_dict(state: Any) -> dict[str, Any]:
    return dict(vars(state))
