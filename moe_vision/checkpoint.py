"""Checkpoints of a run, behind orbax: the newest few, and the best on validation.

`W/checkpoints/latest/STEP` and `W/checkpoints/best/STEP`. Saving is asynchronous and atomic: a
folder appears under its name when it is whole. The optimizer state is saved too, so the best
checkpoint can be trained on. With the arrays goes a checksum of them: files whose bytes were
changed can often still be read.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath

from moe_vision import processes
from moe_vision.errors import UserError
from moe_vision.files import absolute

_CHECKSUM = 'checksum'


class Checkpoints:
    """Saves and restores train states. Close it, or use `with`: closing waits for saves."""

    def __init__(self, workdir: str, keep: int):
        root = epath.Path(workdir) / 'checkpoints'
        options = lambda n: ocp.CheckpointManagerOptions(  # noqa: E731
            max_to_keep=n, enable_async_checkpointing=True, create=True)
        manager = lambda name, n: ocp.CheckpointManager(  # noqa: E731
            absolute(root / name), options=options(n),
            item_handlers=ocp.StandardCheckpointHandler())
        self._latest, self._best = manager('latest', keep), manager('best', 1)

    def save(self, step: int, state: Any) -> None:
        self._best.wait_until_finished()  # a run that goes on from here will not make it again
        _save(self._latest, step, state)

    def save_best(self, step: int, state: Any) -> None:
        _save(self._best, step, state)

    def restore_newest(self, abstract: Any) -> tuple[int, Any] | None:
        """(step, state) of the newest checkpoint that can be read, or None where there is none.

        A damaged one is named in the log, set aside, and the one before is tried.

        Args:
          abstract: arrays as `ShapeDtypeStruct` with shardings.

        Raises:
          UserError: there are checkpoints, but none fits this config or can be read.
        """
        steps = self.steps()
        for step in steps:
            try:
                state = _restore(self._latest, step, abstract)
            except Exception as e:  # whatever a damaged file makes orbax say
                logging.warning('checkpoint %d cannot be read (%s); trying the one before',
                                step, _why(e))
                continue
            for newer in steps[: steps.index(step)]:
                self._latest.delete(newer)
            self._forget_best_after(step)
            return step, state
        if steps:
            raise UserError(
                f'none of the checkpoints {steps} in {self._latest.directory} can be read with '
                'this config; if the network changed, use another --workdir.')
        self._forget_best_after(0)
        return None

    def forget_after(self, step: int) -> None:
        """Removes the newest checkpoints down to this step."""
        for newer in self.steps():
            if newer > step:
                self._latest.delete(newer)

    def _forget_best_after(self, step: int) -> None:
        """The run will come to those again, and an old one would stand in the way."""
        for best in self._best.all_steps():
            if best > step:
                self._best.delete(best)

    def steps(self) -> list[int]:
        """Steps of the checkpoints that are whole, newest first. Waits for saves."""
        self.wait()
        return sorted(self._latest.all_steps(), reverse=True)

    def restore_best(self, abstract: Any) -> tuple[int, Any] | None:
        """(step, state) of the best on validation; None where there is none that can be read."""
        self.wait()
        for step in self._best.all_steps():
            try:
                return step, _restore(self._best, step, abstract)
            except Exception as e:
                logging.warning('best checkpoint %d cannot be read (%s)', step, _why(e))
        return None

    def restore_for_evaluation(self, abstract: Any) -> tuple[int, Any]:
        """The newest checkpoint, changing nothing on disk.

        Raises:
          UserError: there is none that can be read.
        """
        for step in self.steps():
            try:
                return step, _restore(self._latest, step, abstract)
            except Exception as e:
                logging.warning('checkpoint %d cannot be read (%s)', step, _why(e))
        raise UserError(f'no checkpoint in {self._latest.directory} can be read with this config; '
                        'train first (--mode=train), or give the config the run was made with.')

    def wait(self) -> None:
        self._latest.wait_until_finished()
        self._best.wait_until_finished()

    def close(self) -> None:
        self.wait()
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
            with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
                path = root / str(step) / 'default'
                on_host = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray),
                                       reader.metadata(path).item_metadata.tree)
                return reader.restore(path, args=ocp.args.PyTreeRestore(restore_args=on_host))
        except Exception as e:
            logging.warning('checkpoint %d cannot be read (%s)', step, _why(e))
    raise UserError(f"init_from: there is no readable checkpoint in '{workdir}'.")


def abstract(state: Any, shardings: Any) -> Any:
    """Shapes, types and placement of a state, to restore onto."""
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
                        state, shardings)


def _save(manager: ocp.CheckpointManager, step: int, state: Any) -> None:
    if step in manager.all_steps():
        return
    values = _as_dict(state) | {_CHECKSUM: np.asarray(checksum(state))}
    manager.save(step, args=ocp.args.StandardSave(values), force=True)


def _restore(manager: ocp.CheckpointManager, step: int, state: Any) -> Any:
    wanted = _as_dict(state) | {_CHECKSUM: np.zeros((), np.uint32)}
    values = manager.restore(step, args=ocp.args.StandardRestore(wanted))
    expected = int(values.pop(_CHECKSUM))
    found = type(state)(**values)
    if int(checksum(found)) != expected:
        raise ValueError('its checksum is wrong')
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


def _why(error: Exception) -> str:
    """The beginning of what orbax says, in one line."""
    return ' '.join(str(error).split()).split(' See full ')[0][:160]


def _as_dict(state: Any) -> dict[str, Any]:
    return dict(vars(state))
