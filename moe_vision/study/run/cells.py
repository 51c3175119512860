"""Trains the seeds of one arm, each into its own folder."""

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


def train_arm(configs: Sequence[Config], folders: Sequence[str],
              mode: Literal['one_by_one', 'together'], probe: bool, done: Done,
              begin: Begin = lambda number: True, stop: Stop | None = None) -> None:
    """Trains each config in its folder, continuing what is there.

    Args:
      configs: one per seed; they differ in the seed alone.
      folders: of the runs.
      mode: 'one_by_one' uses the compiled programs again, run after run; 'together' is one program
        for all seeds.
      probe: write mechanism.json, too.
      done: called as each ends with its number and None, or one line where its loss was not
        finite; the others go on.
      begin: called with a seed's number before it is trained, where they train one by one; False
        leaves it out (another process works on it).
      stop: says when to end before all are trained, where they train one by one.

    Over several processes all of them call it alike; 'together' needs a single one.

    Raises:
      Stopped: `stop` said so; the run is saved.
      UserError: anything else that the user can mend.
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
        told = None
        try:
            loop.train(config, folder, setup=setup, full_report=False, probe=probe, stop=stop)
        except Diverged as e:
            told = str(e)
        peers.barrier('trained')  # `done` may remove what another one still has open
        done(number, told)
