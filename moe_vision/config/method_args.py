"""The arguments of routers, experts, backbones and optimizers, as dataclasses without jax.

Each dataclass checks its own values. `rules` and `routing_rules` check what depends on other keys.
`registry` says which method takes which arguments.
"""

import dataclasses
from typing import Literal

from moe_vision.common.errors import UserError, at_most, below_one, positive, unread

# More would exhaust memory or time before anything is noticed; a damaged config may say any number.
_BLOCKS = 1_000  # a network is traced block by block
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
class RandomArgs:
    gate: Literal['even', 'softmax'] = 'even'  # 1/k each, or learned: softmax before top-k
    gate_scale: float = 1.0
    normalize_inputs: bool = True  # of each token, to mean 0 and variance 1; V-MoE does not

    def __post_init__(self) -> None:
        positive(self, 'gate_scale')
        unread(self, 'normalize_inputs', self.gate == 'softmax', "gate is 'even'")


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
        at_most(self, _FACTOR, 'passes')
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
class BudgetArgs:
    target: float = 0.5  # share of the passes that large modules may take

    def __post_init__(self) -> None:
        below_one(self, 'target')


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
class MlpArgs:
    activation: Literal['gelu', 'relu'] = 'gelu'


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

    def __post_init__(self) -> None:
        positive(self, 'kernel', 'layer_scale')
        at_most(self, _FACTOR, 'kernel')


@dataclasses.dataclass(frozen=True)
class ConvNetArgs:
    widths: tuple[int, ...] = (32, 64, 128)  # channels of each stage; stride 2 between stages
    depth: int = 2  # residual blocks per stage that keep the shape
    norm: Literal['batch', 'group'] = 'batch'  # of blocks that are not routed
    drop_path: float = 0.0  # stochastic depth: the last block's probability to skip its branch

    def __post_init__(self) -> None:
        positive(self, 'widths', 'depth')
        at_most(self, _BLOCKS, 'depth')
        at_most(self, _SIZE, 'widths')
        below_one(self, 'drop_path')
        if self.norm == 'group' and any(w % 8 for w in self.widths):
            raise UserError(f"widths is {self.widths}; norm 'group' needs multiples of 8.")

    @property
    def block_widths(self) -> tuple[int, ...]:  # channels of the blocks that `placement` counts
        return tuple(w for w in self.widths for _ in range(self.depth))

    @property
    def stages(self) -> tuple[int, ...]:  # the stage of each of these blocks
        return tuple(n for n in range(len(self.widths)) for _ in range(self.depth))

    def block_shape(self, number: int) -> tuple[int, int]:  # width and hidden width of a block
        return (width := self.block_widths[number]), self.hidden(width)

    @property
    def blocks(self) -> int:  # how many `model.moe.placement` counts
        return len(self.block_widths)

    def hidden(self, width: int) -> int:  # hidden width of a block with this many channels
        return width


@dataclasses.dataclass(frozen=True)
class DepthwiseNetArgs(ConvNetArgs):
    expansion: int = 4  # hidden width of a block divided by its width

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, 'expansion')
        at_most(self, _FACTOR, 'expansion')

    def hidden(self, width: int) -> int:
        return width * self.expansion


@dataclasses.dataclass(frozen=True)
class ConvNextNetArgs:
    """ConvNeXt-T by default."""

    widths: tuple[int, ...] = (96, 192, 384, 768)  # channels of each stage
    depths: tuple[int, ...] = (3, 3, 9, 3)  # residual blocks of each stage
    drop_path: float = 0.0  # stochastic depth: the last block's probability to skip its branch

    def __post_init__(self) -> None:
        positive(self, 'widths', 'depths')
        at_most(self, _BLOCKS, 'depths')
        at_most(self, _SIZE, 'widths')
        below_one(self, 'drop_path')
        if len(self.widths) != len(self.depths):
            raise UserError(
                f'widths is {self.widths} and depths is {self.depths}; give one of '
                'each for every stage.'
            )

    @property
    def block_widths(self) -> tuple[int, ...]:  # channels of the blocks that `placement` counts
        return tuple(self.widths[stage] for stage in self.stages)

    @property
    def stages(self) -> tuple[int, ...]:  # the stage of each of these blocks
        return tuple(stage for stage, n in enumerate(self.depths) for _ in range(n))

    def block_shape(self, number: int) -> tuple[int, int]:  # width and hidden width of a block
        return (width := self.block_widths[number]), self.hidden(width)

    @property
    def blocks(self) -> int:  # how many `model.moe.placement` counts
        return len(self.block_widths)

    def hidden(self, width: int) -> int:  # hidden width of a block with this many channels
        return 4 * width


@dataclasses.dataclass(frozen=True)
class ResNetArgs(ConvNextNetArgs):
    """ResNet-50 by default."""

    widths: tuple[int, ...] = (256, 512, 1024, 2048)
    depths: tuple[int, ...] = (3, 4, 6, 3)  # a stage's first block projects; it has no number
    norm: Literal['batch', 'group'] = 'batch'  # of blocks that are not routed

    def __post_init__(self) -> None:
        super().__post_init__()
        multiple = 32 if self.norm == 'group' else 4
        if any(w % multiple for w in self.widths):
            raise UserError(
                f"widths is {self.widths}; norm '{self.norm}' needs multiples of {multiple}."
            )

    @property
    def stages(self) -> tuple[int, ...]:
        return tuple(stage for stage, n in enumerate(self.depths) for _ in range(n - 1))

    def hidden(self, width: int) -> int:
        return width // 4


@dataclasses.dataclass(frozen=True)
class VitArgs:
    width: int = 192
    depth: int = 12
    heads: int = 3
    patch_size: int = 4
    hidden: int = 0  # hidden width of the MLP blocks; 0 is four times the width
    pool: Literal['mean', 'token'] = 'mean'
    drop_path: float = 0.0  # stochastic depth: the last block's probability to skip its branch

    def __post_init__(self) -> None:
        positive(self, 'width', 'depth', 'heads', 'patch_size')
        at_most(self, _BLOCKS, 'depth')
        at_most(self, _SIZE, 'width', 'hidden')
        below_one(self, 'drop_path')
        if self.width % self.heads:
            raise UserError(f'width is {self.width}, not divisible by heads {self.heads}.')
        if self.hidden < 0:
            raise UserError(f'hidden is {self.hidden}; it must not be negative.')

    @property
    def blocks(self) -> int:  # how many `model.moe.placement` counts
        return self.depth

    @property
    def stages(self) -> tuple[int, ...]:  # the stage of each of these blocks
        return (0,) * self.depth

    def block_shape(self, number: int) -> tuple[int, int]:  # width and hidden width of a block
        del number
        return self.width, self.hidden or 4 * self.width

    def tokens(self, height: int, width: int) -> int:
        """Tokens of one image. Raises UserError where patches do not cover it."""
        p = self.patch_size
        if height % p or width % p:
            raise UserError(f'patch_size is {p}, which does not divide images of {height}x{width}.')
        return (height // p) * (width // p) + (self.pool == 'token')


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
