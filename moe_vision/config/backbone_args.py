"""The arguments of backbones, as dataclasses without jax, like those of `method_args`."""

import dataclasses
from typing import Literal

from moe_vision.common.errors import UserError, at_most, below_one, positive

_BLOCKS = 1_000  # a network is traced block by block
_SIZE = 100_000  # channels
_FACTOR = 1_000  # of a width, and pixels of a kernel
Gelu = Literal['gelu', 'gelu_erf']


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
class _StagedArgs:
    widths: tuple[int, ...]  # channels of each stage
    depths: tuple[int, ...]  # residual blocks of each stage
    drop_path: float = 0.0  # stochastic depth: the last block's probability to skip its branch
    # zeros around a map where the stride is above 1: same, or alike on both sides, as in torch
    padding: Literal['same', 'torch'] = 'same'

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
class ConvNextNetArgs(_StagedArgs):
    """ConvNeXt-T by default."""

    widths: tuple[int, ...] = (96, 192, 384, 768)
    depths: tuple[int, ...] = (3, 3, 9, 3)
    activation: Gelu = 'gelu'  # of blocks that are not routed: by tanh, or exactly, by erf
    norm_epsilon: float = 1e-6  # of norms outside routed blocks
    exact_variance: bool = False  # of these norms: mean of (x - mean)^2, not of x^2, less mean^2

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, 'norm_epsilon')

    @property
    def least_side(self) -> int:
        """The smallest image, in pixels of a side, of which the last stage sees anything."""
        return 4 * 2 ** (len(self.widths) - 1) if self.padding == 'torch' else 1


@dataclasses.dataclass(frozen=True)
class ResNetArgs(_StagedArgs):
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
    representation: int = 0  # width of a tanh layer before the classifier; 0 for none
    activation: Gelu = 'gelu'  # of blocks that are not routed: by tanh, or exactly, by erf
    norm_epsilon: float = 1e-6
    exact_variance: bool = False  # of norms: mean of (x - mean)^2, not of x^2, less mean^2

    def __post_init__(self) -> None:
        positive(self, 'width', 'depth', 'heads', 'patch_size', 'norm_epsilon')
        at_most(self, _BLOCKS, 'depth')
        at_most(self, _SIZE, 'width', 'hidden', 'representation')
        below_one(self, 'drop_path')
        if self.width % self.heads:
            raise UserError(f'width is {self.width}, not divisible by heads {self.heads}.')
        for name in ('hidden', 'representation'):
            if getattr(self, name) < 0:
                raise UserError(f'{name} is {getattr(self, name)}; it must not be negative.')

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
