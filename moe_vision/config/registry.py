"""The names that a config may use: one literal table per kind of method.

An entry is `Entry('module:Class', Args)`. The class is imported when it is used. `Args`, a frozen
dataclass of `method_args`, is read without jax, so that a wrong argument is reported at once.

To add a method, write its file and add its line here. A name like `package.module:Class` of your
own works without a line; its arguments are `Args` in the class.
"""

import dataclasses
import importlib
import sys
import traceback
import typing
from collections.abc import Mapping
from typing import Any

from input_pipeline.registry import is_path
from moe_vision.common.errors import UserError, nearest, unknown
from moe_vision.config.method_args import (
    AdamwArgs,
    BiasBalancedArgs,
    BudgetArgs,
    ConvArgs,
    ConvNetArgs,
    ConvNextArgs,
    ConvNextNetArgs,
    DepthwiseNetArgs,
    DuoArgs,
    MlpArgs,
    NoArgs,
    NullExpertsArgs,
    RandomArgs,
    ResNetArgs,
    SgdArgs,
    SoftArgs,
    SpectralArgs,
    SupervisedArgs,
    TopKArgs,
    UncertainArgs,
    VitArgs,
)
from moe_vision.config.placement import HEADS


@dataclasses.dataclass(frozen=True)
class Entry:
    path: str  # 'module:Class'
    args: type = NoArgs
    needs: tuple[str, ...] = ()  # what a method reads: 'attention' (router), 'map' (expert), ...
    ignores: tuple[str, ...] = ()  # keys of model.moe that this router or expert does not read
    supplies: tuple[str, ...] = ()  # what a backbone gives to routers, or a router to losses
    unit: str = ''  # what a backbone routes in its blocks: 'image' or 'patch'
    expert: str = ''  # the expert that copies a backbone's blocks, a name in EXPERTS
    remat: bool = False  # whether a backbone reads model.remat
    of_layer: bool = False  # whether a loss is one of a layer, (view, key); else of groups


ROUTERS = {
    'top_k': Entry('moe_vision.routing.routers.top_k:TopK', TopKArgs),
    'frozen_random': Entry('moe_vision.routing.routers.top_k:FrozenRandom', TopKArgs),
    'shuffled': Entry('moe_vision.routing.routers.top_k:Shuffled', TopKArgs),
    'supervised': Entry(
        'moe_vision.routing.routers.top_k:Supervised',
        SupervisedArgs,
        needs=('labels',),
        supplies=('superclass',),
    ),
    'random': Entry('moe_vision.routing.routers.random:Random', RandomArgs),
    'oracle': Entry('moe_vision.routing.routers.random:Oracle', RandomArgs, needs=('domain',)),
    'bias_balanced': Entry(
        'moe_vision.routing.routers.bias_balanced:BiasBalanced', BiasBalancedArgs
    ),
    'null_experts': Entry('moe_vision.routing.routers.null_experts:NullExperts', NullExpertsArgs),
    'uncertain': Entry('moe_vision.routing.routers.uncertain:Uncertain', UncertainArgs),
    'duo': Entry('moe_vision.routing.routers.duo:Duo', DuoArgs, supplies=('large',)),
    'soft': Entry(
        'moe_vision.routing.routers.soft:Soft',
        SoftArgs,
        ignores=('k', 'capacity_factor', 'eval_capacity_factor', 'capacity_multiple', 'priority'),
    ),
}

LOSSES = {
    'importance': Entry('moe_vision.routing.losses:importance'),
    'load': Entry('moe_vision.routing.losses:load', needs=('noise',)),
    'load_v_moe': Entry('moe_vision.routing.losses:load_v_moe', needs=('noise',)),
    'switch': Entry('moe_vision.routing.losses:switch', needs=('choices',)),
    'switch_top_1': Entry('moe_vision.routing.losses:switch_top_1', needs=('choices',)),
    'z': Entry('moe_vision.routing.losses:z'),
    'supervised': Entry('moe_vision.routing.losses:supervised', needs=('superclass',)),
    'budget': Entry('moe_vision.routing.losses:budget', BudgetArgs, needs=('large',)),
}

EXPERTS = {
    'mlp': Entry('moe_vision.layers.experts:Mlp', MlpArgs, needs=('vector',)),
    'conv': Entry('moe_vision.layers.experts:Conv', ConvArgs, needs=('map',)),
    'depthwise_conv': Entry('moe_vision.layers.experts:DepthwiseConv', ConvArgs, needs=('map',)),
    'bottleneck': Entry('moe_vision.layers.experts:Bottleneck', ConvArgs, needs=('map',)),
    'convnext': Entry('moe_vision.layers.experts:ConvNext', ConvNextArgs, needs=('map',)),
    'film': Entry('moe_vision.layers.film:Film', needs=('vector',), ignores=('hidden',)),
    'spectral': Entry(
        'moe_vision.layers.spectral:Spectral', SpectralArgs, needs=('map',), ignores=('hidden',)
    ),
}

BACKBONES = {
    'conv': Entry(
        'moe_vision.models.conv:ConvNet',
        ConvNetArgs,
        unit='image',
        expert='conv',
        supplies=('map', 'image'),
        remat=True,
    ),
    'depthwise': Entry(
        'moe_vision.models.conv:DepthwiseNet',
        DepthwiseNetArgs,
        unit='image',
        supplies=('map', 'image'),
        expert='depthwise_conv',
        remat=True,
    ),
    'resnet': Entry(
        'moe_vision.models.resnet:ResNet',
        ResNetArgs,
        unit='image',
        expert='bottleneck',
        supplies=('map', 'image'),
        remat=True,
    ),
    'convnext': Entry(
        'moe_vision.models.convnext:ConvNext',
        ConvNextNetArgs,
        unit='image',
        supplies=('map', 'image'),
        expert='convnext',
        remat=True,
    ),
    'vit': Entry(
        'moe_vision.models.vit:Vit',
        VitArgs,
        unit='patch',
        expert='mlp',
        supplies=('attention', 'image'),
        remat=True,
    ),
}

OPTIMIZERS = {
    'adamw': Entry('moe_vision.training.optimizer:adamw', AdamwArgs),
    'sgd': Entry('moe_vision.training.optimizer:sgd', SgdArgs),
}


_BASES = {  # what the user's own class must be, by kind; imported for such classes alone
    'router': 'moe_vision.routing.types:Router',
    'expert': 'moe_vision.layers.experts:Expert',
    'backbone': 'flax.linen:Module',
}


def entry(kind: str, table: Mapping[str, Entry], name: str) -> Entry:
    """The table's entry for a name, or a new entry for the user's own `package.module:Class`.

    What the own class does not state (`Args`, `needs`, ...) is that of the table's class from which
    it derives, if it derives from one.

    Raises UserError: no such name, no such module or class, or the class is not of this kind.
    """
    if name in table:
        return table[name]
    if not isinstance(name, str) or ':' not in name:
        raise unknown(kind, name, table)
    cls = load(name)
    _check_kind(kind, name, cls)
    by_path = {e.path: e for e in table.values()}
    above = (f'{c.__module__}:{c.__qualname__}' for c in getattr(cls, '__mro__', ()))
    base = next((by_path[path] for path in above if path in by_path), Entry(name))
    found = Entry(
        name,
        getattr(cls, 'Args', base.args),
        tuple(getattr(cls, 'needs', base.needs)) or base.needs,
        tuple(getattr(cls, 'ignores', base.ignores)),
        tuple(getattr(cls, 'supplies', base.supplies)),
        getattr(cls, 'unit', base.unit),
        getattr(cls, 'expert', base.expert),
        getattr(cls, 'remat', base.remat),
        getattr(cls, 'of_layer', base.of_layer),
    )
    if found.unit not in ('', 'image', 'patch'):
        raise UserError(
            f"{kind} '{name}': unit is {found.unit!r}; allowed are 'image' and 'patch'."
        )
    if found.unit == 'patch' and not hasattr(found.args, 'tokens'):
        raise UserError(
            f"{kind} '{name}' routes patches, but its Args have no tokens(height, width), which "
            'says how many an image of this size has.'
        )
    _own[name] = found
    return found


def kind_of(name: str) -> str:
    """The kind of the user's own method `package.module:Class`, by what it derives from.

    Raises UserError: there is no such module or class, or it is of no kind.
    """
    found = load(name)
    for kind, base in _BASES.items():
        if isinstance(found, type) and issubclass(found, load(base)):
            return kind
    if isinstance(found, type) or not callable(found):
        bases = ', '.join(b.replace(':', '.') for b in _BASES.values())
        raise UserError(
            f"'{name}' is {repr(found)[:80]}; a method is a function (a loss) or a subclass of one "
            f'of {bases}.'
        )
    return 'loss'


def _check_kind(kind: str, name: str, found: Any) -> None:
    """Raises UserError unless what `name` names can be this kind of method."""
    if kind in _BASES:
        base = load(_BASES[kind])
        if not (isinstance(found, type) and issubclass(found, base)):
            told = (
                f'a class of its own, {found.__name__}' if isinstance(found, type) else repr(found)
            )
            raise UserError(
                f"{kind} '{name}' is {told[:80]}; it must be a subclass of "
                f'{base.__module__}.{base.__name__}.'
            )
    elif not callable(found):
        raise UserError(f"{kind} '{name}' is {repr(found)[:80]}; it must be a function.")
    args = getattr(found, 'Args', NoArgs)
    if not (isinstance(args, type) and dataclasses.is_dataclass(args)):
        raise UserError(
            f"{kind} '{name}': Args is no dataclass; write @dataclasses.dataclass(frozen=True) "
            'above it.'
        )
    try:
        typing.get_type_hints(args)
    except (NameError, TypeError, AttributeError) as e:
        raise UserError(f"{kind} '{name}': an annotation of Args is wrong: {e}.") from e


def default_expert(backbone: Entry, placement: str) -> str:
    """The expert where a config names none: the one that copies what it replaces."""
    return 'mlp' if placement in HEADS else backbone.expert


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
        if not f'{module}.'.startswith(f'{e.name}.'):
            raise UserError(f"'{path}' needs the module '{e.name}', which there is not.") from e
        raise UserError(
            f"'{path}': there is no module '{e.name}'. Put the folder that holds "
            f"'{module.partition('.')[0]}' on PYTHONPATH: PYTHONPATH=FOLDER python ..."
        ) from e
    except UserError:
        raise
    except Exception as e:  # whatever a user's module does
        raise UserError(f"'{path}' cannot be imported: {told(e, module)}") from e
    if not hasattr(found, name):
        raise UserError(f"'{path}': module '{module}' has no '{name}'.{nearest(name, dir(found))}")
    return getattr(found, name)


def told(error: BaseException, module: str) -> str:
    """What went wrong in a user's module, and where: `ValueError: no (my/routers.py, line 3).`"""
    file = getattr(sys.modules.get(module), '__file__', None) or getattr(error, 'filename', None)
    frames = traceback.extract_tb(error.__traceback__)
    at = [f for f in frames if f.filename == file] or [
        f for f in frames if 'importlib' not in f.filename
    ]
    where = ''
    if isinstance(error, SyntaxError):
        where = f' ({error.filename}, line {error.lineno})'
    elif at:
        where = f' ({at[-1].filename}, line {at[-1].lineno})'
    message = str(getattr(error, 'msg', error)).partition('\n')[0][:300].rstrip('.')
    return f'{type(error).__name__}: {message}{where}.'
