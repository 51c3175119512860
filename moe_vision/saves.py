"""One folder of checkpoints, behind orbax: saving in the background, reading in every process."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath

from moe_vision import processes
from moe_vision.files import absolute, in_bucket

ABSENT_SECONDS = 30.0  # after which a process that is missed has not written its part
_CHECKSUM = 'checksum'
_STAGES = ('async_write_complete', 'async_commit_complete')  # of a save, as orbax calls them
_numbers = itertools.count()  # of the saves of this process; all make the same ones


class Together:
    """The barriers of a save over several processes, which orbax calls in its threads.

    Orbax lets a process that failed skip the stages of a save, and the others wait for it there for
    20 minutes. Here a stage is two barriers: one that all come to, and one that it misses.
    """

    def __init__(self) -> None:
        self._number, self._left, self._others = next(_numbers), list(_STAGES), 0

    def __call__(self, *, key: str, timeout_ms: int) -> None:
        stage, seconds = next((s for s in _STAGES if s in key), None), timeout_ms / 1000
        if stage is None:
            self._others += 1
            if self._others > 2 and self._left:  # two begin the save; so this part has failed
                self._wait(self._left[0], seconds)
                self._left = []
            self._wait(f'{key} {self._others}', seconds)
            return
        try:
            self._wait(stage, seconds)
            self._wait(f'{stage} everywhere', ABSENT_SECONDS)
        except Exception as e:
            self._left = []
            raise OSError('another process cannot write its part') from e
        self._left.remove(stage)

    def _wait(self, what: str, seconds: float) -> None:
        ocp.multihost.get_barrier_sync_fn()(key=f'save {self._number} {what}',
                                            timeout_ms=int(1000 * seconds))


class Folder:
    """The checkpoints in one folder, at most `keep` of them."""

    def __init__(self, path: epath.Path, keep: int):
        self.path = absolute(path)
        self._manager = ocp.CheckpointManager(
            self.path, item_handlers=ocp.StandardCheckpointHandler(),
            options=ocp.CheckpointManagerOptions(max_to_keep=keep, create=True,
                                                 enable_async_checkpointing=True,
                                                 async_options=ocp.options.AsyncOptions(
                                                     barrier_sync_fn=self._meet)))
        self._saving = 0  # the step of the last save
        self._together = Together()  # its barriers

    def save(self, step: int, state: Any) -> None:
        self.wait()
        if step in self._manager.all_steps():
            return
        values = _as_dict(state) | {_CHECKSUM: np.asarray(checksum(state))}
        self._saving = step
        try:
            self._try_to_write()
            self._together = Together()
            self._manager.save(step, args=ocp.args.StandardSave(values), force=True)
        except Exception as e:  # as in `wait`
            self._give_up(e)

    def _meet(self, *, key: str, timeout_ms: int) -> None:
        self._together(key=key, timeout_ms=timeout_ms)

    def _try_to_write(self) -> None:
        """Raises in all processes where one cannot write here: the others would wait for it."""
        if not processes.several() or in_bucket(self.path):
            return
        probe, error = self.path / f'.process_{jax.process_index()}', None
        try:
            probe.write_text('room')
            probe.unlink()
        except OSError as e:
            error = e
        if not processes.all_agree(error is None):
            raise error or OSError('another process cannot write there')

    def wait(self) -> None:
        """Returns when the last save is on disk, or given up."""
        try:
            self._manager.wait_until_finished()
        except Exception as e:  # a full disk comes in many types
            self._give_up(e)

    def _give_up(self, error: Exception) -> None:
        logging.warning('checkpoint %d cannot be saved (%s); training goes on, and the checkpoints '
                        'before it stay', self._saving, why(error))
        self.clear(str(self._saving))
        self._manager.reload()  # it has already forgotten the one that should have made room

    def clear(self, step: str = '*') -> None:
        """Removes what was begun and not finished; the folder must be this run's alone."""
        if processes.first():
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
    if not processes.all_agree(error is None):
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


def why(error: Exception) -> str:
    """The beginning of what orbax says, in one line."""
    return ' '.join(str(error).split()).split(' See full ')[0][:160]


def _as_dict(state: Any) -> dict[str, Any]:
    return dict(vars(state))
