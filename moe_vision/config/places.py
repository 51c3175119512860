"""What stands at each routed place of a network: `moe_at` decides it, and all others ask."""

import dataclasses
import math

from moe_vision.common.errors import UserError, nearest
from moe_vision.common.place import Place
from moe_vision.config import registry
from moe_vision.config.expert_schedule import experts_of_layers
from moe_vision.config.kinds import kind_of_id, skips
from moe_vision.config.placement import HEADS, routed_blocks
from moe_vision.config.schema import DROPPING, Model, Moe


def routed_layers(model: Model) -> int:
    """How many routed layers a network has, or its twin has replaced.

    Each place has `model.moe.splits` of them, one after the other.

    Raises:
      UserError: as `routed_blocks`.
    """
    if model.moe.placement in HEADS:
        return model.moe.splits
    blocks = routed_blocks(model.moe.placement, getattr(model.args, 'blocks', None))
    return model.moe.splits * len(blocks)


def pools(model: Model) -> tuple[tuple[int, ...], ...]:
    """The routed layers that share a bank of experts, as `model.moe.bank` says.

    'own' is ((0,), (1,), ...), '2' is ((0, 1), (2, 3), ...), and 'stage' joins the layers of a
    stage of the backbone.

    Raises:
      UserError: not one of these forms, a number that does not divide the layers, or a backbone
        without stages.
    """
    bank, layers = model.moe.bank, range(routed_layers(model))
    if bank == 'own':
        return tuple((n,) for n in layers)
    if bank == 'stage':
        stages = getattr(model.args, 'stages', None)
        if model.moe.placement in HEADS or stages is None:
            raise UserError(
                "model.moe.bank is 'stage', but what is routed here has no stages; use 'own' or a "
                'number of neighbouring layers.'
            )
        blocks = routed_blocks(model.moe.placement, model.args.blocks)
        found: dict[int, list[int]] = {}
        for layer, block in enumerate(blocks):
            found.setdefault(stages[block], []).append(layer)
        return tuple(map(tuple, found.values()))
    if not bank.isdecimal() or int(bank) < 1:
        raise UserError(
            f"model.moe.bank is '{bank}'.{nearest(bank, ('own', 'stage'))} Allowed: own, stage, or "
            'a number of neighbouring layers that share their experts.'
        )
    size = int(bank)
    if len(layers) % size:
        raise UserError(
            f'model.moe.bank is {size}, which does not divide the {len(layers)} routed layers.'
        )
    return tuple(tuple(layers[n : n + size]) for n in range(0, len(layers), size))


def moe_at(model: Model, layer: int) -> Moe:
    """`model.moe` as it holds for one routed layer.

    `model.moe.schedule` says how many experts it has, and `model.moe.layers` what it has besides.

    Args:
      layer: number of the routed layer, from 0.

    Raises:
      UserError: `model.moe.layers` names a layer that the network does not have, or as
        `experts_of_layers`.
    """
    moe = model.moe
    if moe.schedule != 'uniform':
        counts = experts_of_layers(moe, routed_layers(model))
        moe = dataclasses.replace(moe, num_experts=counts[layer])
    for name, at in moe.layers.items():
        if _number(name, routed_layers(model)) == layer:
            set_here = {f: v for f, v in dataclasses.asdict(at).items() if v is not None}
            moe = dataclasses.replace(moe, **set_here)
    return moe


def key_at(model: Model, layer: int, name: str) -> str:
    """The key of the config that decides what `moe_at` has under this name, for messages."""
    for number, at in model.moe.layers.items():
        if _number(number, routed_layers(model)) == layer and getattr(at, name) is not None:
            return f'model.moe.layers.{number}.{name}'
    return f'model.moe.{name}'


def place_at(model: Model, layer: int, tokens_per_image: int = 1) -> Place:
    """The place of a routed layer.

    Args:
      tokens_per_image: patches of an image where patches are routed.

    Raises:
      UserError: as `moe_at`.
    """
    moe = moe_at(model, layer)
    pool = next((p for p in pools(model) if layer in p), (layer,))
    return Place(
        num_experts=moe.num_experts,
        k=moe.k,
        group_size=moe.group_size,
        layer=layer,
        layers=routed_layers(model),
        tokens_per_image=tokens_per_image,
        pool_layer=pool.index(layer),
        pool_layers=len(pool),
        kinds=kind_of_id(moe.kinds),
        skips=skips(moe.kinds),
    )


def _number(name: str, layers: int) -> int:
    """The routed layer that a key of `model.moe.layers` names; '-1' is the last one."""
    try:
        number = int(name)
    except ValueError:
        number = layers
    if not -layers <= number < layers:
        raise UserError(
            f"model.moe.layers names layer '{name}'; the network has {layers} routed layers, "
            f"'0' to '{layers - 1}', or '-1' for the last."
        )
    return number % layers


def forms_groups(model: Model) -> bool:
    """Whether images, or patches, of this network compete in groups: it or its twin is routed."""
    return model.moe.placement != 'none' and model.twin in ('none', *DROPPING)


def has_capacity(model: Model) -> bool:
    """Whether the capacity of evaluation decides what this network computes."""
    ignored = registry.entry('router', registry.ROUTERS, model.moe.router).ignores
    return forms_groups(model) and 'eval_capacity_factor' not in ignored


def can_drop(model: Model) -> bool:
    """Whether a choice can find no slot in evaluation, so that unbounded capacity may change what
    this network computes."""
    return has_capacity(model) and any(
        math.isfinite(moe_at(model, n).eval_capacity_factor) for n in range(routed_layers(model))
    )


def with_eval_capacity(model: Model, factor: float) -> Model:
    """The model with this capacity factor in evaluation, in every routed layer."""
    layers = {
        name: dataclasses.replace(at, eval_capacity_factor=None)
        for name, at in model.moe.layers.items()
    }
    moe = dataclasses.replace(model.moe, eval_capacity_factor=factor, layers=layers)
    return dataclasses.replace(model, moe=moe)


def of_one_image(model: Model, tokens: int) -> Model:
    """The model to which every image is a routing group of its own, with room for all its choices.

    A router whose routes follow from capacity keeps that of training, and its groups stay parts of
    an image.

    Args:
      tokens: patches of an image if the backbone routes patches, else 1.
    """
    size = 1 if model.moe.placement in HEADS else tokens
    if registry.keeps_capacity(model.moe.router):
        size = min(size, model.moe.group_size)
    model = with_eval_capacity(model, math.inf)
    return dataclasses.replace(model, moe=dataclasses.replace(model.moe, group_size=size))


def compares_images(model: Model, tokens: int) -> bool:
    """Whether experts choose among the images of a group, so that nothing can be told of an image
    by itself.

    Args:
      tokens: as in `of_one_image`.
    """
    routed = model.moe.placement != 'none' and model.twin == 'none'
    size = 1 if model.moe.placement in HEADS else tokens
    return routed and registry.keeps_capacity(model.moe.router) and size == 1


def reads_labels(moe: Moe) -> bool:
    """Whether a router, or a loss that counts, reads the labels of what it is trained on."""
    read = [registry.entry('router', registry.ROUTERS, moe.router)]
    read += [
        registry.entry('loss', registry.LOSSES, n) for n, weight in moe.losses.items() if weight
    ]
    return any('labels' in entry.needs for entry in read)
