"""Epochs and steps of a config to step numbers."""

import dataclasses

from moe_vision.config.schema import Config


@dataclasses.dataclass(frozen=True)
class Durations:
    """Everything in optimizer steps."""

    total: int
    warmup: int
    per_epoch: float
    evaluations: frozenset[int]
    checkpoints: frozenset[int]
    logs: int  # a metrics row every so many, and wherever an evaluation or checkpoint falls

    def row_ends(self, step: int) -> bool:
        """True where a row of training metrics closes after this step."""
        return (step % self.logs == 0 or step == self.total
                or step in self.evaluations or step in self.checkpoints)


def durations(config: Config, train_images: int) -> Durations:
    """Steps of a run over so many training images; a `*_steps` that is not 0 wins."""
    train = config.train
    per_epoch = train_images / train.batch_size
    steps = lambda n, epochs: n or max(round(epochs * per_epoch), 1 if epochs else 0)  # noqa: E731
    total = max(steps(train.steps, train.epochs), 1)

    def every(n: int, epochs: float) -> frozenset[int]:
        if n:
            marks = set(range(n, total + 1, n))
        else:
            count = int(total / (epochs * per_epoch)) if epochs else 0
            marks = {max(round(i * epochs * per_epoch), 1) for i in range(1, count + 1)}
        return frozenset(m for m in marks | {total} if m <= total)

    return Durations(
        total=total, warmup=steps(train.warmup_steps, train.warmup_epochs), per_epoch=per_epoch,
        evaluations=every(config.eval.every_steps, config.eval.every_epochs),
        checkpoints=every(config.checkpoint.every_steps, config.checkpoint.every_epochs),
        logs=config.log.every_steps)
