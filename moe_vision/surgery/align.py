"""Puts the hidden units and the experts of one network into the order of those of another.

Neither changes what the network computes, so two networks that learned the same in another order
become comparable weight by weight (Ainsworth et al. 2023, arXiv 2209.04836). Of blocks the hidden
units are matched; of routed layers the experts, too, with their router columns and state. The
channels between blocks and the heads of attention stay as they are.

Axes: E experts, F hidden units.
"""

from collections.abc import Mapping

import numpy as np
from scipy.optimize import linear_sum_assignment

from moe_vision.common.errors import UserError
from moe_vision.config import registry
from moe_vision.config.schema import Config
from moe_vision.surgery import hidden_units
from moe_vision.surgery.kind import block_of, experts_of
from moe_vision.surgery.state import Arrays


def aligned(config: Config, ours: Arrays, theirs: Arrays, state: Arrays) -> tuple[Arrays, Arrays]:
    """Parameters and router state of a second network, in the order of the first.

    Args:
      config: of both networks.
      ours, theirs: parameters by path, of the same shapes.
      state: router state of the second network.

    Raises:
      UserError: experts or blocks are not of a type whose hidden units can be reordered, or the
        router has no column for each expert, or shares its experts with other layers.
    """
    moe = config.model.moe
    supplies = registry.entry('router', registry.ROUTERS, moe.router).supplies
    routed = experts_of(theirs)
    if routed and ('kernel' not in supplies or moe.bank != 'own'):
        own = moe.bank == 'own'
        why = f"router '{moe.router}' knows them by id" if own else 'layers share them'
        raise UserError(f'align cannot bring experts into another order: {why}.')
    expert = hidden_units.expert_of(config, 'align')
    axes = expert.hidden_axes or {}
    params, kept = dict(theirs), dict(state)
    null = getattr(moe.router_args, 'null_experts', 0)
    first = next(iter(axes))
    for prefix in sorted(path.removesuffix(first) for path in theirs if path.endswith(f'/{first}')):
        if any(f'{prefix}{name}' not in theirs for name in axes):
            continue
        block, part, _ = block_of(prefix)
        if part != 'experts':
            pair = [hidden_units.weights(expert, p, prefix) for p in (ours, theirs)]
            _reorder(params, prefix, axes, hidden_units.matched(*pair))
            continue
        units = [
            [hidden_units.weights(expert, _one(p, prefix, e), '') for e in range(routed[block])]
            for p in (ours, theirs)
        ]
        experts, orders = _matched_experts(*units)
        _move(params, block, experts, null)
        _move(kept, block, experts, null)
        for e, order in enumerate(orders):
            _reorder(params, prefix, axes, order, e)
    return params, kept


def _one(params: Arrays, prefix: str, expert: int) -> Arrays:
    """The parameters of one expert, by name."""
    return {
        path.removeprefix(prefix): x[expert]
        for path, x in params.items()
        if path.startswith(prefix)
    }


def _matched_experts(
    ours: list[np.ndarray], theirs: list[np.ndarray]
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Which expert there stands for each one here, and in which order its hidden units: [E], [F]s.

    Args:
      ours, theirs: hidden units of each expert, [F, M].
    """
    orders = [[hidden_units.matched(a, b) for b in theirs] for a in ours]
    alike = [
        [np.sum(a * b[ids]) for b, ids in zip(theirs, row, strict=True)]
        for a, row in zip(ours, orders, strict=True)
    ]
    experts = linear_sum_assignment(alike, maximize=True)[1]
    return experts, [row[e] for row, e in zip(orders, experts, strict=True)]


def _move(arrays: dict[str, np.ndarray], block: str, experts: np.ndarray, null: int) -> None:
    """Reorders what a routed layer has for each expert: its bank, and arrays of its router. Null
    experts, whose ids follow, stay."""
    ids = np.concatenate([experts, np.arange(len(experts), len(experts) + null)])
    for path, x in arrays.items():
        name, part, _ = block_of(path)
        if name != block:
            continue
        if part == 'experts':
            arrays[path] = np.take(x, experts, 0)
        elif np.ndim(x) and np.shape(x)[-1] == len(ids):
            arrays[path] = np.take(x, ids, -1)


def _reorder(
    params: dict[str, np.ndarray],
    prefix: str,
    axes: Mapping[str, int],
    order: np.ndarray,
    expert: int | None = None,
) -> None:
    """Reorders the hidden units of a block, or of one expert of a bank."""
    for name, axis in axes.items():
        x = np.array(params[f'{prefix}{name}'])
        if expert is None:
            x = np.take(x, order, axis)
        else:
            x[expert] = np.take(x[expert], order, axis)
        params[f'{prefix}{name}'] = x
