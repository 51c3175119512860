"""The rules of the experts at routed places: what they work on, their widths, their kinds."""

import dataclasses
import itertools
from typing import Any

from moe_vision.common.errors import UserError
from moe_vision.config import registry
from moe_vision.config.group_rules import fits
from moe_vision.config.kinds import SKIP, skips, true_kinds
from moe_vision.config.placement import HEADS, routed_blocks
from moe_vision.config.places import key_at, moe_at, routed_layers
from moe_vision.config.schema import Config, Moe

_WIDENED = ('same_active_flops', 'same_executed_flops', 'same_params')  # twins that need a width
_NORMED = ('conv', 'bottleneck')  # experts that have a norm of their hidden width

Widths = list[tuple[str, int]]  # the key that sets a hidden width, or what it is, and the width


def check(config: Config) -> None:
    """Every rule of the experts that needs no data set. The placement must not be 'none'.

    Raises:
      UserError: the first rule that is broken, in one line.
    """
    model, moe = config.model, config.model.moe
    if moe.kinds:
        _counts(config)
    for layer in range(routed_layers(model)):
        here = dataclasses.replace(model, moe=moe_at(model, layer))
        _at_layer(dataclasses.replace(config, model=here), layer)
    reference = moe.kinds[0].expert if moe.kinds else moe.expert
    if config.model.twin in _WIDENED and _has_no_width(reference):
        raise UserError(
            f"model.twin is '{config.model.twin}', which widens a block, but expert '{reference}' "
            "has no hidden width; use 'same_width' or 'ensemble'."
        )


def _at_layer(config: Config, layer: int) -> None:
    """The rules of one routed layer, whose `moe_at` the config has."""
    moe = config.model.moe
    key, key_shared = (key_at(config.model, layer, name) for name in ('hidden', 'shared_hidden'))
    common = [(key, moe.hidden)] if moe.hidden else []
    shared = [(key_shared, moe.shared_hidden)] if moe.shared_hidden else []
    if moe.kinds:
        _read(config, key)
    if shared or not moe.kinds:
        widths = shared if moe.kinds else (common or _copied(config, layer)) + shared
        _expert(config, moe.expert, moe.expert_args, 'model.moe.expert_args', widths)
        _widthless(moe.expert, shared if moe.kinds else common + shared)
    for n, kind in enumerate(moe.kinds):
        at = f'model.moe.kinds[{n}]'
        own = [(f'{at}.hidden', kind.hidden)] if kind.hidden else []
        # a width that is divided is rounded up to one that fits
        widths = [] if kind.divide > 1 else own or common or _copied(config, layer)
        if kind.expert != SKIP:
            _expert(config, kind.expert, kind.args, f'{at}.args', widths)
            divided = [(f'{at}.divide', kind.divide)] if kind.divide > 1 else []
            _widthless(kind.expert, own + divided)


def _counts(config: Config) -> None:
    """How many experts of each kind there are."""
    model, moe = config.model, config.model.moe
    if moe.kinds[0].expert == SKIP:
        raise UserError(
            f"model.moe.kinds begins with '{SKIP}'; the first kind is the block that twins have, "
            'so put another one there.'
        )
    counts = [k.count for k in true_kinds(moe.kinds)]
    for layer in range(routed_layers(model)):
        given = moe_at(model, layer).num_experts
        if given != sum(counts):
            where = '' if given == moe.num_experts else f' at routed layer {layer}'
            raise UserError(
                f'model.moe.kinds has {" + ".join(map(str, counts))} true experts, but '
                f'model.moe.num_experts is {given}{where}; set it to {sum(counts)}.'
            )
    for count in counts:
        if count % config.mesh.expert:
            raise UserError(
                f'model.moe.kinds has {count} experts of a kind, which mesh.expert '
                f'{config.mesh.expert} does not divide; {fits(count, config.mesh.expert)}.'
            )
    why = _needs_true_experts(moe) if skips(moe.kinds) else ''
    if why:
        raise UserError(
            f"model.moe.kinds has '{SKIP}', but router '{moe.router}' {why}; leave that kind out."
        )
    if 'freeze_experts' in config.train.transforms:
        raise UserError(
            'train.transforms.freeze_experts names experts by their number in one bank, but '
            'model.moe.kinds has a bank for each kind; leave one of the two out.'
        )


def _needs_true_experts(moe: Moe) -> str:
    """Why the router cannot choose among null experts of `model.moe.kinds`; '' if it can."""
    if 'k' in registry.entry('router', registry.ROUTERS, moe.router).ignores:
        return 'mixes the outputs of all experts'
    if registry.keeps_capacity(moe.router):
        return 'lets experts choose tokens'
    if isinstance(moe.router_args, registry.RexmoeArgs):
        return 'deals experts out to layers'
    if isinstance(moe.router_args, registry.DSelectKArgs):
        return 'numbers experts by binary digits'
    return 'has null experts of its own' if hasattr(moe.router_args, 'null_experts') else ''


def _read(config: Config, key_hidden: str) -> None:
    """Refuses what `model.moe` says of experts where each kind says it for itself."""
    model, moe = config.model, config.model.moe
    kinds = true_kinds(moe.kinds)
    backbone = registry.entry('backbone', registry.BACKBONES, model.name)
    shared = moe.shared_hidden or any(at.shared_hidden for at in moe.layers.values())
    named = shared or any(k.expert == moe.expert for k in kinds)
    changed = {
        'model.moe.expert': not named
        and moe.expert != registry.default_expert(backbone, moe.placement),
        'model.moe.expert_args': not named and not _are_defaults(moe.expert_args),
        key_hidden: moe.hidden and all(k.hidden or _has_no_width(k.expert) for k in kinds),
    }
    for key in changed:
        if changed[key]:
            raise UserError(
                f'{key} is set but is not read: each of model.moe.kinds has its own; '
                'leave it at its default.'
            )


def _are_defaults(args: Any) -> bool:
    """Whether the arguments of an expert, all of which have a default, are theirs."""
    required = any(f.default is f.default_factory for f in dataclasses.fields(args))
    return not required and args == type(args)()


def _expert(config: Config, name: str, args: Any, where: str, widths: Widths) -> None:
    """What an expert works on, and whether its norm divides the widths that it sees."""
    model, moe = config.model, config.model.moe
    expert = registry.entry('expert', registry.EXPERTS, name)
    unit = registry.entry('backbone', registry.BACKBONES, model.name).unit
    routed = 'vector' if moe.placement in HEADS or unit == 'patch' else 'map'
    if expert.needs and routed not in expert.needs:
        usable = [n for n, e in registry.EXPERTS.items() if routed in e.needs]
        raise UserError(
            f"expert '{name}' works on a {expert.needs[0]} but what is routed "
            f"here is a {routed} (model.name '{model.name}', model.moe.placement "
            f"'{moe.placement}'); use {' or '.join(usable)}."
        )
    groups = getattr(args, 'norm_groups', 1)
    outside = [('model.args.widths', width) for width in _block_widths(config)]
    for key, width in itertools.chain(outside, widths if name in _NORMED else ()):
        if width % groups:
            raise UserError(
                f'{where}.norm_groups is {groups}, which does not divide {key} {width}; '
                f'{fits(width, groups)}.'
            )


def _widthless(name: str, widths: Widths) -> None:
    for key, value in widths:
        if _has_no_width(name):
            raise UserError(
                f"{key} is {value} but is not read: expert '{name}' has no hidden width; leave it "
                'at its default.'
            )


def _has_no_width(name: str) -> bool:
    return 'hidden' in registry.entry('expert', registry.EXPERTS, name).ignores


def _block_widths(config: Config) -> list[int]:
    """Channels of what is routed in a network whose blocks differ; [] of another one."""
    args, widths = config.model.args, getattr(config.model.args, 'block_widths', ())
    routed = routed_blocks(config.model.moe.placement, getattr(args, 'blocks', None))
    return [widths[n] // config.model.moe.splits for n in routed if widths]


def _copied(config: Config, layer: int) -> Widths:
    """The hidden width of the block that the experts of a layer copy; [] if no rule needs it."""
    splits, hidden = config.model.moe.splits, 'the hidden width of a block,'
    widths = _block_widths(config)[layer // splits :][:1]
    return [(hidden, config.model.args.hidden(w * splits) // splits) for w in widths]
