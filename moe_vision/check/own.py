"""Checks the methods of the user's own that a config names, before anything is trained or written.

The layers check what routers, losses and experts return whenever they are traced. Here the whole
network is traced without running, so that this happens in time, and what only training would
notice is checked beside it. The methods of the tables are not checked: the tests do that.
"""

from typing import Any

from moe_vision.check import inputs, routers, shapes, values
from moe_vision.config import registry
from moe_vision.config.kinds import SKIP, skips
from moe_vision.config.places import moe_at, routed_layers
from moe_vision.config.schema import Model
from moe_vision.layers.moe import make_expert

_passed: list[tuple[Any, ...]] = []  # what this process has found right


def check(model: Model, image_shape: tuple[int, ...], num_classes: int) -> None:
    """Traces the network if it has methods of the user's own, and only then.

    Raises:
      UserError: the first thing that a method returns and must not, or the error that it raised,
        in one line that names the method.
    """
    mine, moe = own(model), model.moe
    asked = (model, image_shape, num_classes)
    if not mine or asked in _passed:
        return
    with shapes.named(mine):
        images = 1 if moe.placement == 'none' else moe.group_size  # these fill whole groups
        shapes.network(model, image_shape, num_classes, images)
        if moe.placement != 'none':
            _experts(model, mine)
        if moe.placement != 'none' and model.twin == 'none':
            _routing(model, mine)
    _passed.append(asked)


def _routing(model: Model, mine: shapes.Own) -> None:
    moe = model.moe
    experts = ('mlp', None) if moe.kinds else (moe.expert, moe.expert_args)
    if 'model.moe.router' in mine:
        for layer in range(routed_layers(model)):
            at = moe_at(model, layer)
            ids = at.num_experts + skips(at.kinds)
            routers.router(moe.router, moe.router_args, ids, at.k, *experts)
    entry = registry.entry('router', registry.ROUTERS, moe.router)
    if 'k' in entry.ignores or not set(entry.needs) <= inputs.SUPPLIED:
        return
    router = (moe.router, moe.router_args) if 'model.moe.router' in mine else ('', None)
    for name in moe.losses:
        if f'model.moe.losses.{name}' in mine:
            values.loss(name, moe.loss_args.get(name), *router, *experts)


def _experts(model: Model, mine: shapes.Own) -> None:
    moe = model.moe
    named = {'model.moe.expert': (moe.expert, moe.expert_args)}
    named |= {f'model.moe.kinds[{n}].expert': (k.expert, k.args) for n, k in enumerate(moe.kinds)}
    for key, (name, args) in named.items():
        if key in mine:
            step = make_expert(name, args, 1, 1).multiple
            values.expert(name, args, -(-16 // step) * step, -(-32 // step) * step)


def own(model: Model) -> shapes.Own:
    """The methods of the user's own that this model names."""
    moe = model.moe
    named = {'model.name': (model.name, registry.BACKBONES)}
    if moe.placement != 'none':
        named |= {
            'model.moe.router': (moe.router, registry.ROUTERS),
            'model.moe.expert': (moe.expert, registry.EXPERTS),
        }
        named |= {
            f'model.moe.kinds[{n}].expert': (kind.expert, registry.EXPERTS)
            for n, kind in enumerate(moe.kinds)
            if kind.expert != SKIP
        }
        named |= {f'model.moe.losses.{n}': (n, registry.LOSSES) for n, w in moe.losses.items() if w}
    return {key: name for key, (name, table) in named.items() if name not in table}
