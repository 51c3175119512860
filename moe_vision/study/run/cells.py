"""Trains the seeds of one arm, each in its own folder."""

from collections.abc import Callable, Sequence
from typing import Literal

from moe_vision.config.schema import Config
from moe_vision.processes import peers
from moe_vision.processes.stop import Stop
from moe_vision.study.run import together
from moe_vision.study.run.together import Done
from moe_vision.training import loop
from moe_vision.training.run import Diverged
from moe_vision.training.setup import Setup

Begin = Callable[[int], bool]


def train_arm(
    configs: Sequence[Config],
    folders: Sequence[str],
    mode: Literal['one_by_one', 'together'],
    probe: bool,
    done: Done,
    begin: Begin = lambda number: True,
    stop: Stop | None = None,
) -> None:
    """Trains each config in its folder, continuing a run that is there.

    If several processes form one mesh, each of them makes the same call; 'together' needs a single
    process.

    Args:
      configs: one per seed; they differ only in the seed.
      folders: run folders, one per config.
      mode: 'one_by_one' trains run after run with the same compiled programs; 'together' trains all
        seeds as one program.
      probe: also write mechanism.json.
      done: called as each run ends, with its number and an error: None, or one line if its loss
        stopped being finite. The other runs continue.
      begin: for 'one_by_one', called with the number of a run before it is trained; if it returns
        False, the run is skipped (another process works on it).
      stop: for 'one_by_one', says when to stop early.

    Raises:
      Stopped: `stop` asked for it; the run is saved.
      UserError: any other error that the user can mend.
    """
    if not configs:
        return
    if mode == 'together' and len(configs) > 1:
        together.train(configs, folders, probe, done)
        return
    setup = Setup(configs[0])
    for number, (config, folder) in enumerate(zip(configs, folders, strict=True)):
        if not begin(number):
            continue
        error = None
        try:
            loop.train(config, folder, setup=setup, full_report=False, probe=probe, stop=stop)
        except Diverged as e:
            error = str(e)
        peers.barrier('trained')  # `done` may remove files that another process still has open
        done(number, error)
