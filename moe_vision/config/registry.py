"""The names that a config may use: one literal table per kind of method.

An entry is `Entry('module:Class', Args)`. The class is imported when it is used. `Args`, a frozen
dataclass of `method_args` or a file like it, is read without jax, so that a wrong argument is
reported at once.

To add a method, write its file and add its line here. A name like `package.module:Class` of your
own works without a line; its arguments are `Args` in the class.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from moe_vision.common.errors import UserError, unknown
from moe_vision.config.backbone_args import (
    ConvNetArgs,
    ConvNextNetArgs,
    DepthwiseNetArgs,
    ResNetArgs,
    VitArgs,
)
from moe_vision.config.loss_args import BudgetArgs, ErcArgs, TsallisArgs, UnitOverlapArgs
from moe_vision.config.method_args import (
    AdamwArgs,
    BiasBalancedArgs,
    ConvArgs,
    ConvNextArgs,
    DynamoeArgs,
    DynmoleArgs,
    FreezeExpertsArgs,
    FreezeRouterArgs,
    FrequencyArgs,
    LayerDecayArgs,
    LowRankArgs,
    MlpArgs,
    NoArgs,
    NullExpertsArgs,
    RandomArgs,
    RemoeArgs,
    RexmoeArgs,
    RmoeArgs,
    SgdArgs,
    SoftArgs,
    SpectralArgs,
    SupervisedArgs,
    TopKArgs,
)
from moe_vision.config.own_code import check_kind, load
from moe_vision.config.placement import HEADS
from moe_vision.config.router_args import (
    AheadArgs,
    AttentionArgs,
    BaseArgs,
    CosineArgs,
    DSelectKArgs,
    DuoArgs,
    ExpertChoiceArgs,
    HashArgs,
    SimilarityArgs,
    SinkhornArgs,
    SsrArgs,
    UncertainArgs,
)


@dataclasses.dataclass(frozen=True)
class Entry:
    path: str  # 'module:Class'
    args: type = NoArgs
    needs: tuple[str, ...] = ()  # what a method reads: 'attention' (router), 'map' (expert), ...
    ignores: tuple[str, ...] = ()  # keys of model.moe that this router or expert does not read
    supplies: tuple[str, ...] = ()  # what a backbone gives to routers, a router or expert to losses
    unit: str = ''  # what a backbone routes in its blocks: 'image' or 'patch'
    expert: str = ''  # the expert that copies a backbone's blocks, a name in EXPERTS
    remat: bool = False  # whether a backbone reads model.remat
    of_layer: bool = False  # whether a loss is one of a layer, (view, key); else of groups
    one_image: bool = False  # whether the groups of this router must be the patches of one image


# 'kernel': a linear router whose `kernel` losses may teach. That of frozen_random must not learn.
ROUTERS = {
    'top_k': Entry('moe_vision.routing.routers.top_k:TopK', TopKArgs, supplies=('kernel',)),
    'frozen_random': Entry('moe_vision.routing.routers.top_k:FrozenRandom', TopKArgs),
    'shuffled': Entry('moe_vision.routing.routers.top_k:Shuffled', TopKArgs, supplies=('kernel',)),
    'supervised': Entry(
        'moe_vision.routing.routers.top_k:Supervised',
        SupervisedArgs,
        needs=('labels',),
        supplies=('kernel', 'superclass'),
    ),
    'random': Entry('moe_vision.routing.routers.random:Random', RandomArgs),
    'oracle': Entry('moe_vision.routing.routers.random:Oracle', RandomArgs, needs=('domain',)),
    'bias_balanced': Entry(
        'moe_vision.routing.routers.bias_balanced:BiasBalanced',
        BiasBalancedArgs,
        supplies=('kernel',),
    ),
    'null_experts': Entry(
        'moe_vision.routing.routers.null_experts:NullExperts', NullExpertsArgs, supplies=('kernel',)
    ),
    'remoe': Entry(
        'moe_vision.routing.routers.remoe:Remoe', RemoeArgs, supplies=('kernel', 'coefficient')
    ),
    'dynmole': Entry(
        'moe_vision.routing.routers.dynmole:Dynmole', DynmoleArgs, supplies=('kernel',)
    ),
    'dynamoe': Entry(
        'moe_vision.routing.routers.dynamoe:Dynamoe', DynamoeArgs, supplies=('kernel',)
    ),
    'cosine': Entry('moe_vision.routing.routers.cosine:Cosine', CosineArgs),
    'hash': Entry('moe_vision.routing.routers.hash:Hash', HashArgs, needs=('image',)),
    'sinkhorn': Entry(
        'moe_vision.routing.routers.sinkhorn:Sinkhorn', SinkhornArgs, supplies=('kernel',)
    ),
    'base': Entry('moe_vision.routing.routers.base:Base', BaseArgs, supplies=('kernel',)),
    'ssr': Entry('moe_vision.routing.routers.ssr:Ssr', SsrArgs, supplies=('kernel',)),
    'similarity_aware': Entry(
        'moe_vision.routing.routers.token_graph:SimilarityAware', SimilarityArgs
    ),
    'attention_aware': Entry(
        'moe_vision.routing.routers.token_graph:AttentionAware',
        AttentionArgs,
        needs=('attention',),
    ),
    'dselect_k': Entry(
        'moe_vision.routing.routers.dselect_k:DSelectK', DSelectKArgs, supplies=('selectors',)
    ),
    'expert_choice': Entry(
        'moe_vision.routing.routers.expert_choice:ExpertChoice',
        ExpertChoiceArgs,
        supplies=('kernel',),
        ignores=('eval_capacity_factor', 'priority'),
    ),
    'pmoe': Entry(
        'moe_vision.routing.routers.pmoe:PatchMoe',
        ExpertChoiceArgs,
        supplies=('kernel',),
        ignores=('eval_capacity_factor', 'priority'),
        one_image=True,
    ),
    'rexmoe': Entry('moe_vision.routing.routers.rexmoe:Rexmoe', RexmoeArgs),
    'rmoe': Entry('moe_vision.routing.routers.rmoe:Rmoe', RmoeArgs),
    'frequency': Entry(
        'moe_vision.routing.routers.frequency:Frequency', FrequencyArgs, needs=('map',)
    ),
    'image_frequency': Entry(
        'moe_vision.routing.routers.frequency:ImageFrequency', FrequencyArgs, needs=('image',)
    ),
    'uncertain': Entry(
        'moe_vision.routing.routers.uncertain:Uncertain', UncertainArgs, supplies=('kernel',)
    ),
    'duo': Entry('moe_vision.routing.routers.duo:Duo', DuoArgs, supplies=('kernel', 'large')),
    'ahead': Entry('moe_vision.routing.routers.ahead:Ahead', AheadArgs, needs=('image',)),
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
    'complementary': Entry('moe_vision.routing.losses:complementary', needs=('choices',)),
    'z': Entry('moe_vision.routing.losses:z'),
    'supervised': Entry('moe_vision.routing.losses:supervised', needs=('superclass',)),
    'selector_entropy': Entry('moe_vision.routing.losses:selector_entropy', needs=('selectors',)),
    'tsallis': Entry('moe_vision.routing.losses:tsallis', TsallisArgs),
    'remoe': Entry('moe_vision.routing.losses:remoe', needs=('coefficient',)),
    'prior_approximate': Entry(
        'moe_vision.routing.block_losses:prior_approximate', needs=('choices', 'bank')
    ),
    'unit_overlap': Entry(
        'moe_vision.routing.block_losses:unit_overlap',
        UnitOverlapArgs,
        needs=('choices', 'bank', 'units'),
    ),
    'erc': Entry(
        'moe_vision.routing.layer_losses:erc',
        ErcArgs,
        needs=('kernel', 'first_matrix'),
        of_layer=True,
    ),
    'orthogonality': Entry(
        'moe_vision.routing.layer_losses:orthogonality', needs=('kernel',), of_layer=True
    ),
    'simbal': Entry('moe_vision.routing.layer_losses:simbal', needs=('kernel',), of_layer=True),
    'budget': Entry('moe_vision.routing.losses:budget', BudgetArgs, needs=('large',)),
}

_UNITS = ('first_matrix', 'units')  # of experts that can be cut between hidden units
EXPERTS = {
    'mlp': Entry('moe_vision.layers.experts:Mlp', MlpArgs, needs=('vector',), supplies=_UNITS),
    'conv': Entry(
        'moe_vision.layers.experts:Conv', ConvArgs, needs=('map',), supplies=('first_matrix',)
    ),
    'depthwise_conv': Entry(
        'moe_vision.layers.experts:DepthwiseConv', ConvArgs, needs=('map',), supplies=_UNITS
    ),
    'bottleneck': Entry(
        'moe_vision.layers.experts:Bottleneck', ConvArgs, needs=('map',), supplies=('first_matrix',)
    ),
    'convnext': Entry(
        'moe_vision.layers.experts:ConvNext', ConvNextArgs, needs=('map',), supplies=_UNITS
    ),
    'low_rank_mlp': Entry(
        'moe_vision.layers.low_rank:LowRankMlp',
        LowRankArgs,
        needs=('vector',),
        supplies=('first_matrix',),
    ),
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

TRANSFORMS = {
    'freeze_router': Entry('moe_vision.transforms.freeze_router:FreezeRouter', FreezeRouterArgs),
    'freeze_experts': Entry(
        'moe_vision.transforms.freeze_experts:FreezeExperts', FreezeExpertsArgs
    ),
    'layer_decay': Entry('moe_vision.transforms.layer_decay:LayerDecay', LayerDecayArgs),
}

TRACKERS = {
    'wandb': Entry('moe_vision.run_folder.trackers:Wandb'),
    'mlflow': Entry('moe_vision.run_folder.trackers:Mlflow'),
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
    check_kind(kind, name, cls)
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
        getattr(cls, 'one_image', base.one_image),
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


def keeps_capacity(router: str) -> bool:
    """Whether evaluation has the slots of training, because a router's routes follow from them.

    Such a router fills slots and drops no choice: it reads the capacity factor of training alone.
    """
    ignores = entry('router', ROUTERS, router).ignores
    return 'eval_capacity_factor' in ignores and 'capacity_factor' not in ignores


def default_expert(backbone: Entry, placement: str) -> str:
    """The expert where a config names none: the one that copies what it replaces."""
    return 'mlp' if placement in HEADS else backbone.expert


_own: dict[str, Entry] = {}  # entries of the user's own classes that `entry` has made


def known(table: Mapping[str, Entry], name: Any) -> Entry | None:
    """The entry of a name that is in the table or was used before in this process.

    Imports nothing: for names that are read as data.
    """
    return table.get(name) or _own.get(name) if isinstance(name, str) else None
