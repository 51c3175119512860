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
