"""One folder of checkpoints, behind orbax: saving in the background, reading in every process."""

import errno
import logging as std_logging
import os
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath

from moe_vision.common.files import absolute, in_bucket
from moe_vision.processes import peers

_CHECKSUM = 'checksum'


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
