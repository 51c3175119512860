"""Checks the methods of the user's own that a config names, before anything is trained or written.

The layers check what routers, losses and experts return whenever they are traced. Here the whole
network is traced without running, so that this happens in time, and what only training would
notice is checked beside it. The methods of the tables are not checked: the tests do that.
"""

from typing import Any

from moe_vision.check import inputs, routers, shapes, values
from moe_vision.config import registry
from moe_vision.config.kinds import SKIP
from moe_vision.config.places import moe_at, routed_layers
from moe_vision.config.schema import Model

_passed: list[tuple[Any, ...]] = []  # what this process has found right


def check(model: Model, image_shape: tuple[int, ...], num_classes: int) -> None:
    """Traces the network and runs its methods on small inputs, if it has any of the user's own.

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
        experts = shapes.network(model, image_shape, num_classes, images)
        for key, name in mine.items():
            if key.endswith('expert'):
                _expert(name, experts)
        if moe.placement != 'none' and model.twin == 'none':
            _routing(model, mine)
    _passed.append(asked)


def _expert(name: str, experts: shapes.Experts) -> None:
    """Judges an expert where the network has it."""
    judged: set[Any] = set()
    for made, token, dtype in experts:
        sizes = (made.width, made.hidden, token, dtype)
        if type(made) is registry.load(name) and sizes not in judged:
            judged.add(sizes)
            values.one_expert(name, made, token[:-1], {'float32', str(dtype)})


def _routing(model: Model, mine: shapes.Own) -> None:
    moe, layers = model.moe, routed_layers(model)
    at: list[inputs.Given] = []
    for layer in range(layers):
        m = moe_at(model, layer)
        given = inputs.Given(m.num_experts, m.k, layers, m.kinds, m.expert, m.expert_args)
        at += [] if given in at else [given]
    if 'model.moe.router' in mine:
        for given in at:
            routers.router(moe.router, moe.router_args, given)
    entry = registry.entry('router', registry.ROUTERS, moe.router)
    if 'k' in entry.ignores or not set(entry.needs) <= inputs.SUPPLIED:
        return
    for name in moe.losses:
        if f'model.moe.losses.{name}' in mine:
            values.loss(name, moe.loss_args.get(name), moe.router, moe.router_args, at[0])


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
