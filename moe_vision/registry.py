"""What can be named in a config: one literal table per kind, and the arguments each name takes.

A table entry is `Entry('module:Class', Args)`. The class is imported when used; `Args`, a frozen
dataclass, is read without importing jax, so that a wrong argument is told at once.
To add a method: its file, and its line here. `package.module:Class` of your own, with `Args` in the
class, works as a name too.
"""

import dataclasses
import importlib
from collections.abc import Mapping
from typing import Any, Literal

from moe_vision.errors import UserError, below_one, nearest, positive, unknown, unread


@dataclasses.dataclass(frozen=True)
class NoArgs:
    """A method without arguments."""


@dataclasses.dataclass(frozen=True)
class Entry:
    path: str  # 'module:Class'
    args: type = NoArgs
    needs: tuple[str, ...] = ()  # 'attention' (a router), 'map' (an expert), 'noise' (a loss), ...
    ignores: tuple[str, ...] = ()  # keys of model.moe that a router does not read
    supplies: tuple[str, ...] = ()  # what a backbone offers to routers
    unit: str = ''  # what a backbone routes in its blocks: 'image' or 'patch'
    expert: str = ''  # the expert that copies a backbone's blocks, a name in EXPERTS


Temperature = Literal['constant', 'linear', 'sigmoid', 'cosine', 'entropy_floor']


@dataclasses.dataclass(frozen=True)
class TopKArgs:
    gate: Literal['softmax_top_k', 'top_k_softmax', 'sigmoid'] = 'softmax_top_k'
    renormalize: bool = False  # divide the gates of a token by their sum
    gate_scale: float = 1.0
    noise: Literal['none', 'gaussian', 'learned', 'jitter'] = 'none'
    noise_scale: float = 1.0  # times 1/E (gaussian), softplus(x W_n) (learned), 0.01 (jitter)
    second_choice: Literal['always', 'random'] = 'always'  # random: kept with p = 2 g2 / (g1+g2)
    temperature: Temperature = 'constant'
    temperature_start: float = 1.0
    temperature_end: float = 0.1  # of the schedules that move
    entropy_floor: float = 0.5  # least entropy of a token, as a share of ln E (entropy_floor)

    def __post_init__(self) -> None:
        positive(self, 'gate_scale', 'noise_scale', 'temperature_start', 'temperature_end')
        below_one(self, 'entropy_floor')
        unread(self, 'noise_scale', self.noise != 'none', "noise is 'none'")
        moving = self.temperature != 'constant'
        unread(self, 'temperature_end', moving, "temperature is 'constant'")
        unread(self, 'entropy_floor', self.temperature == 'entropy_floor',
               f"temperature is '{self.temperature}'")


@dataclasses.dataclass(frozen=True)
class BiasBalancedArgs:
    score: Literal['sigmoid', 'softmax'] = 'sigmoid'
    renormalize: bool = True
    gate_scale: float = 1.0
    bias_rate: float = 0.001  # gamma: how far a bias moves in one optimizer step

    def __post_init__(self) -> None:
        positive(self, 'gate_scale', 'bias_rate')


@dataclasses.dataclass(frozen=True)
class NullExpertsArgs:
    null_experts: int = 8  # choices that cost nothing and give nothing
    renormalize: bool = True  # over a token's true experts
    gate_scale: float = 1.0

    def __post_init__(self) -> None:
        positive(self, 'null_experts', 'gate_scale')


@dataclasses.dataclass(frozen=True)
class RandomArgs:
    gate_scale: float = 1.0  # every gate is gate_scale / k


@dataclasses.dataclass(frozen=True)
class SoftArgs:
    axis: Literal['tokens', 'batch', 'none'] = 'none'
    slots_per_expert: int = 1
    temperature: float = 1.0

    def __post_init__(self) -> None:
        positive(self, 'slots_per_expert', 'temperature')
        unread(self, 'slots_per_expert', self.axis != 'none', "axis is 'none'")


ROUTERS = {
    'top_k': Entry('moe_vision.routing.routers.top_k:TopK', TopKArgs),
    'frozen_random': Entry('moe_vision.routing.routers.top_k:FrozenRandom', TopKArgs),
    'random': Entry('moe_vision.routing.routers.random:Random', RandomArgs),
    'bias_balanced': Entry('moe_vision.routing.routers.bias_balanced:BiasBalanced',
                           BiasBalancedArgs),
    'null_experts': Entry('moe_vision.routing.routers.null_experts:NullExperts', NullExpertsArgs),
    'soft': Entry('moe_vision.routing.routers.soft:Soft', SoftArgs,
                  ignores=('k', 'capacity_factor', 'eval_capacity_factor', 'capacity_multiple',
                           'priority')),
}

LOSSES = {
    'importance': Entry('moe_vision.routing.losses:importance'),
    'load': Entry('moe_vision.routing.losses:load', needs=('noise',)),
    'switch': Entry('moe_vision.routing.losses:switch', needs=('choices',)),
    'z': Entry('moe_vision.routing.losses:z'),
}


@dataclasses.dataclass(frozen=True)
class MlpArgs:
    activation: Literal['gelu', 'relu'] = 'gelu'


@dataclasses.dataclass(frozen=True)
class ConvArgs:
    kernel: int = 3
    norm_groups: int = 8  # of the per-image group norm; must divide the widths

    def __post_init__(self) -> None:
        positive(self, 'kernel', 'norm_groups')


EXPERTS = {
    'mlp': Entry('moe_vision.layers.experts:Mlp', MlpArgs, needs=('vector',)),
    'conv': Entry('moe_vision.layers.experts:Conv', ConvArgs, needs=('map',)),
    'depthwise_conv': Entry('moe_vision.layers.experts:DepthwiseConv', ConvArgs, needs=('map',)),
}


@dataclasses.dataclass(frozen=True)
class ConvNetArgs:
    widths: tuple[int, ...] = (32, 64, 128)  # channels of each stage; between stages stride 2
    depth: int = 2  # shape-preserving residual blocks in each stage
    norm: Literal['batch', 'group'] = 'batch'  # at places that are not routed

    def __post_init__(self) -> None:
        positive(self, 'widths', 'depth')
        if self.norm == 'group' and any(w % 8 for w in self.widths):
            raise UserError(f"widths is {self.widths}; norm 'group' needs multiples of 8.")

    @property
    def blocks(self) -> int:  # what `model.moe.placement` counts
        return len(self.widths) * self.depth


@dataclasses.dataclass(frozen=True)
class DepthwiseNetArgs(ConvNetArgs):
    expansion: int = 4  # hidden width of a block over its width

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, 'expansion')


@dataclasses.dataclass(frozen=True)
class VitArgs:
    width: int = 192
    depth: int = 12
    heads: int = 3
    patch_size: int = 4
    hidden: int = 0  # of the MLP blocks; 0 is four times the width
    pool: Literal['mean', 'token'] = 'mean'

    def __post_init__(self) -> None:
        positive(self, 'width', 'depth', 'heads', 'patch_size')
        if self.width % self.heads:
            raise UserError(f'width is {self.width}, not divisible by heads {self.heads}.')
        if self.hidden < 0:
            raise UserError(f'hidden is {self.hidden}; it must not be negative.')

    @property
    def blocks(self) -> int:  # what `model.moe.placement` counts
        return self.depth

    def tokens(self, height: int, width: int) -> int:
        """Tokens of one image. Raises UserError where patches do not cover it."""
        p = self.patch_size
        if height % p or width % p:
            raise UserError(f'patch_size is {p}, which does not divide images of {height}x{width}.')
        return (height // p) * (width // p) + (self.pool == 'token')


BACKBONES = {
    'conv': Entry('moe_vision.models.conv:ConvNet', ConvNetArgs, unit='image', expert='conv'),
    'depthwise': Entry('moe_vision.models.conv:DepthwiseNet', DepthwiseNetArgs, unit='image',
                       expert='depthwise_conv'),
    'vit': Entry('moe_vision.models.vit:Vit', VitArgs, unit='patch', expert='mlp'),
}


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


OPTIMIZERS = {
    'adamw': Entry('moe_vision.optimizer:adamw', AdamwArgs),
    'sgd': Entry('moe_vision.optimizer:sgd', SgdArgs),
}


def entry(kind: str, table: Mapping[str, Entry], name: str) -> Entry:
    """The table's entry, or one made for the user's own `package.module:Class`.

    Raises UserError: no such name, no such module or class.
    """
    if name in table:
        return table[name]
    if ':' not in name:
        raise unknown(kind, name, table)
    cls = load(name)
    return Entry(name, getattr(cls, 'Args', NoArgs), tuple(getattr(cls, 'needs', ())),
                 tuple(getattr(cls, 'ignores', ())), tuple(getattr(cls, 'supplies', ())),
                 getattr(cls, 'unit', ''), getattr(cls, 'expert', ''))


def load(path: str) -> Any:
    """The object that 'module:Class' names."""
    module, _, name = path.partition(':')
    if not module or not name:
        raise UserError(f"'{path}' must be written 'package.module:Class'.")
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as e:
        raise UserError(f"'{path}': there is no module '{e.name}'.") from e
    if not hasattr(found, name):
        raise UserError(f"'{path}': module '{module}' has no '{name}'.{nearest(name, dir(found))}")
    return getattr(found, name)
