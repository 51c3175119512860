"""Runs the cells of a study that have no row yet; several processes may share a workdir.

A process picks an arm that nobody works on, if there is one, and trains its seeds with the same
compiled programs. It claims each cell before it starts, and writes its row when the cell ends.
Whatever stops a process, the next one resumes the unfinished cell from its last checkpoint. A
process ends when all cells are done: while others work on the last ones it waits, and takes over
what they give up. Several processes that form one mesh (`team`) act like one here.
"""

import functools
import math
import os
import shutil
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from moe_vision.common.errors import NotWritten, UserError
from moe_vision.processes import peers
from moe_vision.processes.stop import Stop
from moe_vision.study import lent, registration, row_of_run, rows, stopwatch
from moe_vision.study.load import Loaded, matching
from moe_vision.study.run import plan, team
from moe_vision.study.run.claims import BEAT, Cell, Claims
from moe_vision.study.run.plan import Plan
from moe_vision.study.run.team import TrainArm

WAIT = BEAT  # seconds between two checks of what others work on
AGAIN = 0.1  # seconds until the next try, if another process was faster
REMIND = 600.0  # seconds between two messages while waiting


def run(
    loaded: Loaded,
    workdir: str,
    only: str = '',
    keep_runs: bool = False,
    train_arm: TrainArm | None = None,
    stream: TextIO = sys.stderr,
    stop: Stop | None = None,
) -> int:
    """Registers the study, then trains every cell that is not done.

    When it returns, all cells are done, by this process or by others.

    Args:
      only: patterns of arms, separated by commas; '' for all arms.
      keep_runs: keep the checkpoints of cells that are done.
      train_arm: trains the seeds of an arm; `cells.train_arm` by default.
      stream: where progress is printed.
      stop: says when to stop early.

    Returns:
      how many cells this process did.

    Raises:
      Stopped: `stop` asked for it.
      UserError: the study differs from the registered one, or a cell failed; all rows stay.
    """
    stop = stop or Stop()
    train_arm = train_arm or functools.partial(team.train_arm, stop=stop)
    if peers.joined():
        team.check(loaded, workdir, only)
        if not peers.first():
            team.follow(loaded, workdir, train_arm, stop)
            return 0
    record, digest = registration.register(loaded, workdir)
    arms = matching(record['arms'], only)
    with Claims(workdir) as claims:
        runner = _Runner(loaded, workdir, record, digest, arms, claims, keep_runs, stream)
        while arm := runner.next_arm(stop):
            runner.train(arm, train_arm)
        team.end()
        runner.say_end()
    return runner.count


class _Runner:
    """Trains cells of a study in this process, and counts them."""

    def __init__(
        self,
        loaded: Loaded,
        workdir: str,
        record: dict[str, Any],
        digest: str,
        arms: list[str],
        claims: Claims,
        keep_runs: bool,
        stream: TextIO,
    ):
        self._loaded, self._workdir, self._record, self._digest = loaded, workdir, record, digest
        self._arms, self._claims, self._keep, self._stream = arms, claims, keep_runs, stream
        self._together = loaded.study.seed_mode == 'together'
        self.count = 0

    @functools.cached_property
    def _flops(self) -> dict[str, int]:
        configs = {arm: self._loaded.configs[arm] for arm in self._arms}
        return plan.costs(configs, stopwatch.timings(self._workdir))

    @functools.cached_property
    def _device(self) -> dict[str, Any]:
        return plan.this_device()

    def _states(self) -> dict[Cell, plan.State]:
        return plan.states(self._workdir, self._record, self._arms, self._claims)

    def next_arm(self, stop: Stop) -> str:
        """An arm with work left, with one of its cells claimed (all, if seeds train together).

        Waits while others work on everything that is left. Returns '' if all is done.
        """
        reminded = -math.inf  # when it last said that it waits
        while not all(map(plan.ended, (states := self._states()).values())):
            busy = {
                arm: sum(states[arm, s] == 'running' for s in self._record['seeds'])
                for arm in self._arms
            }
            pause = WAIT
            for arm in sorted(self._arms, key=lambda a: busy[a]):  # stable: in the study's order
                todo = [
                    c
                    for c, state in states.items()
                    if c[0] == arm and not plan.ended(state) and state != 'running'
                ]
                if not todo or self._together and busy[arm]:
                    continue
                wanted = todo if self._together else todo[:1]
                if all(self._claims.take(c) for c in wanted):
                    return arm
                self._release(arm)
                pause = AGAIN  # another process was faster
            if pause == WAIT and time.monotonic() - reminded >= REMIND:
                reminded = time.monotonic()
                self._say_waiting([c for c, state in states.items() if state == 'running'])
            team.wait(pause, stop)
        return ''

    def train(self, arm: str, train_arm: TrainArm) -> None:
        """Trains the cells of an arm, except those that another process takes first."""
        seeds = [s for s in self._record['seeds'] if not self._row((arm, s))]
        if not seeds:  # another process did the last one just before it was claimed
            self._release(arm)
            return
        folders = [str(plan.folder(self._workdir, (arm, s))) for s in seeds]
        compiled = _compiled()
        began = [(time.monotonic(), compiled())] * len(seeds)
        resumed = [_started(f) for f in folders]
        first = not self._together  # until one cell is done: its time includes compiling
        current = seeds[0]

        def begin(i: int) -> bool:
            """Claims seed i; False if it is done or another process works on it."""
            nonlocal current
            cell = arm, seeds[i]
            if not self._claims.take(cell):
                return False
            if self._row(cell):
                self._claims.release(cell)
                return False
            self._make_room(cell)
            current, resumed[i] = seeds[i], _started(folders[i])
            if not first:  # the first cell's clock started before compiling
                began[i] = time.monotonic(), compiled()
            self._say(f'{arm} seed {current}: {"continues" if resumed[i] else "starts"}')
            return True

        def done(i: int, error: str | None) -> None:
            nonlocal first
            seconds, compiling = time.monotonic() - began[i][0], compiled() - began[i][1]
            if self._together:
                seconds, compiling = seconds / len(seeds), compiling / len(seeds)
                self._make_room((arm, seeds[i]))
            self._finish(
                (arm, seeds[i]),
                folders[i],
                error,
                {
                    'seconds': seconds,
                    'compile_seconds': compiling,
                    'first': first,
                    'flops': self._flops[arm],
                    'trained_flops': None if error or resumed[i] else self._flops[arm],
                },
            )
            first = False

        try:
            if self._together:
                self._say(f'{arm}, {len(seeds)} seeds together: starts')
            team.train(arm, seeds)
            train_arm(
                [self._loaded.config(arm, s) for s in seeds],
                folders,
                self._loaded.study.seed_mode,
                self._loaded.study.mechanism,
                done,
                lambda i: peers.share(begin(i)),
            )
        except UserError as e:
            kind = NotWritten if isinstance(e, NotWritten) else UserError  # they end differently
            raise kind(f'cell {arm} seed {current}: {e}') from e
        except BrokenPipeError:  # nobody reads the output any more
            raise
        except Exception as e:
            log = Path(folders[seeds.index(current)]) / 'error.txt'
            log.parent.mkdir(parents=True, exist_ok=True)
            log.write_text(traceback.format_exc())
            message = (
                f'cell {arm} seed {current}: {type(e).__name__}: {e}; the traceback is in '
                f"'{log}'. Finished cells are kept; run again to continue."
            )
            if peers.joined():  # another process may have died, whose error is the one to report
                e.add_note(message)
                raise
            raise UserError(message) from e
        finally:
            self._release(arm)

    def _release(self, arm: str) -> None:
        """Gives up this process's claims of an arm."""
        for seed in self._record['seeds']:
            self._claims.release((arm, seed))

    def _say_waiting(self, running: list[Cell]) -> None:
        (arm, seed), *others = running
        self._say(
            f'waits for {arm} seed {seed}'
            + (f' and {len(others)} more cells' if others else '')
            + f' ({self._claims.owner((arm, seed)) or "another process"} works on it); it '
            'takes over what is given up'
        )

    def say_end(self) -> None:
        states = self._states().values()
        self._say(f'{sum(map(plan.ended, states))} of {len(states)} cells are done')

    def _row(self, cell: Cell) -> dict[str, Any] | None:
        return lent.usable(self._workdir, self._record, *cell)

    def _make_room(self, cell: Cell) -> None:
        """Sets aside the row of a cell if it cannot be used."""
        if not self._row(cell) and (kept := rows.set_aside(self._workdir, *cell)):
            self._say(f'the row of {cell[0]} seed {cell[1]} cannot be used and is kept as {kept}')

    def _finish(self, cell: Cell, folder: str, error: str | None, timing: dict[str, Any]) -> None:
        """Writes the row of a cell that ended, and prints how far the study is."""
        arm, seed = cell
        if not self._claims.holds(cell):
            raise UserError(
                'its claim was lost while this process stood still, and another '
                'process works on it; run again to help with the rest.'
            )
        if not self._row(cell):
            row = row_of_run.collect(folder, self._record['name'], arm, seed, self._digest, error)
            rows.write(
                self._workdir,
                row,
                timing
                | self._device
                | {'images_per_second': None if error else stopwatch.images_per_second(folder)},
            )
            self.count += 1
        if not self._keep:
            _drop_checkpoints(folder)
        self._claims.release(cell)
        states = self._states()
        todo = Plan.from_states(self._flops, states)
        left = todo.seconds(stopwatch.timings(self._workdir), self._device, arm)
        eta = f', about {plan.clock(sum(left.values()))} left' if left else ''
        ended = sum(map(plan.ended, states.values()))
        self._say(
            f'{arm} seed {seed}: {"diverged" if error else "done"} in '
            f'{plan.clock(timing["seconds"])}. {ended} of {len(states)} cells, '
            f'{todo.share_done():.0%} of the FLOPs{eta}'
        )

    def _say(self, message: str) -> None:
        print(f'study {self._record["name"]}: {message}', file=self._stream, flush=True)


def _compiled() -> Callable[[], float]:
    """A function that returns the seconds this process has spent compiling since now."""
    from moe_vision.common.timing import compiling  # imports jax

    spent = compiling()
    return lambda: spent.seconds


def _started(folder: str) -> bool:
    """Whether an earlier process left checkpoints of the run to continue from."""
    return os.path.isdir(os.path.join(folder, 'checkpoints'))


def _drop_checkpoints(folder: str) -> None:
    shutil.rmtree(os.path.join(folder, 'checkpoints'), ignore_errors=True)
