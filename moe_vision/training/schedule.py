"""Converts the epochs and steps of a config to numbers of optimizer steps."""

import dataclasses

from moe_vision.common.errors import UserError
from moe_vision.config.rules import total_steps
from moe_vision.config.schema import Config

_MARKS = 10_000_000  # steps at which something is due; a set of more takes gigabytes


@dataclasses.dataclass(frozen=True)
class Durations:
    """When things happen in a run, counted in optimizer steps.

    Attributes:
      total: steps of the run.
      warmup: steps of the learning rate's warm-up.
      per_epoch: steps of an epoch, not rounded.
      evaluations, checkpoints: the steps after which one is due.
      logs: a row of metrics ends every `logs` steps, and before each evaluation and checkpoint, but
        not within `logs` / 2 steps of these: it or its neighbour would average too few steps.
    """

    total: int
    warmup: int
    per_epoch: float
    evaluations: frozenset[int]
    checkpoints: frozenset[int]
    logs: int

    def row_ends(self, step: int) -> bool:
        """Whether a row of training metrics ends with this step."""
        if self._is_mark(step):
            return True
        near = range(step - (self.logs - 1) // 2, step + (self.logs + 1) // 2)
        return step % self.logs == 0 and not any(map(self._is_mark, near))

    def _is_mark(self, step: int) -> bool:
        return step == self.total or step in self.evaluations or step in self.checkpoints


def durations(config: Config, train_images: int) -> Durations:
    """The durations of a run on `train_images` images. A `*_steps` key that is not 0 overrides the
    `*_epochs` key beside it.

    Raises:
      UserError: something is due too often.
    """
    train = config.train
    per_epoch = train_images / train.batch_size

    def steps(n: int, epochs: float) -> int:
        return n or max(round(epochs * per_epoch), 1 if epochs else 0)

    total = total_steps(config, train_images)

    def every(n: int, epochs: float) -> frozenset[int]:
        count = total // n if n else total / (epochs * per_epoch) if epochs else 0
        if count > _MARKS:
            raise UserError(
                f'{count:,.12g} evaluations or checkpoints are due in {total:,} steps; at '
                f'most {_MARKS:,} are possible. Make them rarer.'
            )
        if n:
            marks = set(range(n, total + 1, n))
        else:
            marks = {max(round(i * epochs * per_epoch), 1) for i in range(1, int(count) + 1)}
        return frozenset(m for m in marks | {total} if m <= total)

    return Durations(
        total=total,
        warmup=steps(train.warmup_steps, train.warmup_epochs),
        per_epoch=per_epoch,
        evaluations=every(config.eval.every_steps, config.eval.every_epochs),
        checkpoints=every(config.checkpoint.every_steps, config.checkpoint.every_epochs),
        logs=config.log.every_steps,
    )
