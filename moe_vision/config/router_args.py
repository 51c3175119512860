"""The arguments of further routers, as dataclasses without jax, like those of `method_args`."""

import dataclasses
from typing import Literal

from moe_vision.common.errors import UserError, at_most, below_one, positive, unread
from moe_vision.config.method_args import TopKArgs

_SIZE = 100_000  # experts, channels
_ITERATIONS = 10_000  # each is a pass over all scores


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


@dataclasses.dataclass(frozen=True)
class SinkhornArgs:
    xi: float = 1.0  # weight of the plan's entropy: the smaller, the more even the loads
    iterations: int = 20  # the smaller xi, the more it takes
    gate: Literal['softmax', 'sigmoid'] = 'softmax'
    renormalize: bool = False  # divide the gates of a token by their sum
    gate_scale: float = 1.0
    normalize_inputs: bool = True  # of each token, to mean 0 and variance 1; V-MoE does not

    def __post_init__(self) -> None:
        positive(self, 'xi', 'iterations', 'gate_scale')
        at_most(self, _ITERATIONS, 'iterations')


@dataclasses.dataclass(frozen=True)
class BaseArgs:
    xi: float = 0.1  # of the plan that is rounded to an assignment
    iterations: int = 50  # the smaller xi, the more it takes
    gate_scale: float = 1.0
    normalize_inputs: bool = True  # of each token, to mean 0 and variance 1; V-MoE does not

    def __post_init__(self) -> None:
        positive(self, 'xi', 'iterations', 'gate_scale')
        at_most(self, _ITERATIONS, 'iterations')


@dataclasses.dataclass(frozen=True)
class SsrArgs(TopKArgs):
    probability: float = 0.01  # that a step is balanced
    cost: Literal['softmax', 'linear'] = 'softmax'  # scores of the plan: probabilities or logits
    xi: float = 0.05  # weight of the plan's entropy; 0.5 to 1 suits cost 'linear'
    iterations: int = 20  # the smaller xi, the more it takes

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, 'xi', 'iterations')
        at_most(self, _ITERATIONS, 'iterations')
        if not 0 <= self.probability <= 1:
            raise UserError(f'probability is {self.probability}; allowed: 0 to 1.')


@dataclasses.dataclass(frozen=True)
class _GraphArgs:
    mix: float = 1.0  # share of the neighbours' probabilities in a token's own
    renormalize: bool = False  # divide the gates of a token by their sum
    gate_scale: float = 1.0
    normalize_inputs: bool = True  # of each token, to mean 0 and variance 1; V-MoE does not

    def __post_init__(self) -> None:
        positive(self, 'gate_scale')
        if not 0 <= self.mix <= 1:
            raise UserError(f'mix is {self.mix}; allowed: 0 to 1.')


@dataclasses.dataclass(frozen=True)
class SimilarityArgs(_GraphArgs):
    # group: among images that are routed whole, in training alone
    graph: Literal['image', 'group'] = 'image'
    temperature: float = 0.1  # of the similarity; x has unit length if inputs are normalised

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, 'temperature')


@dataclasses.dataclass(frozen=True)
class AttentionArgs(_GraphArgs):
    stop_gradient: bool = False  # keep the router's gradient from the attention


@dataclasses.dataclass(frozen=True)
class CosineArgs:
    project: int = 256  # width in which cosines are taken
    renormalize: bool = False  # divide the gates of a token by their sum
    gate_scale: float = 1.0

    def __post_init__(self) -> None:
        positive(self, 'project', 'gate_scale')
        at_most(self, _SIZE, 'project')


@dataclasses.dataclass(frozen=True)
class HashArgs:
    gate_scale: float = 1.0

    def __post_init__(self) -> None:
        positive(self, 'gate_scale')


@dataclasses.dataclass(frozen=True)
class DSelectKArgs:
    gamma: float = 1.0  # width of the smooth step: selectors have chosen beyond half of it
    max_choices: int = 0  # K, the most experts of a token; 0 for all
    gate_scale: float = 1.0
    normalize_inputs: bool = True  # of each token, to mean 0 and variance 1; V-MoE does not

    def __post_init__(self) -> None:
        positive(self, 'gamma', 'gate_scale')
        _bounded(self, 'max_choices')

    def check_experts(self, num_experts: int) -> None:
        """Raises UserError for a number of experts that binary digits do not count."""
        if num_experts & (num_experts - 1):
            below = 1 << (num_experts.bit_length() - 1)
            raise UserError(
                f"num_experts is {num_experts}, but router 'dselect_k' needs a power of 2, such as "
                f'{below} or {2 * below}.'
            )


@dataclasses.dataclass(frozen=True)
class UncertainArgs:
    passes: int = 5  # M, in training
    dropout: float = 0.1  # of the features, in each pass
    calibrate: bool = True  # divide the mean of the passes by their spread
    epsilon: float = 0.01  # added to that spread
    renormalize: bool = True  # divide the gates of a token by their sum
    gate_scale: float = 1.0
    normalize_inputs: bool = True  # of each token, to mean 0 and variance 1; V-MoE does not

    def __post_init__(self) -> None:
        positive(self, 'passes', 'epsilon', 'gate_scale')
        at_most(self, _ITERATIONS, 'passes')
        below_one(self, 'dropout')
        unread(self, 'epsilon', self.calibrate, 'calibrate is False')


@dataclasses.dataclass(frozen=True)
class DuoArgs:
    random_until: float = 0.5  # fraction of training in which each token takes any one module
    temperature_start: float = 1.0  # from there on
    temperature_end: float = 0.1  # at the end of training; it falls linearly
    normalize_inputs: bool = True  # of each token, to mean 0 and variance 1; V-MoE does not

    def __post_init__(self) -> None:
        below_one(self, 'random_until')
        positive(self, 'temperature_start', 'temperature_end')


@dataclasses.dataclass(frozen=True)
class AheadArgs:
    size: int = 8  # pixels along each side to which the router reduces an image
    width: int = 32  # channels of its two convolutions
    renormalize: bool = False  # divide the gates of a token by their sum
    gate_scale: float = 1.0

    def __post_init__(self) -> None:
        positive(self, 'size', 'width', 'gate_scale')
        at_most(self, 1_000, 'size')
        at_most(self, _SIZE, 'width')
