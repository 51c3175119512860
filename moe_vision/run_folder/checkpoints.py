"""Saves and restores a run's checkpoints with orbax: the newest few, and the best on validation.

They lie in `W/checkpoints/latest/STEP` and `W/checkpoints/best/STEP`. A save runs in the background
and is atomic: a folder gets its name when it is complete. If a save fails, a warning is logged and
training continues. A checkpoint includes the optimizer state, so that training can also continue
from the best one, and a checksum, because orbax often reads damaged files without an error.

In a run of several processes all of them call every function. Each reads what its devices hold, and
a checkpoint is restored only if all processes can read it.
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
    """Saves and restores train states. Use `with` or `close`, which wait for saves.

    Args:
      workdir: the run's folder.
      keep: how many of the newest checkpoints to keep.
    """

    def __init__(self, workdir: str, keep: int):
        root = epath.Path(workdir) / 'checkpoints'
        self._latest, self._best = Folder(root / 'latest', keep), Folder(root / 'best', 1)

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
        for step in steps:
            try:
                state = self._latest.restore(step, abstract)
            except Exception as e:  # damaged files make orbax raise errors of many types
                logging.warning(
                    'checkpoint %d cannot be read (%s); trying the one before it', step, _summary(e)
                )
                continue
            self._latest.delete_after(step)
            self._best.delete_after(step)
            return step, state
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
        for step in self._best.steps():
            try:
                return step, self._best.restore(step, abstract)
            except Exception as e:
                logging.warning('best checkpoint %d cannot be read (%s)', step, _summary(e))
        return None

    def restore_for_evaluation(self, abstract: Any) -> tuple[int, Any]:
        """(step, state) of the newest readable checkpoint. Changes nothing on disk.

        Raises:
          UserError: no checkpoint can be read.
        """
        for step in self.steps():
            try:
                return step, self._latest.restore(step, abstract)
            except Exception as e:
                logging.warning('checkpoint %d cannot be read (%s)', step, _summary(e))
        raise UserError(
            f'no checkpoint in {self._latest.path} can be read with this config; '
            'train first (--mode=train), or give the config of the run.'
        )

    def wait(self) -> None:
        """Returns when all saves are on disk, or have failed."""
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
    """The state of the newest readable checkpoint, without knowing its config or its devices.

    Returns nested dicts of host arrays, whose keys are the fields of `TrainState`.

    Raises:
      UserError: no checkpoint can be read.
    """
    root = absolute(epath.Path(workdir) / 'checkpoints' / kind)
    steps = [int(p.name) for p in root.iterdir() if p.name.isdigit()] if root.exists() else []
    for step in sorted(steps, reverse=True):
        try:
            with contextlib.closing(ocp.PyTreeCheckpointHandler()) as reader:
                path = root / str(step) / 'default'
                on_host = jax.tree.map(
                    lambda _: ocp.RestoreArgs(restore_type=np.ndarray), reader.metadata(path).tree
                )
                return reader.restore(path, args=ocp.args.PyTreeRestore(restore_args=on_host))
        except Exception as e:
            logging.warning('checkpoint %d cannot be read (%s)', step, _summary(e))
    raise UserError(f"there is no readable checkpoint in '{workdir}'; train there first.")


def abstract(state: Any, shardings: Any) -> Any:
    """The shapes, types and shardings of a state, as the functions that restore it need them."""
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, shardings
    )


class Folder:
    """The checkpoints in one folder. Keeps at most the newest `keep` of them."""

    def __init__(self, path: epath.Path, keep: int):
        self.path = absolute(path)
        self._manager = ocp.CheckpointManager(
            self.path,
            item_handlers=ocp.StandardCheckpointHandler(),
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep, create=True, enable_async_checkpointing=True
            ),
        )
        self._last_step = 0  # of the last save

    def save(self, step: int, state: Any) -> None:
        """Begins to save a state, unless this step is there. Logs a failure instead of raising."""
        self.wait()
        if step in self._manager.all_steps():
            return
        values = _as_dict(state) | {_CHECKSUM: np.asarray(checksum(state))}
        self._last_step = step
        try:
            self._check_room(state)
            self._manager.save(step, args=ocp.args.StandardSave(values), force=True)
        except Exception as e:  # as in `wait`
            self._give_up(e)

    def _check_room(self, state: Any) -> None:
        """Raises OSError in all processes if one of them cannot write or lacks room for the state.

        Otherwise orbax would make the others wait 20 minutes for that one.
        """
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
        """Returns when the last save is on disk, or has failed."""
        try:
            self._manager.wait_until_finished()
        except Exception as e:  # a full disk raises errors of many types
            self._give_up(e)

    def _give_up(self, error: Exception) -> None:
        """Logs a failed save and deletes what it left."""
        logging.warning(
            'checkpoint %d cannot be saved (%s); training continues, and the '
            'checkpoints before it are kept',
            self._last_step,
            _summary(error),
        )
        std_logging.getLogger('asyncio').addFilter(_is_not_of_a_failed_save)
        self.clear(str(self._last_step))
        self._manager.reload()  # it has already dropped the checkpoint that was to make room

    def clear(self, step: str = '*') -> None:
        """Deletes unfinished saves. No other process may be saving in this folder."""
        if peers.first():
            for part in self.path.glob(f'{step}.orbax-checkpoint-tmp*'):
                part.rmtree(missing_ok=True)

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, newest first."""
        return sorted(self._manager.all_steps(), reverse=True)

    def delete_after(self, step: int) -> None:
        """Deletes the checkpoints after a step: `save` would not replace them."""
        for newer in self.steps():
            if newer > step:
                self._manager.delete(newer)

    def restore(self, step: int, state: Any) -> Any:
        """The state saved at a step.

        Args:
          state: abstract, as `Checkpoints.restore_newest` takes it.

        Raises:
          Exception: in every process, if one cannot read the checkpoint.
        """
        wanted = _as_dict(state) | {_CHECKSUM: np.zeros((), np.uint32)}
        values = _read(
            self.path / str(step),
            ocp.StandardCheckpointHandler,
            lambda _: ocp.args.StandardRestore(wanted),
        )
        expected = int(values.pop(_CHECKSUM))
        restored = type(state)(**values)
        if int(checksum(restored)) != expected:
            raise ValueError('its checksum is wrong')
        return restored

    def close(self) -> None:
        """Waits for the last save."""
        self.wait()
        self._manager.close()


def _read(path: epath.Path, handler: Any, args: Any) -> Any:
    """Reads a checkpoint in every process, or raises in all of them.

    Each process reads on its own: orbax waits for all of them after reading, which would be for
    ever if one had failed.

    Args:
      handler: a handler's class.
      args: function of the reader that makes the arguments of its `restore`.
    """
    this = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=this, active_processes={this}, barrier_sync_key_prefix=f'process_{this}'
    )
    values, error = None, None
    try:
        with ocp.Checkpointer(
            handler(multiprocessing_options=alone), multiprocessing_options=alone
        ) as reader:
            values = reader.restore(path / 'default', args=args(reader))
    except Exception as e:
        error = e
    if not peers.all_agree(error is None):
        raise error or ValueError('another process cannot read it')
    return values


@jax.jit
def checksum(state: Any) -> jax.Array:
    """A uint32 checksum of all bits and their places, independent of how arrays are sharded."""
    total = jnp.uint32(0)
    for x in jax.tree.leaves(state):
        unsigned = jnp.dtype(f'uint{8 * x.dtype.itemsize}')
        bits = jax.lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32)
        place = jnp.uint32(0)  # row-major, from iotas: a reshape would gather sharded arrays
        for axis, size in enumerate(x.shape):
            place = place * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
        total = total * jnp.uint32(31) + jnp.sum(bits * (2 * place + 1), dtype=jnp.uint32)
    return total


def _is_not_of_a_failed_save(record: std_logging.LogRecord) -> bool:
    """False for what asyncio logs about each write that orbax abandons in a failed save."""
    return 'exception was never retrieved' not in record.getMessage()


def _summary(error: Exception) -> str:
    """The beginning of an error's message, in one line."""
    return ' '.join(str(error).split()).split(' See full ')[0][:160]


def _as_dict(state: Any) -> dict[str, Any]:
    """The fields of a dataclass by name, not copied."""
    return dict(vars(state))
