"""The arguments of routers, experts, backbones, optimizers and transforms, without jax.

Each dataclass checks its own values. `rules` and `routing_rules` check what depends on other keys.
`registry` says which method takes which arguments.
"""

import dataclasses
import re
from typing import Literal

from moe_vision.common.errors import UserError, at_most, below_one, positive, unread

# More would exhaust memory or time before anything is noticed; a damaged config may say any number.
_SIZE = 100_000  # channels, slots, experts
_FACTOR = 1_000  # of a width, and pixels of a kernel


@dataclasses.dataclass(frozen=True)
class NoArgs:
    """A method without arguments."""


Temperature = Literal['constant', 'linear', 'sigmoid', 'cosine', 'entropy_floor']


@dataclasses.dataclass(frozen=True)
class TopKArgs:
    gate: Literal['softmax_top_k', 'top_k_softmax', 'sigmoid'] = 'softmax_top_k'
    renormalize: bool = False  # divide the gates of a token by their sum
    gate_scale: float = 1.0
    noise: Literal['none', 'gaussian', 'learned', 'jitter'] = 'none'
    # factor of the standard deviation: 1/E (gaussian), softplus(x W_n) (learned), 0.01 (jitter)
    noise_scale: float = 1.0
    # random keeps the second choice in training with probability 2 g2 / (g1 + g2); random_expert
    # always takes another expert, drawn at random
    second_choice: Literal['always', 'random', 'random_expert'] = 'always'
    temperature: Temperature = 'constant'
    temperature_start: float = 1.0
    temperature_end: float = 0.1  # where the schedules that change the temperature end
    entropy_floor: float = 0.5  # lowest entropy of a token's probabilities, as a share of ln E
    normalize_inputs: bool = True  # of each token, to mean 0 and variance 1; V-MoE does not

    def __post_init__(self) -> None:
        positive(self, 'gate_scale', 'noise_scale', 'temperature_start', 'temperature_end')
        below_one(self, 'entropy_floor')
        unread(self, 'noise_scale', self.noise != 'none', "noise is 'none'")
        moving = self.temperature != 'constant'
        unread(self, 'temperature_end', moving, "temperature is 'constant'")
        unread(
            self,
            'entropy_floor',
            self.temperature == 'entropy_floor',
            f"temperature is '{self.temperature}'",
        )


@dataclasses.dataclass(frozen=True)
class SupervisedArgs(TopKArgs):
    superclasses: tuple[int, ...] = ()  # each class's expert, class 0 first; (): class modulo E


@dataclasses.dataclass(frozen=True)
class BiasBalancedArgs:
    score: Literal['sigmoid', 'softmax'] = 'sigmoid'
    renormalize: bool = True
    gate_scale: float = 1.0
    bias_rate: float = 0.001  # gamma: by how much a bias changes in one optimizer step
    normalize_inputs: bool = True  # of each token, to mean 0 and variance 1; V-MoE does not

    def __post_init__(self) -> None:
        positive(self, 'gate_scale', 'bias_rate')


@dataclasses.dataclass(frozen=True)
class NullExpertsArgs:
    null_experts: int = 8  # choosing one of these costs nothing and adds nothing
    renormalize: bool = True  # divide the gates by their sum over a token's true experts
    gate_scale: float = 1.0
    normalize_inputs: bool = True  # of each token, to mean 0 and variance 1; V-MoE does not

    def __post_init__(self) -> None:
        positive(self, 'null_experts', 'gate_scale')
        at_most(self, _SIZE, 'null_experts')


@dataclasses.dataclass(frozen=True)
class RexmoeArgs:
    start: float = 0.1  # share of training until which a layer chooses among its own experts alone
    end: float = 0.3  # share of training from which on it chooses among all that are shared
    order: Literal['nearest', 'random'] = 'nearest'  # in which experts of other layers come
    renormalize: bool = False  # divide the gates of a token by their sum
    gate_scale: float = 1.0
    normalize_inputs: bool = True  # of each token, to mean 0 and variance 1; V-MoE does not

    def __post_init__(self) -> None:
        positive(self, 'gate_scale')
        if not 0 <= self.start <= self.end <= 1:
            raise UserError(
                f'start is {self.start} and end is {self.end}; allowed: 0 <= start <= end <= 1.'
            )


@dataclasses.dataclass(frozen=True)
class RmoeArgs:
    width: int = 256  # of the state that goes from layer to layer
    cell: Literal['gru', 'rnn'] = 'gru'
    shared: bool = True  # one cell for all routed layers; False: each has its own
    renormalize: bool = True  # divide the gates of a token by their sum
    gate_scale: float = 1.0
    normalize_inputs: bool = True  # of each token, to mean 0 and variance 1

    def __post_init__(self) -> None:
        positive(self, 'width', 'gate_scale')
        at_most(self, _SIZE, 'width')


@dataclasses.dataclass(frozen=True)
class FrequencyArgs:
    bands: int = 4  # rings of the spectrum
    hidden: int = 32  # width of the router's hidden layer
    renormalize: bool = False  # divide the gates of a token by their sum
    gate_scale: float = 1.0
    normalize_inputs: bool = True  # of the log energies, to mean 0 and variance 1 over the bands

    def __post_init__(self) -> None:
        positive(self, 'bands', 'hidden', 'gate_scale')
        at_most(self, _FACTOR, 'bands')
        at_most(self, _SIZE, 'hidden')


@dataclasses.dataclass(frozen=True)
class RandomArgs:
    gate: Literal['even', 'softmax'] = 'even'  # 1/k each, or learned: softmax before top-k
    gate_scale: float = 1.0
    normalize_inputs: bool = True  # of each token, to mean 0 and variance 1; V-MoE does not

    def __post_init__(self) -> None:
        positive(self, 'gate_scale')
        unread(self, 'normalize_inputs', self.gate == 'softmax', "gate is 'even'")


@dataclasses.dataclass(frozen=True)
class SoftArgs:
    axis: Literal['tokens', 'batch', 'none'] = 'none'
    gate: Literal['softmax', 'even'] = 'softmax'  # even: a token is the plain mean of all slots
    slots_per_expert: int = 1
    temperature: float = 1.0

    def __post_init__(self) -> None:
        positive(self, 'slots_per_expert', 'temperature')
        at_most(self, _SIZE, 'slots_per_expert')
        unread(self, 'slots_per_expert', self.axis != 'none', "axis is 'none'")
        mixes = self.gate == 'softmax' or self.axis != 'none'
        unread(self, 'temperature', mixes, "gate is 'even' and axis is 'none'")


@dataclasses.dataclass(frozen=True)
class RemoeArgs:
    coefficient: float = 1e-8  # of loss `remoe`, before the first step
    rate: float = 1.2  # by which it is multiplied or divided after each step
    max_choices: int = 0  # K, most experts of a token; 0 for all
    gate_scale: float = 1.0
    normalize_inputs: bool = True  # of each token, to mean 0 and variance 1

    def __post_init__(self) -> None:
        positive(self, 'coefficient', 'gate_scale')
        if self.rate <= 1:
            raise UserError(f'rate is {self.rate}; it must be above 1.')
        at_most(self, _SIZE, 'max_choices')
        if self.max_choices < 0:
            raise UserError(f'max_choices is {self.max_choices}; it must not be negative.')


@dataclasses.dataclass(frozen=True)
class DynmoleArgs:
    threshold: float = 0.9  # tokens with a larger share of the most entropy take all; 1: none does
    q: float = 1.1  # of the Tsallis entropy; 1 is Shannon's, in nats
    top_p: float = 0.75  # mass of the experts that other tokens take
    gate_scale: float = 1.0
    normalize_inputs: bool = True  # of each token, to mean 0 and variance 1

    def __post_init__(self) -> None:
        positive(self, 'threshold', 'q', 'top_p', 'gate_scale')
        if self.top_p > 1:
            raise UserError(f'top_p is {self.top_p}; allowed: 0 < top_p <= 1.')


@dataclasses.dataclass(frozen=True)
class DynamoeArgs:
    rule: Literal['percentile', 'threshold', 'top_p', 'quantile'] = 'percentile'
    level: float = 0.75  # a share of the scores, a probability or a mass, as the rule says
    temperature: float = 0.5
    noise_scale: float = 0.1  # standard deviation on the logits, in training
    gate_scale: float = 1.0
    normalize_inputs: bool = True  # of each token, to mean 0 and variance 1

    def __post_init__(self) -> None:
        positive(self, 'temperature', 'gate_scale')
        below_one(self, 'level')
        if self.noise_scale < 0:
            raise UserError(f'noise_scale is {self.noise_scale}; it must not be negative.')


@dataclasses.dataclass(frozen=True)
class MlpArgs:
    activation: Literal['gelu', 'gelu_erf', 'relu'] = 'gelu'  # gelu by tanh, or exactly, by erf


@dataclasses.dataclass(frozen=True)
class LowRankArgs:
    parameter_ratio: float = 0.15  # of U V, to the parameters of the matrix; it gives the rank
    columns: float = 0.25  # share of the hidden units that have values of their own besides
    activation: Literal['gelu', 'gelu_erf', 'relu'] = 'gelu'  # gelu by tanh, or exactly, by erf

    def __post_init__(self) -> None:
        positive(self, 'parameter_ratio')
        if not 0 <= self.columns <= 1:
            raise UserError(f'columns is {self.columns}; it is a share, from 0 to 1.')


@dataclasses.dataclass(frozen=True)
class ConvArgs:
    kernel: int = 3
    norm_groups: int = 8  # groups of the per-image group norm; must divide the widths

    def __post_init__(self) -> None:
        positive(self, 'kernel', 'norm_groups')
        at_most(self, _FACTOR, 'kernel')


@dataclasses.dataclass(frozen=True)
class SpectralArgs:
    modes: int = 8  # frequencies along each side for which a filter has values of its own
    cutoff: float = 0.25  # of the initial low-pass filter, cycles per pixel; half is the highest

    def __post_init__(self) -> None:
        positive(self, 'modes', 'cutoff')
        at_most(self, _FACTOR, 'modes')


@dataclasses.dataclass(frozen=True)
class ConvNextArgs:
    kernel: int = 7  # size of the depthwise convolution
    layer_scale: float = 1e-6  # initial factor of the branch; learned per channel
    activation: Literal['gelu', 'gelu_erf'] = 'gelu'  # by tanh, or exactly, by erf
    norm_epsilon: float = 1e-6

    def __post_init__(self) -> None:
        positive(self, 'kernel', 'layer_scale', 'norm_epsilon')
        at_most(self, _FACTOR, 'kernel')


@dataclasses.dataclass(frozen=True)
class AdamwArgs:
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8

    def __post_init__(self) -> None:
        below_one(self, 'b1', 'b2')
        positive(self, 'eps')


@dataclasses.dataclass(frozen=True)
class SgdArgs:
    momentum: float = 0.9
    nesterov: bool = True

    def __post_init__(self) -> None:
        below_one(self, 'momentum')


@dataclasses.dataclass(frozen=True)
class FreezeRouterArgs:
    at: Literal['fraction', 'step', 'convergence'] = 'fraction'
    fraction: float = 0.5  # of training, after which routers stand still
    # optimizer steps, after which routers stand still, or the first window of convergence begins
    step: int = 0
    window: int = 100  # optimizer steps in which routes are compared with those at its start
    change: float = 0.01  # share of tokens that may change their expert in a calm window
    least_load: float = 0.1  # what each expert must get in it, as a share of the mean load
    windows: int = 3  # calm windows in a row after which a router stands still

    def __post_init__(self) -> None:
        below_one(self, 'fraction')
        unread(self, 'fraction', self.at == 'fraction', f"at is '{self.at}'")
        unread(self, 'step', self.at != 'fraction', "at is 'fraction'")
        for name in ('window', 'change', 'least_load', 'windows'):
            unread(self, name, self.at == 'convergence', f"at is '{self.at}'")
        positive(self, 'window', 'windows')
        below_one(self, 'change', 'least_load')
        if self.step < 0:
            raise UserError(f'step is {self.step}; it must not be negative.')
        if self.window < 2:
            raise UserError('window is 1; it must be at least 2, to have a step to compare.')


@dataclasses.dataclass(frozen=True)
class LayerDecayArgs:
    decay: float = 0.75  # factor of the updates of a block, from that of the block behind it
    trunk: float = 1.0  # factor of all but the classifier

    def __post_init__(self) -> None:
        positive(self, 'decay', 'trunk')
        at_most(self, 1, 'decay', 'trunk')


@dataclasses.dataclass(frozen=True)
class FreezeExpertsArgs:
    experts: tuple[int, ...]  # numbers of those that stand still, from 0
    layers: str = '.*'  # regular expression of the paths of routed layers, such as 'block_3$'

    def __post_init__(self) -> None:
        if not self.experts or min(self.experts) < 0:
            raise UserError(f'experts is {self.experts}; give numbers from 0, such as (0, 2).')
        try:
            re.compile(self.layers)
        except re.error as e:
            raise UserError(
                f"layers is '{self.layers}', not a regular expression: {e}; '.*' is every layer."
            ) from e
