"""One arm over its seeds."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from moe_vision.study.analysis.pairs import (
    Row,
    accuracy,
    bits,
    diverged,
    listed,
    number,
    result,
    selected,
)
from moe_vision.study.analysis.statistics import estimate
from moe_vision.study.analysis.types import ArmSummary


def summarise(name: str, cells: Mapping[int, Row]) -> ArmSummary:
    """The arm's numbers over the seeds it has rows for; NaN (or no parameters) without any."""
    rows = list(cells.values())
    values = [accuracy(row) for row in rows]
    over = estimate(values, 0.95)

    def first(key: str) -> float:
        return next((v for row in rows if not math.isnan(v := result(row, key))), math.nan)

    def each(key: str) -> tuple[float, ...]:
        return tuple(result(row, key) for row in rows)

    rho_active = [v for v in each('rho_active') if not math.isnan(v)]
    chosen = [selected(row) for row in rows]
    probed = [row['mechanism'] for row in rows if row.get('mechanism')]
    return ArmSummary(
        name=name, seeds=tuple(cells), values=over.values, mean=over.mean, sd=over.sd,
        validation=tuple(100 * number(row['curve'][-1].get('accuracy'))
                         if row.get('curve') and not diverged(row) else math.nan for row in rows),
        selected=tuple(math.nan if v is None else float(v) for v in chosen),
        unbounded=tuple(math.nan if diverged(row) else 100 * result(row, 'test_accuracy_unbounded')
                        for row in rows),
        diverged=tuple(seed for seed, row in cells.items() if diverged(row)),
        flops=first('flops'), flops_executed=first('flops_executed'),
        params_total=_whole(first('params_total')), params_active=_whole(first('params_active')),
        rho_place=first('rho_place'),
        rho_active=math.fsum(rho_active) / len(rho_active) if rho_active else math.nan,
        rho_executed=first('rho_executed'),
        routed=any(row.get('layers') for row in rows) or any(v > 0 for v in rho_active),
        collapsed=sum(result(row, 'collapsed') == 1 for row in rows),
        effective_experts=each('effective_experts'),
        dead_experts=tuple(v if math.isnan(v) else int(v) for v in each('dead_experts')),
        drop_rate=each('drop_rate'), orphan_rate=each('orphan_rate'),
        mechanism=mean_leaves(probed) if probed else {},
        config=next((row['config'] for row in rows if row.get('config')), {}))


def _whole(value: float) -> int:
    return 0 if math.isnan(value) else int(value)


def mean_leaves(trees: Sequence[Any]) -> Any:
    """Means of the numbers at the same places; lists element by element where equally long.

    A place is left out where a tree has none or no number, or lists of another length.
    """
    if all(isinstance(tree, dict) for tree in trees):
        common = [key for key in trees[0] if all(key in tree for tree in trees)]
        named = {key: mean_leaves([tree[key] for tree in trees]) for key in common}
        return {key: value for key, value in named.items() if value is not None}
    if all(isinstance(tree, list) for tree in trees) and len({len(tree) for tree in trees}) == 1:
        means = [mean_leaves(of) for of in zip(*trees, strict=True)]
        return [math.nan if value is None else value for value in means]
    numbers = [number(tree) for tree in trees]
    return None if any(map(math.isnan, numbers)) else math.fsum(numbers) / len(numbers)


def unused(name: str, cells: Mapping[int, Row]) -> str:
    """A line on the lists of correct test images that were left out of `image_error`, or ''."""
    seeds = [seed for seed, row in cells.items()
             if row.get('correct') and not diverged(row) and bits(row) is None]
    return (f'arm {name}: {listed(seeds)}: the list of correct test images does not give the '
            'accuracy; not used') if seeds else ''
