"""Prune: fewer experts, those that matter most.

In each layer the experts stay that got the largest share of the choices on validation images, or
whose loss cost the most accuracy (`mechanism.json`, which a study measures on test images: do not
score the result on those). Routers lose the columns of the
others, and experts keep their order.

If the experts that go were chosen by no token, and gates do not depend on them (`renormalize`, or a
softmax over the chosen), the network computes what the source does.

Axes: E experts.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from moe_vision.common.errors import UserError
from moe_vision.common.json_values import as_dict, as_list, number
from moe_vision.config.schema import Config
from moe_vision.surgery.kind import Kind, axis_of_experts, block_of, cut_layers, experts_of
from moe_vision.surgery.state import State


class Prune(Kind):
    def __call__(
        self, source: State, source_config: Config | None, fresh: State, config: Config
    ) -> State:
        before, after = experts_of(source.params), experts_of(fresh.params)
        more = [b for b in before if after.get(b, 0) > before[b]]
        if more:
            raise UserError(
                f"'{more[0]}' has {before[more[0]]} experts there and more here; prune makes "
                'fewer, expand more.'
            )
        kept = {
            block: _largest(self._worth(block, n, source.about), after[block])
            for block, n in before.items()
            if block in after
        }

        def fewer(path: str, x: np.ndarray, own: np.ndarray) -> np.ndarray:
            block, _, _ = block_of(path)
            axis = axis_of_experts(x, own, before[block], after[block])
            return x if axis is None else np.take(x, kept[block], axis)

        result = cut_layers('prune', source, fresh, kept, fewer)
        told = [f'{b}: kept experts {", ".join(map(str, ids))}' for b, ids in kept.items()]
        if self.args.by == 'ablation':
            told.append('experts were chosen by test images, so test accuracy is no estimate')
        return dataclasses.replace(result, told=(*result.told, *told))

    def _worth(self, block: str, experts: int, about: Mapping[str, Any]) -> list[float]:
        """What each expert of a layer is worth."""
        if self.args.by == 'load':
            return loads('prune by load', block, experts, about)
        found = as_list(as_dict(as_dict(about.get('mechanism')).get('ablation')).get(block))
        return _read(
            found,
            experts,
            'prune by ablation reads mechanism.json of the run, which does not say it of '
            f"'{block}'; a study writes it for arms that it probes. --by=load needs no probes.",
        )


def loads(what: str, block: str, experts: int, about: Mapping[str, Any]) -> list[float]:
    """The share of the choices that each expert of a layer got on validation images, [E].

    Raises:
      UserError: the run does not say it.
    """
    return _read(
        as_list(as_dict(as_dict(about.get('validation')).get(block)).get('load')),
        experts,
        f"{what} reads the load of '{block}' on validation images, which this run does not hold; "
        'write it with `python main.py --mode=eval --config.eval.split=validation --workdir=W`.',
    )


def _read(found: list[Any], experts: int, message: str) -> list[float]:
    worth = [number(x) for x in found]
    if len(worth) != experts or not np.isfinite(worth).all():
        raise UserError(message)
    return worth


def _largest(worth: list[float], count: int) -> list[int]:
    """The places of the largest values, in rising order. Of equal ones the first stay."""
    order = sorted(range(len(worth)), key=lambda i: -worth[i])
    return sorted(order[:count])
