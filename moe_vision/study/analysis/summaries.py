"""Describes an arm over its seeds: accuracy, cost, size and collapse."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from moe_vision.common.json_values import as_dict, number
from moe_vision.study.analysis import pairs
from moe_vision.study.analysis.pairs import Row, diverged, result
from moe_vision.study.analysis.statistics import Estimate, estimate


@dataclasses.dataclass(frozen=True)
class ArmSummary:
    """One arm over its seeds."""

    name: str
    seeds: tuple[int, ...]
    values: tuple[float, ...]  # final test accuracy, pp
    mean: float
    sd: float
    validation: tuple[float, ...]  # accuracy on the validation split at the end of training, pp
    selected: tuple[float, ...]  # test accuracy at the checkpoint chosen on validation, pp
    unbounded: tuple[float, ...]  # test accuracy without capacity limit, pp
    diverged: tuple[int, ...]  # seeds
    flops: float
    flops_executed: float
    params_total: int
    params_active: int
    rho_place: float
    rho_active: float
    rho_executed: float
    routed: bool
    collapsed: int  # number of seeds
    effective_experts: tuple[float, ...]  # per seed, of the worst layer
    dead_experts: tuple[float, ...]  # NaN if the run diverged, like the others
    drop_rate: tuple[float, ...]
    orphan_rate: tuple[float, ...]
    mechanism: dict[str, Any]  # means over seeds; {} if not probed
    config: dict[str, Any]  # resolved, of the first seed
    outer: Estimate  # mean accuracy with its intervals as drawn, at the levels of gaps
    inner: Estimate
    train: tuple[float, ...] = ()  # accuracy on training images, pp; NaN if it was not asked for
    # capacity factor -> test accuracy per seed, pp; those that were asked for
    at_capacity: Mapping[str, tuple[float, ...]] = dataclasses.field(default_factory=dict)


def summarise(name: str, cells: Mapping[int, Row], levels: tuple[float, float]) -> ArmSummary:
    """Summarises an arm over its seeds that have a row; without any, numbers are NaN or 0.

    Args:
      levels: of the two intervals that pictures draw (`verdicts.levels`).
    """
    rows = list(cells.values())
    values = [pairs.accuracy(row) for row in rows]
    outer = estimate(values, levels[0])

    def first(key: str) -> float:
        return next((v for row in rows if not math.isnan(v := result(row, key))), math.nan)

    def each(key: str) -> tuple[float, ...]:
        return tuple(result(row, key) for row in rows)

    rho_active = [v for v in each('rho_active') if not math.isnan(v)]
    swept = [as_dict((row.get('result') or {}).get('accuracy_at_capacity')) for row in rows]
    chosen = [pairs.selected(row) for row in rows]
    probed = [row['mechanism'] for row in rows if row.get('mechanism')]
    return ArmSummary(
        name=name,
        seeds=tuple(cells),
        values=outer.values,
        mean=outer.mean,
        sd=outer.sd,
        validation=tuple(
            100 * number(row['curve'][-1].get('accuracy'))
            if row.get('curve') and not diverged(row)
            else math.nan
            for row in rows
        ),
        selected=tuple(math.nan if v is None else float(v) for v in chosen),
        unbounded=tuple(
            math.nan if diverged(row) else 100 * result(row, 'test_accuracy_unbounded')
            for row in rows
        ),
        diverged=tuple(seed for seed, row in cells.items() if diverged(row)),
        flops=first('flops'),
        flops_executed=first('flops_executed'),
        params_total=_whole(first('params_total')),
        params_active=_whole(first('params_active')),
        rho_place=first('rho_place'),
        rho_active=math.fsum(rho_active) / len(rho_active) if rho_active else math.nan,
        rho_executed=first('rho_executed'),
        routed=any(row.get('layers') for row in rows) or any(v > 0 for v in rho_active),
        collapsed=sum((row.get('result') or {}).get('collapsed') == 1 for row in rows),
        effective_experts=each('effective_experts'),
        dead_experts=tuple(v if math.isnan(v) else int(v) for v in each('dead_experts')),
        drop_rate=each('drop_rate'),
        orphan_rate=each('orphan_rate'),
        mechanism=mean_leaves(probed) if probed else {},
        config=next((row['config'] for row in rows if row.get('config')), {}),
        outer=outer,
        inner=estimate(values, levels[1]),
        train=tuple(_pp((row.get('result') or {}).get('train_accuracy')) for row in rows),
        at_capacity={
            factor: tuple(_pp(scores.get(factor)) for scores in swept)
            for factor in dict.fromkeys(factor for scores in swept for factor in scores)
        },
    )


def _pp(share: Any) -> float:
    """A share of 1 in percent; NaN if it is none."""
    return 100 * number(share) if 0 <= number(share) <= 1 else math.nan


def _whole(value: float) -> int:
    return 0 if math.isnan(value) else int(value)


def mean_leaves(trees: Sequence[Any]) -> Any:
    """Means over trees of the numbers at each place, also within lists of equal length.

    A place is left out where a tree lacks it, holds no number there, or a list of another length.
    """
    if all(isinstance(tree, dict) for tree in trees):
        common = [key for key in trees[0] if all(key in tree for tree in trees)]
        named = {key: mean_leaves([tree[key] for tree in trees]) for key in common}
        return {key: value for key, value in named.items() if value is not None}
    if all(isinstance(tree, list) for tree in trees) and len({len(tree) for tree in trees}) == 1:
        means = [mean_leaves(leaves) for leaves in zip(*trees, strict=True)]
        return [math.nan if value is None else value for value in means]
    numbers = [number(tree) for tree in trees]
    return None if any(map(math.isnan, numbers)) else math.fsum(numbers) / len(numbers)


def unused(name: str, cells: Mapping[int, Row]) -> str:
    """A line about lists of correct images that `image_error` cannot use; '' if there are none."""
    seeds = [
        seed
        for seed, row in cells.items()
        if row.get('correct') and not diverged(row) and pairs.bits(row) is None
    ]
    return (
        (
            f'arm {name}: {pairs.listed(seeds)}: the list of correct test images contradicts the '
            'accuracy and is not used'
        )
        if seeds
        else ''
    )
