"""Joins the processes of one run, and lets them agree and end together.

Every process runs the same program on its own devices. Process 0 writes the run's files and prints;
the others compute, and log only warnings and errors. Nothing here imports jax before `start`.

The flags `--coordinator=HOST:PORT --processes=N --process=I` say who takes part. Without them, on a
machine with TPU chips (`/dev/accel*` or `/dev/vfio/*`, libtpu installed, and no other platform in
JAX_PLATFORMS), `jax.distributed.initialize()` asks the pod; a machine outside a pod runs alone. On
any other machine a run is one process.
"""

import dataclasses
import glob
import importlib.util
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from moe_vision.common.errors import UserError
from moe_vision.processes import address, logs
from moe_vision.processes.watch import BEAT_SECONDS, Watch

CONNECT_SECONDS = 60.0  # within which all processes started with flags must connect
POD_SECONDS = 300.0  # within which all hosts of a pod must connect
_FLAGS = ('coordinator', 'processes', 'process')


@dataclasses.dataclass(frozen=True)
class Given:
    """The processes of a run, as the command line names them."""

    coordinator: str  # HOST:PORT of process 0
    processes: int
    process: int


def check(coordinator: str | None, processes: int | None, process: int | None) -> Given | None:
    """The checked values of the three flags; None if none is given.

    Raises:
      UserError: a flag is missing, or its value is impossible.
    """
    values = dict(zip(_FLAGS, (coordinator, processes, process), strict=True))
    missing = [f'--{n}' for n, v in values.items() if v is None]
    if len(missing) == len(values):
        return None
    if coordinator is None or processes is None or process is None:
        raise UserError(
            f'{" and ".join(missing)} missing; a run of several processes needs '
            '--coordinator=HOST:PORT --processes=N --process=I, I from 0 to N-1.'
        )
    address.split(coordinator)
    if processes < 1:
        raise UserError(f'--processes is {processes}; it must be positive.')
    if not 0 <= process < processes:
        raise UserError(
            f'--process is {process} of --processes {processes}; allowed: 0 to {processes - 1}.'
        )
    return Given(coordinator, processes, process)


def start(given: Given | None) -> None:
    """Joins the other processes, before any device is used. Returns at once if there are none.

    Ends the process with a line and exit code 2 if they do not connect within CONNECT_SECONDS
    (POD_SECONDS in a pod); the runtime itself would end it with a stack trace.

    Raises:
      UserError: this is process 0, and it cannot listen where the others look for it.
    """
    if not given and not _tpu():
        return
    if given and given.process == 0:
        address.check_coordinator(given.coordinator)
    import jax

    args: dict[str, Any] = {}
    if given:
        waits = (
            f'process {given.process}: the coordinator {given.coordinator} (process 0) does '
            'not answer, or another program does,'
            if given.process
            else f'process 0: not all of {given.processes} processes have connected'
        )
        seconds, args = (
            CONNECT_SECONDS,
            {
                'coordinator_address': given.coordinator,
                'num_processes': given.processes,
                'process_id': given.process,
                'cluster_detection_method': 'deactivate',
            },
        )
    else:
        waits, seconds = 'the other hosts of the pod do not answer', POD_SECONDS
    error = (
        f'{waits} after {seconds:.0f} s; start all processes at about the same time, with the '
        'same --coordinator and --processes and each its own --process.'
    )
    try:
        with _deadline(seconds, error):
            jax.distributed.initialize(initialization_timeout=2 * int(seconds) + 60, **args)
    except ValueError:
        if given:
            raise
        return  # this machine has chips but is not part of a pod
    except Exception as e:  # such as a port that was taken since it was checked
        raise UserError(f'cannot join the run: {" ".join(str(e).split())[:200]}') from e
    if several():
        logs.for_process(jax.process_index())
        _watch(address.split(given.coordinator)[0] if given else '')


_watching: list[Watch] = []  # this process's watch, if it has joined others


def _watch(host: str) -> None:
    """Starts to watch the other processes. `host` is the coordinator's; '' in a pod."""
    import jax

    _watching.append(
        Watch(jax.process_index(), jax.process_count(), host, _share, lambda line: end(1, line))
    )


def done() -> None:
    """Waits until the run is over in all processes; after that each may end at any time."""
    for watch in _watching:
        barrier('done')
        watch.close()


def give_up(code: int, error: str) -> None:
    """Ends this process and the others because of an error. Returns if there are no others."""
    for watch in _watching:
        watch.close(error)
        end(code)


def failed(error: Exception) -> None:
    """Ends this process and the others because of an unexpected error, with its stack trace.

    If the cause is another process that has died, the watch reports that instead. Returns if there
    are no others.
    """
    for watch in _watching:
        time.sleep(3 * BEAT_SECONDS)  # a collective may fail before the watch notices the cause
        watch.close(f'{type(error).__name__}: {" ".join(str(error).split())[:200]}')
        traceback.print_exception(error)
        end(1)


def _tpu() -> bool:
    """Whether this machine has TPU chips that jax will use."""
    platforms = os.environ.get('JAX_PLATFORMS', '')
    return bool(
        (not platforms or 'tpu' in platforms)
        and importlib.util.find_spec('libtpu')
        and (glob.glob('/dev/accel*') or glob.glob('/dev/vfio/[0-9]*'))
    )


@contextmanager
def _deadline(seconds: float, error: str) -> Iterator[None]:
    """Ends this process with an error if the block takes longer."""
    timer = threading.Timer(seconds, end, (2, f'error: {error}'))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def end(code: int, line: str = '') -> None:
    """Ends this process at once, without a shutdown that waits for processes that are gone."""
    if line:
        sys.stderr.write(f'{line}\n')  # in one write: the runtime's threads also write there
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def joined() -> bool:
    """Whether `start` joined other processes. Does not import jax."""
    return bool(_watching)


def several() -> bool:
    """Whether the run has more than one process."""
    import jax

    return jax.process_count() > 1


def first() -> bool:
    """Whether this is process 0, which writes files and prints."""
    import jax

    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Returns when all processes have called it."""
    if several():
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


def all_agree(ok: bool) -> bool:
    """Whether `ok` is true in every process. All of them must call this."""
    if not several():
        return ok
    import numpy as np
    from jax.experimental import multihost_utils

    return bool(np.all(multihost_utils.process_allgather(np.asarray(ok))))


def share(value: Any) -> Any:
    """Process 0's value in every process. JSON must hold it, and all processes must call this."""
    return _share(value) if joined() else value


def same(value: Any) -> bool:
    """Whether every process passes the same value. As for `share`, JSON must hold it."""
    return all_agree(share(value) == value)


def _share(value: Any) -> Any:
    import numpy as np
    from jax.experimental import multihost_utils

    data = np.frombuffer(json.dumps(value).encode() if first() else b'', np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(data.size)))
    padded = np.zeros(-(-size // 1024) * 1024, np.uint8)  # few lengths, as each one compiles
    padded[: data.size] = data
    return json.loads(bytes(multihost_utils.broadcast_one_to_all(padded).tolist())[:size])


def check_shared(folder: Any, digest: int | str, what: str = 'configs') -> None:
    """Checks that all processes see the same folder and run the same config or study.

    Args:
      folder: the workdir, as a path.
      digest: hash of the config or study.
      what: 'configs' or 'studies', for the error.

    Raises:
      UserError: in all processes, if one of them differs.
    """
    if not several():
        return
    mark = folder / '.processes'
    if first():
        mark.write_text(str(digest))
    barrier('marked')
    seen = mark.exists()
    barrier('seen')
    if first():
        mark.unlink()
    if not all_agree(seen):
        raise UserError(
            f"workdir '{folder}' is not the same folder for every process; give one "
            'that all of them share: on a network file system, or gs://...'
        )
    if not same(digest):
        raise UserError(
            f'the processes run different {what}; start them with the same command, '
            'each with its own --process.'
        )
