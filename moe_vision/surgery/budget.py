"""One budget for the experts of all layers (M-SMoE, Li et al. 2024, arXiv 2310.01334).

In each layer the experts that are used most are kept for certain: the authors keep one, here it is
as many as a token chooses there. All others stand in one list by the share of the choices that they
get in their layer, and are kept from its top until the next one would not fit.

FLOPs are no budget: they follow the number of choices, not that of experts.

Axes: E experts.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from moe_vision.common.errors import UserError
from moe_vision.config.places import moe_at, routed_layers
from moe_vision.config.schema import AtLayer, Config
from moe_vision.surgery.kind import block_of
from moe_vision.surgery.state import Arrays


def configured(
    args: Any, params: Arrays, usage: Mapping[str, np.ndarray], config: Config
) -> Config:
    """The config with the number of experts that each layer keeps, in `model.moe.layers`.

    Args:
      args: `budget`, and `budget_of`, 'experts' or 'parameters'.
      params: of the network that is merged.
      usage: [E] of each of its routed layers, by the name of its block.

    Raises:
      UserError: the budget is too small, or the layers are not those of the config.
    """
    names = sorted(usage, key=lambda b: [int(n) for n in re.findall('[0-9]+', b)])
    model = config.model
    if len(names) != routed_layers(model) or model.moe.bank != 'own':
        raise UserError(
            f'a budget is for layers with experts of their own: there are {len(names)} such there, '
            f"and {routed_layers(model)} here, with model.moe.bank='{model.moe.bank}'; set "
            'model.moe.placement and bank as there.'
        )
    least = {b: moe_at(model, n).k for n, b in enumerate(names)}
    ordered, cost, rest = {b: usage[b] for b in names}, dict.fromkeys(names, 1), 0
    if args.budget_of == 'parameters':
        cost = {b: _params(b, len(usage[b]), params) for b in names}
        rest = sum(x.size for x in params.values())
        rest -= sum(cost[b] * len(usage[b]) for b in names)
    kept = shared(args.budget, args.budget_of, ordered, least, cost, rest)
    layers = {n: dataclasses.replace(at, num_experts=None) for n, at in model.moe.layers.items()}
    for number, block in enumerate(names):
        at = layers.get(str(number), AtLayer())
        layers[str(number)] = dataclasses.replace(at, num_experts=kept[block])
    moe = dataclasses.replace(model.moe, layers=layers, schedule='uniform', schedule_least=0)
    return dataclasses.replace(config, model=dataclasses.replace(model, moe=moe))


def shared(
    budget: int,
    unit: str,
    usage: Mapping[str, np.ndarray],
    least: Mapping[str, int],
    cost: Mapping[str, int],
    rest: int = 0,
) -> dict[str, int]:
    """How many experts each layer keeps.

    Args:
      budget, unit: what all may cost together, and in what.
      usage: [E] of each layer, from the first to the last.
      least: experts that a layer keeps for certain.
      cost: of one expert of a layer.
      rest: what the network costs without experts.

    Raises:
      UserError: those that are kept for certain cost more.
    """
    kept = {block: min(least[block], len(u)) for block, u in usage.items()}
    left = budget - rest - sum(cost[block] * n for block, n in kept.items())
    if left < 0:
        raise UserError(
            f'budget is {budget} {unit}, but the fewest are {budget - left}: every layer keeps as '
            'many experts as a token chooses there (model.moe.k).'
        )
    others = [(u, b) for b in usage for u in np.sort(usage[b])[::-1][kept[b] :]]
    for _, block in sorted(others, key=lambda other: -other[0]):
        if (left := left - cost[block]) < 0:
            break
        kept[block] += 1
    return kept


def _params(block: str, experts: int, params: Arrays) -> int:
    """Parameters of one expert of a layer: its own, and what the router has for it."""
    total = 0
    for path, x in params.items():
        name, part, _ = block_of(path)
        of_each = part == 'experts' or part == 'router' and x.shape[-1:] == (experts,)
        total += x.size // experts if name == block and of_each else 0
    return total
