"""Judges a study: turns its pre-registration and rows into everything that the report says.

    >>> analysis = analyse(record, hash, {'k2': {0: row, 1: row}, 'dense': {0: row, 1: row}})

It reads no files. `statistics` holds the tests, `pairs` brings rows together by seed, `verdicts`
judges all comparisons of the study at once, and `summaries` describes an arm. Inference is over
training seeds, for this test set; `image_error` is what a finite test set adds. The same rows give
the same analysis, in the order of the record.

Accuracies and gaps are percentage points (pp); NaN means "not defined".
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from moe_vision.common.json_values import as_dict, number
from moe_vision.study.analysis import pairs as pairing
from moe_vision.study.analysis import statistics, summaries, verdicts
from moe_vision.study.analysis.pairs import EXPLORATORY, Pairs, Row
from moe_vision.study.analysis.statistics import Estimate
from moe_vision.study.analysis.summaries import ArmSummary
from moe_vision.study.analysis.verdicts import Judgement
from moe_vision.study.types import Outcome

_NOT_PRIMARY = f'{EXPLORATORY}not a primary comparison'


@dataclasses.dataclass(frozen=True)
class Gap:
    """One comparison."""

    name: str
    arm: str
    baseline: str
    primary: bool
    expected: str
    seeds: tuple[int, ...]  # those that both arms have, in order
    arm_values: tuple[float, ...]  # accuracy, pp; a diverged run scores chance
    baseline_values: tuple[float, ...]
    estimate: Estimate  # its interval has the adjusted level that the verdict rests on
    outer: Estimate  # as drawn: all primary comparisons hold at once (`verdicts.levels`)
    inner: Estimate  # as drawn: the level of one equivalence
    effect_size: float  # d_z = mean / sd
    p: float  # paired t-test, two-sided
    p_holm: float  # over the primary comparisons; NaN for exploratory ones
    p_sign_flip: float  # exact, two-sided, unadjusted
    p_tost: float  # the larger of the two one-sided p, unadjusted
    p_tost_holm: float
    verdict: Outcome
    doubt: str  # why the verdict is not sure; '' if exact tests confirm it, or nothing is decided
    note: str  # such as 'sd = 0: ...' or 'not sure: ' and the doubt; '' for none
    mde: float  # smallest gap detected with 80 % power at the adjusted level and this sd, pp
    correlation: float  # of the two arms over seeds
    image_error: float  # standard error that the finite test set adds to the mean gap, pp
    selected: Estimate  # the same gap at the checkpoint chosen on validation
    without_diverged: Estimate  # the same gap over pairs in which neither run diverged
    diverged: int  # runs of either arm that diverged
    cost: float  # FLOPs per image of k active experts, arm / baseline
    cost_executed: float  # the same, with padded buffers
    params: float  # parameters, arm / baseline
    rho_place: float  # of the arm
    flags: tuple[str, ...]  # why it is exploratory; device differs, version differs, ...

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
        """seed -> accuracy(arm) - accuracy(baseline), pp."""
        values = zip(self.seeds, self.arm_values, self.baseline_values, strict=True)
        return {seed: ours - theirs for seed, ours, theirs in values}


@dataclasses.dataclass(frozen=True)
class Pattern:
    """Comparisons that must all come out as expected; p is their largest p."""

    name: str
    comparisons: tuple[str, ...]
    verdicts: tuple[str, ...]
    p: float
    supported: bool


@dataclasses.dataclass(frozen=True)
class Analysis:
    """Everything that the report of a study says."""

    study: dict[str, Any]  # the pre-registration record
    hash: str  # of the record
    arms: dict[str, ArmSummary]
    gaps: dict[str, Gap]
    patterns: tuple[Pattern, ...]
    problems: tuple[str, ...]  # one line each: missing, half-written, of another commit, ...
    rows: dict[str, dict[int, dict[str, Any]]]  # arm -> seed -> row, as read

    @property
    def levels(self) -> tuple[float, float]:
        """The levels of the outer and the inner interval of every picture."""
        comparisons = as_dict(self.study.get('comparisons'))
        alpha = number(self.study.get('alpha', 0.05))
        return verdicts.levels({n: as_dict(c) for n, c in comparisons.items()}, alpha)

    def cells(self) -> list[tuple[str, int, Row]]:
        """(arm, seed, row) of the registered arms and seeds that have a row, in their order."""
        return [
            (a.name, seed, self.rows[a.name][seed])
            for a in self.arms.values()
            if a.name in self.rows
            for seed in a.seeds
        ]

    def diverged(self, arm: str) -> tuple[int, ...]:
        """Seeds of an arm whose run diverged."""
        return self.arms[arm].diverged if arm in self.arms else ()


def analyse(
    record: dict[str, Any], hash: str, rows: dict[str, dict[int, Row]], problems: Sequence[str] = ()
) -> Analysis:
    """Judges a study.

    Args:
      record: the pre-registration: `dataclasses.asdict` of the Study, as JSON gives it back.
      hash: of the record; rows that carry another one are used and flagged as exploratory.
      rows: arm -> seed -> row. Arms and seeds that the record does not name are left out.
      problems: lines about the rows from reading them (missing cells, diverged runs, ...); they
        come before those about pairs.

    Returns:
      The analysis, with a gap for every comparison of the record.
    """
    cells = {
        arm: {seed: rows[arm][seed] for seed in record['seeds'] if seed in rows.get(arm, {})}
        for arm in record['arms']
    }
    lines = [
        *problems,
        *(f'arm {arm}: not in the pre-registration, left out' for arm in rows if arm not in cells),
    ]
    for arm, seeds in cells.items():
        extra = [seed for seed in rows.get(arm, {}) if seed not in seeds]
        if extra:
            lines.append(
                f'arm {arm}: {pairing.listed(extra)} not in the pre-registration, left out'
            )
        if unused := summaries.unused(arm, seeds):
            lines.append(unused)
    compared = {}
    for name, comparison in record['comparisons'].items():
        pairs, lacking = pairing.pair(comparison['arm'], comparison['baseline'], cells)
        compared[name] = pairs, bool(comparison['primary'])
        if lacking:
            lines.append(f'comparison {name}: incomplete: {lacking}')
    judged = verdicts.judge(compared, record['margin'], record['alpha'])
    levels = verdicts.levels(record['comparisons'], record['alpha'])
    arms = {arm: summaries.summarise(arm, seeds, levels) for arm, seeds in cells.items()}
    gaps = {
        name: _gap(name, record, pairs, judged[name], arms, hash, levels)
        for name, (pairs, _) in compared.items()
    }
    patterns = tuple(_pattern(name, members, gaps) for name, members in record['patterns'].items())
    return Analysis(record, hash, arms, gaps, patterns, tuple(lines), rows)


def _gap(
    name: str,
    record: Mapping[str, Any],
    pairs: Pairs,
    judged: Judgement,
    arms: Mapping[str, ArmSummary],
    hash: str,
    levels: tuple[float, float],
) -> Gap:
    comparison = record['comparisons'][name]
    primary, gaps = bool(comparison['primary']), pairs.gaps()
    arm, baseline = arms[pairs.arm], arms[pairs.baseline]
    flags = pairing.flags(pairs, hash)
    if primary and len(pairs.seeds) < len(record['seeds']):
        flags.insert(
            0,
            f'{EXPLORATORY}only {len(pairs.seeds)} of {len(record["seeds"])} '
            'registered seeds have both runs',
        )
    if not primary:
        flags.insert(0, f'{_NOT_PRIMARY}, judged at {record["alpha"]:g} without correction')
    values = [pairs.accuracies(side) for side in (0, 1)]
    correct = pairs.correct()
    return Gap(
        name=name,
        arm=arm.name,
        baseline=baseline.name,
        primary=primary,
        expected=comparison['expected'],
        seeds=pairs.seeds,
        arm_values=tuple(map(float, values[0])),
        baseline_values=tuple(map(float, values[1])),
        estimate=statistics.estimate(gaps, judged.level),
        outer=statistics.estimate(gaps, levels[0]),
        inner=statistics.estimate(gaps, levels[1]),
        effect_size=statistics.effect_size(gaps),
        p=judged.p,
        p_holm=judged.p_holm,
        p_sign_flip=judged.p_sign_flip,
        p_tost=judged.p_tost,
        p_tost_holm=judged.p_tost_holm,
        verdict=judged.verdict,
        doubt=judged.doubt,
        note=judged.note,
        mde=judged.mde,
        correlation=statistics.correlation(*values),
        image_error=math.nan if correct is None else statistics.image_error(*correct),
        selected=statistics.estimate(pairs.selected(), judged.level),
        without_diverged=statistics.estimate(pairs.ended(), judged.level),
        diverged=sum(pairing.diverged(row) for both in pairs.rows for row in both),
        cost=_ratio(arm.flops, baseline.flops),
        cost_executed=_ratio(arm.flops_executed, baseline.flops_executed),
        params=_ratio(arm.params_total, baseline.params_total),
        rho_place=arm.rho_place,
        flags=tuple(flags),
    )


def _ratio(a: float, b: float) -> float:
    return a / b if a and b else math.nan


def _pattern(name: str, members: Sequence[str], gaps: Mapping[str, Gap]) -> Pattern:
    """Whether all members came out as expected (an intersection-union test).

    p is their largest p, 1 if a member came out otherwise, and NaN if one is equivalent without a
    test (sd = 0). Comparisons without a test, with rows of another pre-registration or with missing
    seeds support no pattern.
    """
    compared = [gaps[member] for member in members]
    met = all(verdicts.decided(gap.verdict) == gap.expected != 'inconclusive' for gap in compared)
    p = [gap.p_tost_holm if gap.expected == 'equivalent' else gap.p_holm for gap in compared]
    largest = math.nan if any(map(math.isnan, p)) else max(p)
    supported = met and not math.isnan(largest) and all(gap.confirms for gap in compared)
    return Pattern(
        name,
        tuple(members),
        tuple(gap.verdict for gap in compared),
        largest if met else 1.0,
        supported,
    )
