"""Defines what the analysis finds of a comparison, a trend or a family difference.

Each has one value per seed (pp) and a verdict. NaN means "not defined".
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

from moe_vision.study.analysis import contrasts, statistics
from moe_vision.study.analysis import pairs as pairing
from moe_vision.study.analysis.contrasts import Combined, Kind
from moe_vision.study.analysis.pairs import EXPLORATORY, Pairs
from moe_vision.study.analysis.statistics import Estimate
from moe_vision.study.analysis.summaries import ArmSummary
from moe_vision.study.analysis.verdicts import Judgement

_NOT_PRIMARY = f'{EXPLORATORY}not a primary comparison'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finding(Judgement):
    """Values by seed, judged. What belongs to one pair of arms has a value in `Gap` alone."""

    name: str
    primary: bool
    expected: str
    seeds: tuple[int, ...]  # those that all arms have, in order
    estimate: Estimate  # its interval has the adjusted level that the verdict rests on
    outer: Estimate  # as drawn: all primary comparisons hold at once (`verdicts.levels`)
    inner: Estimate  # as drawn: the level of one equivalence
    effect_size: float  # d_z = mean / sd
    selected: Estimate  # the same at the checkpoint chosen on validation
    without_diverged: Estimate  # the same over seeds in which no run diverged
    diverged: int  # runs that diverged
    flags: tuple[str, ...]  # why it is exploratory; device differs, version differs, ...
    correlation: float = math.nan  # of the two arms over seeds
    image_error: float = math.nan  # standard error of the mean from the finite test set, pp
    cost: float = math.nan  # FLOPs per image of k active experts, arm / baseline
    cost_executed: float = math.nan  # the same, with padded buffers
    params: float = math.nan  # parameters, arm / baseline
    rho_place: float = math.nan  # of the arm

    @property
    def confirms(self) -> bool:
        """Whether the pre-registration covers it: primary, and no flag calls it exploratory."""
        return self.primary and not any(flag.startswith(EXPLORATORY) for flag in self.flags)

    @property
    def remarks(self) -> list[str]:
        """Its flags, without the standard one of comparisons registered as exploratory."""
        return [f for f in self.flags if self.primary or not f.startswith(_NOT_PRIMARY)]

    @property
    def by_seed(self) -> dict[int, float]:
        """seed -> its value, pp."""
        return dict(zip(self.seeds, self.estimate.values, strict=True))

    @property
    def arms(self) -> tuple[str, ...]:
        """The arms that it rests on."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gap(Finding):
    """One comparison."""

    arm: str
    baseline: str
    arm_values: tuple[float, ...]  # accuracy, pp; a diverged run scores chance
    baseline_values: tuple[float, ...]

    @property
    def arms(self) -> tuple[str, ...]:
        return self.arm, self.baseline


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contrast(Finding):
    """A trend, or a difference of families."""

    kind: Kind
    parts: tuple[Gap, ...]  # its comparisons; the two of a pair stand next to each other
    x: tuple[float, ...]  # ρ of the arm of each
    column: str  # which ρ, such as rho_place
    middle: tuple[float, float]  # a point of a trend's line: ρ, and the mean gap in pp

    @property
    def arms(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(arm for part in self.parts for arm in part.arms))

    def fitted(self, x: float) -> float:
        """The gap on a trend's line at this ρ, pp."""
        return self.middle[1] + self.estimate.mean * (x - self.middle[0]) / (
            max(self.x) - min(self.x)
        )


def gap(pairs: Pairs, arms: Mapping[str, ArmSummary], shared: dict[str, Any], hash: str) -> Gap:
    """The finding of one comparison; `shared` is what `of` returned."""
    arm, baseline = arms[pairs.arm], arms[pairs.baseline]
    values = [pairs.accuracies(side) for side in (0, 1)]
    correct = pairs.correct()
    return Gap(
        **shared | {'flags': (*shared['flags'], *pairing.flags(pairs, hash))},
        arm=arm.name,
        baseline=baseline.name,
        arm_values=tuple(map(float, values[0])),
        baseline_values=tuple(map(float, values[1])),
        diverged=sum(pairing.diverged(row) for both in pairs.rows for row in both),
        correlation=statistics.correlation(*values),
        image_error=math.nan if correct is None else statistics.image_error(*correct),
        cost=_ratio(arm.flops, baseline.flops),
        cost_executed=_ratio(arm.flops_executed, baseline.flops_executed),
        params=_ratio(arm.params_total, baseline.params_total),
        rho_place=arm.rho_place,
    )


def contrast(combined: Combined, gaps: Mapping[str, Gap], shared: dict[str, Any]) -> Contrast:
    """The finding of a trend or a family difference; `shared` is what `of` returned."""
    parts, seeds = tuple(gaps[name] for name in combined.names), set(combined.seeds)
    lost = {
        (name, seed)
        for pairs in combined.parts
        for seed, rows in zip(pairs.seeds, pairs.rows, strict=True)
        for name, row in zip((pairs.arm, pairs.baseline), rows, strict=True)
        if seed in seeds and pairing.diverged(row)
    }
    return Contrast(
        **shared | {'flags': (*shared['flags'], *_flags(combined, parts))},
        kind=combined.kind,
        parts=parts,
        x=combined.x,
        column=combined.column,
        middle=combined.middle(),
        diverged=len(lost),
    )


def of(
    name: str,
    compared: Pairs | Combined,
    judged: Judgement,
    declared: Mapping[str, Any],
    record: Mapping[str, Any],
    levels: tuple[float, float],
) -> dict[str, Any]:
    """What every finding has.

    Args:
      declared: what was registered under this name; {} for what was not registered.
      levels: of the two intervals that pictures draw (`verdicts.levels`).
    """
    values, primary = compared.gaps(), bool(declared.get('primary'))
    flags = []
    if primary and len(values) < len(record['seeds']):
        flags.append(
            f'{EXPLORATORY}only {len(values)} of {len(record["seeds"])} registered seeds have '
            f'{compared.WHOLE}'
        )
    if not declared:
        flags.append(f'{EXPLORATORY}not registered')
    elif not primary:
        flags.append(f'{_NOT_PRIMARY}, judged at {record["alpha"]:g} without correction')
    return {
        **{f.name: getattr(judged, f.name) for f in dataclasses.fields(Judgement)},
        'name': name,
        'primary': primary,
        'expected': declared.get('expected', 'none'),
        'seeds': compared.seeds,
        'estimate': statistics.estimate(values, judged.level),
        'outer': statistics.estimate(values, levels[0]),
        'inner': statistics.estimate(values, levels[1]),
        'effect_size': statistics.effect_size(values),
        'selected': statistics.estimate(list(compared.selected().values()), judged.level),
        'without_diverged': statistics.estimate(list(compared.ended().values()), judged.level),
        'flags': tuple(flags),
    }


def _ratio(a: float, b: float) -> float:
    return a / b if a and b else math.nan


def _flags(combined: Combined, parts: tuple[Gap, ...]) -> Iterator[str]:
    """What is unusual about its comparisons, and about ρ."""
    for part in parts:
        for flag in part.flags:
            if flag.startswith(EXPLORATORY) and 'of another pre-registration' in flag:
                yield f'{EXPLORATORY}{part.name}: {flag.removeprefix(EXPLORATORY)}'
            elif not flag.startswith(EXPLORATORY):
                yield f'{part.name}: {flag}'
    if combined.kind == 'family difference':
        places = zip(parts[::2], parts[1::2], combined.x[::2], combined.x[1::2], strict=True)
        for a, b, x, y in places:
            if not contrasts.near(x, y) and math.isfinite(x + y):
                yield f'ρ differs: {x:.3g} in {a.name} and {y:.3g} in {b.name}'
    elif not combined.weights:
        yield 'no slope: ρ is unknown for a comparison, or the same for all'
