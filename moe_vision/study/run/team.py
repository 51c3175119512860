"""The processes of one mesh at work on a study: the first one leads, the others train what it says.

Process 0 alone registers, claims, speaks and writes. What it shares, in order: {'train': arm,
'seeds': [...]} and then for each of the seeds whether it is trained; {'wait': seconds} each time
that it finds nothing to claim; {} when all is done. Where there is one process, nobody listens.
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
    """What must hold before the first process writes anything.

    Raises:
      UserError: in all processes, where they cannot work on this study together.
    """
    if loaded.study.seed_mode == 'together':
        raise UserError("the study has seed_mode 'together', which lays seeds over the devices of "
                        'one process; run it in one process, or register a study with '
                        "seed_mode='one_by_one', with a new --workdir.")
    ours = f'{registration.digest(registration.record(loaded))} {only}'
    peers.check_shared(epath.Path(workdir), ours, 'studies')


def train(arm: str, seeds: list[int]) -> None:
    """Tells the others to train an arm; this process must, too."""
    peers.share({'train': arm, 'seeds': seeds})


def train_arm(*args: Any, stop: Stop) -> None:
    """`cells.train_arm`, told when to stop."""
    from moe_vision.run_folder import record  # imports jax, which is not needed where all is done
    from moe_vision.study.run import cells

    record.git_commit()  # of the code as it was imported
    train: TrainArm = cells.train_arm
    train(*args, stop=stop)


def wait(seconds: float, stop: Stop) -> None:
    """Waits in all processes.

    Raises:
      Stopped: one of them was told to end.
    """
    peers.share({'wait': seconds})
    stop.sleep(seconds)


def end() -> None:
    """Lets the others go."""
    peers.share({})


def follow(loaded: Loaded, workdir: str, train_arm: TrainArm, stop: Stop) -> None:
    """What every process but the first does, until that says that all is done."""
    while said := peers.share(None):
        if 'wait' in said:
            stop.sleep(said['wait'])
            continue
        arm, seeds = said['train'], said['seeds']
        train_arm([loaded.config(arm, s) for s in seeds],
                  [str(plan.folder(workdir, (arm, s))) for s in seeds], loaded.study.seed_mode,
                  loaded.study.mechanism, lambda i, told: None, lambda i: peers.share(None))
