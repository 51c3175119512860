"""One run over several processes: starting them, agreeing, and what only the first one does.

Every process runs the same program on its own devices. Process 0 writes the run's files and speaks;
the others compute, and say what is wrong with them. Nothing here imports jax before `start`.

How a run comes to its processes: `--coordinator=HOST:PORT --processes=N --process=I` says it. Where
they are not given and this machine has TPU chips (`/dev/accel*` or `/dev/vfio/*`, libtpu installed,
JAX_PLATFORMS not set to anything else), `jax.distributed.initialize()` asks the pod; a machine that
belongs to none stays alone. Anywhere else a run is one process.
"""

import dataclasses
import glob
import importlib.util
import json
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from moe_vision.common.errors import UserError
from moe_vision.processes import logs
from moe_vision.processes.watch import BEAT_SECONDS, Watch

CONNECT_SECONDS = 60.0  # until all processes must have come, by flags
POD_SECONDS = 300.0  # and the hosts of a pod
_FLAGS = ('coordinator', 'processes', 'process')


@dataclasses.dataclass(frozen=True)
class Given:
    """Who takes part, as the command line says it."""

    coordinator: str  # HOST:PORT of process 0
    processes: int
    process: int


def check(coordinator: str | None, processes: int | None, process: int | None) -> Given | None:
    """What the flags say; None where none is given.

    Raises:
      UserError: one is missing or impossible.
    """
    values = dict(zip(_FLAGS, (coordinator, processes, process), strict=True))
    missing = [f'--{n}' for n, v in values.items() if v is None]
    if len(missing) == len(values):
        return None
    if coordinator is None or processes is None or process is None:
        raise UserError(f'{" and ".join(missing)} missing; a run over several processes needs '
                        '--coordinator=HOST:PORT --processes=N --process=I, I from 0 to N-1.')
    host, _, port = coordinator.rpartition(':')
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise UserError(f"--coordinator is '{coordinator}'; write the host and a free port of "
                        'process 0, such as 10.0.0.1:8476.')
    if processes < 1:
        raise UserError(f'--processes is {processes}; it must be positive.')
    if not 0 <= process < processes:
        raise UserError(f'--process is {process} of --processes {processes}; allowed: 0 to '
                        f'{processes - 1}.')
    return Given(coordinator, processes, process)


def start(given: Given | None) -> None:
    """Joins the others before any device is touched. Returns at once where there are none.

    Ends the process with a line and exit code 2 where they do not come in CONNECT_SECONDS (a pod's
    hosts: POD_SECONDS): the runtime itself would end it with a stack trace.
    """
    if not given and not _tpu():
        return
    import jax

    args: dict[str, Any] = {}
    if given:
        waits = (f'process {given.process}: the coordinator {given.coordinator} (process 0) does '
                 'not answer' if given.process else
                 f'process 0: not all of {given.processes} processes have come')
        seconds, args = CONNECT_SECONDS, {
            'coordinator_address': given.coordinator, 'num_processes': given.processes,
            'process_id': given.process, 'cluster_detection_method': 'deactivate'}
    else:
        waits, seconds = 'the other hosts of the pod do not answer', POD_SECONDS
    told = (f'{waits} after {seconds:.0f} s; start all processes at about the same time, with the '
            'same --coordinator and --processes and each its own --process.')
    try:
        with _deadline(seconds, told):
            jax.distributed.initialize(initialization_timeout=2 * int(seconds) + 60, **args)
    except ValueError:
        if given:
            raise
        return  # chips, but no pod around them
    except Exception as e:  # a port that is taken, a name that does not resolve
        raise UserError(f'cannot join the run: {" ".join(str(e).split())[:200]}') from e
    if several():
        logs.of_process(jax.process_index())
        _watch(given.coordinator.rpartition(':')[0] if given else '')


_watching: list[Watch] = []  # the one of this process


def _watch(host: str) -> None:
    import jax

    host = host or socket.gethostbyname(socket.gethostname())
    _watching.append(Watch(jax.process_index(), jax.process_count(), host, _share,
                           lambda line: end(1, line)))


def done() -> None:
    """The run is over in all processes; from here on each may end when it likes."""
    for watch in _watching:
        barrier('done')
        watch.close()


def give_up(code: int, error: str) -> None:
    """Ends this process for an error, and with it the others. Returns where it is alone."""
    for watch in _watching:
        watch.close(error)
        end(code)


def failed(error: Exception) -> None:
    """An error that nobody foresaw: where another process has died, the watch tells that instead.

    Returns where it has not, and after having told the others.
    """
    for watch in _watching:
        time.sleep(3 * BEAT_SECONDS)  # a collective fails as soon as the watch notices
        watch.close(f'{type(error).__name__}: {" ".join(str(error).split())[:200]}')
        traceback.print_exception(error)
        end(1)


def _tpu() -> bool:
    wanted = os.environ.get('JAX_PLATFORMS', '')
    return bool((not wanted or 'tpu' in wanted) and importlib.util.find_spec('libtpu')
                and (glob.glob('/dev/accel*') or glob.glob('/dev/vfio/[0-9]*')))


@contextmanager
def _deadline(seconds: float, told: str) -> Iterator[None]:
    """Ends this process with a line where the block takes longer."""
    timer = threading.Timer(seconds, end, (2, f'error: {told}'))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def end(code: int, line: str = '') -> None:
    """Ends this process now: nobody waits for processes that cannot answer any more."""
    if line:
        sys.stderr.write(f'{line}\n')  # at once: the runtime's threads write there, too
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def joined() -> bool:
    """Whether `start` joined others; does not touch jax."""
    return bool(_watching)


def several() -> bool:
    import jax

    return jax.process_count() > 1


def first() -> bool:
    """Whether this process writes and speaks."""
    import jax

    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Returns when all processes are here."""
    if several():
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


def all_agree(ok: bool) -> bool:
    """Whether `ok` is true in every process; each of them must ask."""
    if not several():
        return ok
    import numpy as np
    from jax.experimental import multihost_utils

    return bool(np.all(multihost_utils.process_allgather(np.asarray(ok))))


def share(value: Any) -> Any:
    """Process 0's value, one that JSON can hold, in every process; each of them must ask."""
    return _share(value) if joined() else value


def same(value: Any) -> bool:
    """Whether every process asks with the same value, one that JSON can hold."""
    return all_agree(share(value) == value)


def _share(value: Any) -> Any:
    import numpy as np
    from jax.experimental import multihost_utils

    text = np.frombuffer(json.dumps(value).encode() if first() else b'', np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(text.size)))
    padded = np.zeros(-(-size // 1024) * 1024, np.uint8)  # each length compiles a program
    padded[:text.size] = text
    return json.loads(bytes(multihost_utils.broadcast_one_to_all(padded).tolist())[:size])


def check_shared(folder: Any, digest: int | str, what: str = 'configs') -> None:
    """Every process must see the same folder, and run the same config (or study).

    Raises:
      UserError: in all of them, where one does not.
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
        raise UserError(f"workdir '{folder}' is not the same folder for every process; give one "
                        'that all share: on a network file system, or gs://...')
    if not same(digest):
        raise UserError(f'the processes run different {what}; start them with the same command, '
                        'each with its own --process.')
