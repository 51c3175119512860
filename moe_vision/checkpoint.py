"""Checkpoints of a run, behind orbax: the newest few, and the best on validation.

`W/checkpoints/latest/STEP` and `W/checkpoints/best/STEP`. Saving is asynchronous and atomic: a
folder appears under its name when it is whole. The optimizer state is saved too, so the best
checkpoint can be trained on.
"""

from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging
from etils import epath

from moe_vision.errors import UserError


class Checkpoints:
    """Saves and restores train states. Close it, or use `with`: closing waits for saves."""

    def __init__(self, workdir: str, keep: int):
        root = epath.Path(workdir) / 'checkpoints'
        options = lambda n: ocp.CheckpointManagerOptions(  # noqa: E731
            max_to_keep=n, enable_async_checkpointing=True, create=True)
        self._latest = ocp.CheckpointManager((root / 'latest').resolve(), options=options(keep))
        self._best = ocp.CheckpointManager((root / 'best').resolve(), options=options(1))

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
                last = ' '.join(str(e).split())[:160]
                logging.warning('checkpoint %d cannot be read (%s); trying the one before',
                                step, last)
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

    def _forget_best_after(self, step: int) -> None:
        """The run will come to those again, and an old one would stand in the way."""
        for best in self._best.all_steps():
            if best > step:
                self._best.delete(best)

    def steps(self) -> list[int]:
        """Steps of the checkpoints that are whole, newest first. Waits for saves."""
        self.wait()
        return sorted(self._latest.all_steps(), reverse=True)

    def restore_for_evaluation(self, abstract: Any) -> tuple[int, Any]:
        """The newest checkpoint, changing nothing on disk.

        Raises:
          UserError: there is none that can be read.
        """
        for step in self.steps():
            try:
                return step, _restore(self._latest, step, abstract)
            except Exception as e:
                logging.warning('checkpoint %d cannot be read (%s)', step,
                                ' '.join(str(e).split())[:160])
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


def load_raw(workdir: str) -> dict[str, Any]:
    """Weights of a run as nested dicts of host arrays, without knowing its config.

    Keys 'params', 'batch_stats', 'router_state', 'ema'. The newest checkpoint that can be read.

    Raises:
      UserError: there is none.
    """
    root = (epath.Path(workdir) / 'checkpoints' / 'latest').resolve()
    steps = [int(p.name) for p in root.iterdir() if p.name.isdigit()] if root.exists() else []
    for step in sorted(steps, reverse=True):
        try:
            with ocp.StandardCheckpointer() as reader:
                return reader.restore(root / str(step) / 'default')
        except Exception as e:
            logging.warning('checkpoint %d cannot be read (%s)', step,
                            ' '.join(str(e).split())[:160])
    raise UserError(f"init_from: there is no readable checkpoint in '{workdir}'.")


def abstract(state: Any, shardings: Any) -> Any:
    """Shapes, types and placement of a state, to restore onto."""
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
                        state, shardings)


def _save(manager: ocp.CheckpointManager, step: int, state: Any) -> None:
    if step in manager.all_steps():
        return
    manager.save(step, args=ocp.args.StandardSave(_as_dict(state)), force=True)


def _restore(manager: ocp.CheckpointManager, step: int, state: Any) -> Any:
    values = manager.restore(step, args=ocp.args.StandardRestore(_as_dict(state)))
    return type(state)(**values)


def _as_dict(state: Any) -> dict[str, Any]:
    return dict(vars(state))
