"""Lets the processes of one mesh work on a study: process 0 leads, the others train what it says.

Only process 0 registers, claims, prints and writes. It shares these messages: {'train': arm,
'seeds': [...]}, and then for each of the seeds whether it is trained; {'wait': seconds} each time
that it finds nothing to claim; {} when all is done. A single process shares nothing.
"""

from collections.abc import Callable
from typing import Any

from etils import epath

from moe_vision.common.errors import UserError
from moe_vision.processes import peers
from moe_vision.processes.stop import Stop
from moe_vision.study import registration
from moe_vision.study.load import Loaded
from moe_vision.study.run import plan

TrainArm = Callable[..., None]  # `cells.train_arm`


def check(loaded: Loaded, workdir: str, only: str) -> None:
    """Checks that the processes can work on this study together, before one of them writes.

    Raises:
      UserError: they cannot; raised in all of them.
    """
    if loaded.study.seed_mode == 'together':
        raise UserError(
            "the study has seed_mode 'together', which lays seeds over the devices of "
            'one process; run it in one process, or register a study with '
            "seed_mode='one_by_one', with a new --workdir."
        )
    ours = f'{registration.digest(registration.record(loaded))} {only}'
    peers.check_shared(epath.Path(workdir), ours, 'studies')


def train(arm: str, seeds: list[int]) -> None:
    """Makes the others train an arm; this process must train it as well."""
    peers.share({'train': arm, 'seeds': seeds})


def train_arm(*args: Any, stop: Stop) -> None:
    """Calls `cells.train_arm` with `stop`."""
    from moe_vision.run_folder import record  # imports jax, which a finished study does not need
    from moe_vision.study.run import cells

    record.git_commit()  # remembers the commit of the code that was imported
    train: TrainArm = cells.train_arm
    train(*args, stop=stop)


def wait(seconds: float, stop: Stop) -> None:
    """Waits in all processes.

    Raises:
      Stopped: one of them received a signal to end.
    """
    peers.share({'wait': seconds})
    stop.sleep(seconds)


def end() -> None:
    """Lets the others know that all is done."""
    peers.share({})


def follow(loaded: Loaded, workdir: str, train_arm: TrainArm, stop: Stop) -> None:
    """Does what process 0 says until all is done; every other process calls it."""
    while message := peers.share(None):
        if 'wait' in message:
            stop.sleep(message['wait'])
            continue
        arm, seeds = message['train'], message['seeds']
        train_arm(
            [loaded.config(arm, s) for s in seeds],
            [str(plan.folder(workdir, (arm, s))) for s in seeds],
            loaded.study.seed_mode,
            loaded.study.mechanism,
            lambda i, error: None,
            lambda i: peers.share(None),
        )
