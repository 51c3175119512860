"""The arguments of losses, as dataclasses without jax, like those of `method_args`."""

import dataclasses

from moe_vision.common.errors import UserError, below_one, positive


@dataclasses.dataclass(frozen=True)
class TsallisArgs:
    q: float = 1.1  # of the entropy; 1 is Shannon's, in nats

    def __post_init__(self) -> None:
        positive(self, 'q')


@dataclasses.dataclass(frozen=True)
class ErcArgs:
    alpha: float = 1.0  # how much an expert may answer another column, as a share of its own
    detach_router: bool = False  # teach the experts alone

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise UserError(f'alpha is {self.alpha}; allowed: 0 <= alpha <= 1.')


@dataclasses.dataclass(frozen=True)
class BudgetArgs:
    target: float = 0.5  # share of the passes that large modules may take

    def __post_init__(self) -> None:
        below_one(self, 'target')


@dataclasses.dataclass(frozen=True)
class UnitOverlapArgs:
    shares: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5)  # of the hidden units, most active first
    scale: float = 10.0  # of scores about their mean, before the softmax
    hard: float = 0.75  # weight of the best expert alone; the rest is that of all scores
    smoothing: float = 0.5  # of the label that names the best expert

    def __post_init__(self) -> None:
        positive(self, 'shares', 'scale')
        if max(self.shares, default=2) > 1:
            raise UserError(f'shares is {self.shares}; give some, each above 0 and at most 1.')
        for name in ('hard', 'smoothing'):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f'{name} is {getattr(self, name)}; it is a share, from 0 to 1.')
