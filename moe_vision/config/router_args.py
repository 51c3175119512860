"""The arguments of routers that are no relatives of top-k, as dataclasses like in `method_args`."""

import dataclasses

from moe_vision.common.errors import UserError, at_most, positive

_SIZE = 100_000  # experts


def _bounded(args: object, key: str) -> None:
    """Raises UserError unless the most choices of a token are 0, which means all, or a number."""
    if getattr(args, key) < 0:
        raise UserError(f'{key} is {getattr(args, key)}; it must not be negative.')
    at_most(args, _SIZE, key)


@dataclasses.dataclass(frozen=True)
class ExpertChoiceArgs:
    max_choices: int = 8  # K: a token keeps the experts with the largest gates; 0 for all
    renormalize: bool = False  # divide the gates of a token by their sum
    gate_scale: float = 1.0
    normalize_inputs: bool = True  # of each token, to mean 0 and variance 1; V-MoE does not

    def __post_init__(self) -> None:
        positive(self, 'gate_scale')
        _bounded(self, 'max_choices')
