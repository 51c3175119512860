"""The names that a config may use: one literal table per kind of method.

An entry is `Entry('module:Class', Args)`. The class is imported when it is used. `Args`, a frozen
dataclass of `method_args`, is read without jax, so that a wrong argument is reported at once.

To add a method, write its file and add its line here. A name like `package.module:Class` of your
own works without a line; its arguments are `Args` in the class.
"""

import dataclasses
import importlib
from collections.abc import Mapping
from typing import Any

from input_pipeline.registry import is_path
from moe_vision.common.errors import UserError, nearest, unknown
from moe_vision.config.method_args import (
    AdamwArgs,
    BiasBalancedArgs,
    ConvArgs,
    ConvNetArgs,
    ConvNextArgs,
    ConvNextNetArgs,
    DepthwiseNetArgs,
    MlpArgs,
    NoArgs,
    NullExpertsArgs,
    RandomArgs,
    ResNetArgs,
    SgdArgs,
    SoftArgs,
    SupervisedArgs,
    TopKArgs,
    VitArgs,
)


@dataclasses.dataclass(frozen=True)
class Entry:
    path: str  # 'module:Class'
    args: type = NoArgs
    needs: tuple[str, ...] = ()  # what a method reads: 'attention' (router), 'map' (expert), ...
    ignores: tuple[str, ...] = ()  # keys of model.moe that this router does not read
    supplies: tuple[str, ...] = ()  # what a backbone gives to routers, or a router to losses
    unit: str = ''  # what a backbone routes in its blocks: 'image' or 'patch'
    expert: str = ''  # the expert that copies a backbone's blocks, a name in EXPERTS
    remat: bool = False  # whether a backbone reads model.remat


ROUTERS = {
    'top_k': Entry('moe_vision.routing.routers.top_k:TopK', TopKArgs),
    'frozen_random': Entry('moe_vision.routing.routers.top_k:FrozenRandom', TopKArgs),
    'shuffled': Entry('moe_vision.routing.routers.top_k:Shuffled', TopKArgs),
    'supervised': Entry(
        'moe_vision.routing.routers.top_k:Supervised', SupervisedArgs, supplies=('superclass',)
    ),
    'random': Entry('moe_vision.routing.routers.random:Random', RandomArgs),
    'oracle': Entry('moe_vision.routing.routers.random:Oracle', RandomArgs, needs=('domain',)),
    'bias_balanced': Entry(
        'moe_vision.routing.routers.bias_balanced:BiasBalanced', BiasBalancedArgs
    ),
    'null_experts': Entry('moe_vision.routing.routers.null_experts:NullExperts', NullExpertsArgs),
    'soft': Entry(
        'moe_vision.routing.routers.soft:Soft',
        SoftArgs,
        ignores=('k', 'capacity_factor', 'eval_capacity_factor', 'capacity_multiple', 'priority'),
    ),
}

LOSSES = {
    'importance': Entry('moe_vision.routing.losses:importance'),
    'load': Entry('moe_vision.routing.losses:load', needs=('noise',)),
    'switch': Entry('moe_vision.routing.losses:switch', needs=('choices',)),
    'z': Entry('moe_vision.routing.losses:z'),
    'supervised': Entry('moe_vision.routing.losses:supervised', needs=('superclass',)),
}

EXPERTS = {
    'mlp': Entry('moe_vision.layers.experts:Mlp', MlpArgs, needs=('vector',)),
    'conv': Entry('moe_vision.layers.experts:Conv', ConvArgs, needs=('map',)),
    'depthwise_conv': Entry('moe_vision.layers.experts:DepthwiseConv', ConvArgs, needs=('map',)),
    'bottleneck': Entry('moe_vision.layers.experts:Bottleneck', ConvArgs, needs=('map',)),
    'convnext': Entry('moe_vision.layers.experts:ConvNext', ConvNextArgs, needs=('map',)),
}

BACKBONES = {
    'conv': Entry(
        'moe_vision.models.conv:ConvNet', ConvNetArgs, unit='image', expert='conv', remat=True
    ),
    'depthwise': Entry(
        'moe_vision.models.conv:DepthwiseNet',
        DepthwiseNetArgs,
        unit='image',
        expert='depthwise_conv',
        remat=True,
    ),
    'resnet': Entry(
        'moe_vision.models.resnet:ResNet', ResNetArgs, unit='image', expert='bottleneck', remat=True
    ),
    'convnext': Entry(
        'moe_vision.models.convnext:ConvNext',
        ConvNextNetArgs,
        unit='image',
        expert='convnext',
        remat=True,
    ),
    'vit': Entry('moe_vision.models.vit:Vit', VitArgs, unit='patch', expert='mlp', remat=True),
}

OPTIMIZERS = {
    'adamw': Entry('moe_vision.training.optimizer:adamw', AdamwArgs),
    'sgd': Entry('moe_vision.training.optimizer:sgd', SgdArgs),
}


def entry(kind: str, table: Mapping[str, Entry], name: str) -> Entry:
    """The table's entry for a name, or a new entry for the user's own `package.module:Class`.

    Raises UserError: no such name, no such module or class.
    """
    if name in table:
        return table[name]
    if ':' not in name:
        raise unknown(kind, name, table)
    cls = load(name)
    _own[name] = Entry(
        name,
        getattr(cls, 'Args', NoArgs),
        tuple(getattr(cls, 'needs', ())),
        tuple(getattr(cls, 'ignores', ())),
        tuple(getattr(cls, 'supplies', ())),
        getattr(cls, 'unit', ''),
        getattr(cls, 'expert', ''),
        getattr(cls, 'remat', False),
    )
    return _own[name]


_own: dict[str, Entry] = {}  # entries of the user's own classes that `entry` has made


def known(table: Mapping[str, Entry], name: Any) -> Entry | None:
    """The entry of a name that is in the table or was used before in this process.

    Imports nothing: for names that are read as data.
    """
    return table.get(name) or _own.get(name) if isinstance(name, str) else None


def load(path: str) -> Any:
    """Imports the object that 'module:Class' names.

    Raises UserError: it is not written so, or there is no such module or object.
    """
    module, _, name = path.partition(':')
    if not is_path(path):
        raise UserError(f"'{path}' must be written 'package.module:Class'.")
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as e:
        raise UserError(f"'{path}': there is no module '{e.name}'.") from e
    if not hasattr(found, name):
        raise UserError(f"'{path}': module '{module}' has no '{name}'.{nearest(name, dir(found))}")
    return getattr(found, name)
