"""One folder of checkpoints, behind orbax: saves in the background, reads in every process."""

import contextlib
import errno
import itertools
import os
import re
import shutil
import stat
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath

from moe_vision.common.errors import UserError
from moe_vision.common.files import absolute, in_bucket, reason
from moe_vision.common.json_values import MAX_BYTES
from moe_vision.processes import peers
from moe_vision.run_folder import checksum
from moe_vision.run_folder.lives import steps_in

CHECKSUM = 'checksum'


class Folder:
    """The checkpoints in one folder. Keeps at most the newest `keep` of them."""

    def __init__(self, path: epath.Path, keep: int):
        self.path = absolute(path)
        _check_tops(self.path)
        self._manager = ocp.CheckpointManager(
            self.path,
            item_handlers=ocp.StandardCheckpointHandler(),
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep, create=True, enable_async_checkpointing=True
            ),
        )
        self._last_step = 0  # of the last save
        self._saving = False  # whether it is under way
        self._failing = False  # whether the last one that ended has failed
        self._given_up: set[int] = set()  # steps

    def save(self, step: int, state: Any) -> None:
        """Begins to save a state, unless this step is there. Logs a failure instead of raising."""
        self.wait()
        if step in self._manager.all_steps():
            return
        values = _as_dict(state) | {CHECKSUM: np.asarray(checksum.of_state(state))}
        self._last_step, self._saving = step, True
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
        else:
            if self._saving and self._failing:
                logging.info('checkpoints can be saved again: %d is', self._last_step)
            self._failing &= not self._saving
        self._saving = False

    def _give_up(self, error: Exception) -> None:
        """Logs a failed save, unless the one before failed too, and deletes what it left."""
        if not self._failing:
            logging.warning(
                'checkpoint %d cannot be saved (%s); training continues, and the '
                'checkpoints before it are kept',
                self._last_step,
                _summary(error),
            )
        self._saving, self._failing = False, True
        self._given_up.add(self._last_step)
        try:
            self.clear(str(self._last_step))
            self._manager.reload()  # it has already dropped the checkpoint that was to make room
        except OSError as e:
            logging.warning('%s cannot be read (%s)', self.path, reason(e))

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

    def restore_newest(self, abstract: Any, warn: bool = True) -> tuple[int, Any] | None:
        """(step, state) of the newest checkpoint that can be read. Names the others in the log."""
        steps = self.steps()
        for step, before in itertools.zip_longest(steps, steps[1:]):
            try:
                return step, self.restore(step, abstract)
            except Exception as e:  # damaged files make orbax raise errors of many types
                if warn:
                    warn_of_damage(self.path, step, before, e)
        return None

    def restore(self, step: int, state: Any) -> Any:
        """The state saved at a step.

        Args:
          state: abstract, as `Checkpoints.restore_newest` takes it.

        Raises:
          Exception: in every process, if one cannot read the checkpoint.
        """
        wanted = _as_dict(state) | {CHECKSUM: np.zeros((), np.uint32)}
        values = _read(
            self.path / str(step),
            ocp.StandardCheckpointHandler,
            lambda _: ocp.args.StandardRestore(wanted),
        )
        expected = int(values.pop(CHECKSUM))
        restored = type(state)(**values)
        compare(step, int(restored.step), expected, int(checksum.of_state(restored)))
        return restored

    def lost(self) -> int:
        """The step of the last save if it is not on disk, else 0."""
        return 0 if self._last_step in (0, *steps_in(self.path)) else self._last_step

    def close(self) -> None:
        """Waits for the last save."""
        self.wait()
        for step in self._given_up:  # again: parts that were under way made their folders anew
            with contextlib.suppress(OSError):
                self.clear(str(step))
        with contextlib.suppress(Exception):  # what failed in the background: `wait` has told of it
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
        check_files(path)
        with ocp.Checkpointer(
            handler(multiprocessing_options=alone), multiprocessing_options=alone
        ) as reader:
            values = reader.restore(path / 'default', args=args(reader))
    except Exception as e:
        error = e
    if not peers.all_agree(error is None):
        raise error or ValueError('another process cannot read it')
    return values


def _check_tops(folder: epath.Path) -> None:
    """Raises UserError if orbax would wait for what stands beside the arrays of a checkpoint.

    It reads that of every checkpoint when it opens their folder.
    """
    for file in [] if in_bucket(folder) else folder.glob('*/*'):
        try:
            found = os.stat(file)
        except OSError:  # another process has just renamed or deleted it
            continue
        regular = stat.S_ISREG(found.st_mode) and found.st_size <= MAX_BYTES
        if not regular and not stat.S_ISDIR(found.st_mode):
            raise UserError(f"'{file}' is no file, or a huge one; remove it, and start again.")


def check_files(checkpoint: epath.Path) -> None:
    """Raises ValueError if a checkpoint holds more than files and folders, or a huge description.

    Reading a pipe would wait for ever. Folders behind links are not looked at, so they are refused.
    """
    if in_bucket(checkpoint):
        return
    for folder, below, names in os.walk(checkpoint):
        for name in names:
            file = os.path.join(folder, name)
            if not os.path.isfile(file):
                raise ValueError(f"'{name}' in it is no file")
            if os.path.basename(folder) != 'd' and os.path.getsize(file) > MAX_BYTES:  # no arrays
                raise ValueError(f"'{name}' in it has more than {MAX_BYTES:,} bytes")
        if linked := [name for name in below if os.path.islink(os.path.join(folder, name))]:
            raise ValueError(f"'{linked[0]}' in it is a link to a folder")


def warn_of_damage(folder: epath.Path, step: int, before: int | None, error: Exception) -> None:
    """Logs that a checkpoint cannot be read.

    Args:
      before: the step of the one that is tried next; None if there is none.
    """
    logging.warning(
        '%scheckpoint %d cannot be read (%s)%s',
        'best ' if folder.name == 'best' else '',
        step,
        _summary(error),
        '' if before is None else f'; trying that of step {before}',
    )


def _summary(error: Exception) -> str:
    """The beginning of an error's message, in one line."""
    text = ' '.join(str(error).split())
    return re.split(' See full | Truncating/padding ', text)[0][:160]


def _as_dict(state: Any) -> dict[str, Any]:
    """The fields of a dataclass by name, not copied."""
    return dict(vars(state))


def compare(step: int, saved_step: int, saved_checksum: int, own_checksum: int) -> None:
    """Raises ValueError unless a state that was read is the one that was saved at `step`."""
    if saved_checksum != own_checksum:
        raise ValueError('its checksum is wrong')
    if saved_step != step:
        raise ValueError(f'it holds the state of step {saved_step}')
