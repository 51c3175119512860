"""Judges every comparison, trend and family difference: equivalence first, then a difference.

There are two families of tests: two-sided t-tests (is there a gap?) and equivalence tests (is it
within the margin?). Each is corrected by Holm over the primary comparisons at alpha, so the chance
of any false verdict is at most 2 alpha. The second family decides first, and the verdict says what
both found:

  within the margin, and differs from zero     `positive, within the margin` or `negative, ...`
  within the margin                            `equivalent`
  differs from zero                            `positive` or `negative`
  neither                                      `inconclusive`, whatever its p

A trend or a family difference has one value per seed, like the gaps of a comparison, so the same
tests judge it; "gap" below stands for that value, and "comparison" for what has it.

An expectation that was registered as `equivalent` is met by each of the first two rows; one that
was registered as `positive` or `negative` by the third row alone (`decided`).

The interval beside a verdict has the level of the test that the verdict rests on. Exploratory
comparisons are judged one by one at alpha; their q says which would remain if one allowed a share
of false ones among those found (Benjamini and Hochberg 1995). The smallest detectable gap uses the
level that is known before the results: alpha / m for m primary comparisons (Bonferroni).

Both families assume that gaps are normally distributed, which few seeds cannot show. A verdict is
therefore sure only if the exact sign-flip test of the same hypothesis confirms it at the same
level; otherwise `doubt` says why not. Few seeds cannot: n of them give no p below 2^(1 - n).
"""

import dataclasses
import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Any, Literal, Protocol, cast

import numpy as np

from moe_vision.common.json_values import as_dict
from moe_vision.study.analysis import statistics
from moe_vision.study.analysis.pairs import listed
from moe_vision.study.types import Outcome, Verdict

WITHIN = ', within the margin'  # ends the verdict on a gap that differs from zero, but by little


class Compared(Protocol):
    """What can be judged: `pairs.Pairs` or `contrasts.Combined`."""

    ONE: str  # what one value belongs to
    LOST: str  # what makes the value of a seed say nothing
    EQUAL: str  # what values of 0 are

    def gaps(self) -> list[Fraction]: ...
    def ended(self) -> dict[int, Fraction]: ...
    def lost(self) -> list[int]: ...
    @property
    def void(self) -> bool: ...
    def correct(self) -> tuple[np.ndarray, np.ndarray] | None: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Judgement:
    """A verdict and what it rests on."""

    verdict: Outcome
    doubt: str  # why the verdict is not sure; '' if exact tests confirm it, or nothing is decided
    note: str  # such as 'sd = 0: ...' or 'not sure: ' and the doubt; '' for none
    level: float  # of the interval that the verdict rests on
    p: float  # paired t-test, two-sided
    p_holm: float  # over the primary comparisons; NaN for exploratory ones
    q: float  # of p over the exploratory comparisons; NaN for primary ones
    p_sign_flip: float  # exact, two-sided, unadjusted
    p_tost: float  # the larger of the two one-sided p, unadjusted
    p_tost_holm: float
    mde: float  # smallest gap detected with 80 % power at the adjusted level and this sd, pp


def registered(record: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Everything that a study registered to be judged, by name."""
    parts = (as_dict(record.get(k)) for k in ('comparisons', 'trends', 'family_differences'))
    return {name: as_dict(value) for part in parts for name, value in part.items()}


def levels(comparisons: Mapping[str, Mapping[str, Any]], alpha: float) -> tuple[float, float]:
    """The levels of the outer and the inner interval of every picture of a study.

    Outer: 1 - alpha / m for the m primary comparisons, so that the intervals of all of them hold
    at once with 1 - alpha (Bonferroni); without a primary one, m counts all comparisons. Inner:
    1 - 2 alpha, the level at which an interval within the margin is an equivalence.
    """
    primary = sum(bool(c.get('primary')) for c in comparisons.values())
    return 1 - alpha / (primary or len(comparisons) or 1), max(1 - 2 * alpha, 0.0)


def decided(verdict: str) -> str:
    """What a verdict decides about a registered expectation: one of `types.Verdict`."""
    return 'equivalent' if verdict.endswith(WITHIN) else verdict


def judge(
    compared: Mapping[str, tuple[Compared, bool]], margin: float, alpha: float
) -> dict[str, Judgement]:
    """Judges all comparisons of a study.

    Args:
      compared: name -> (pairs, primary) of everything in the pre-registration. What has no rows
        keeps its place in the family.
      margin: gaps within ± this many pp count as equivalent.
      alpha: level of each of the two families.
    """
    gaps = {name: pairs.gaps() for name, (pairs, _) in compared.items()}
    p = {name: statistics.t_test(values) for name, values in gaps.items()}
    p_tost = {name: _tost(pairs, margin) for name, (pairs, _) in compared.items()}
    primary = [name for name, (_, is_primary) in compared.items() if is_primary]
    different, same = _family(p, primary, alpha), _family(p_tost, primary, alpha)
    others = [name for name in p if name not in primary]
    q = dict(zip(others, statistics.false_discovery([p[name] for name in others]), strict=True))
    out = {}
    for name, (pairs, is_primary) in compared.items():
        values = gaps[name]
        adjusted, differs, level = different[name]
        adjusted_tost, equivalent, level_tost = same[name]
        verdict, note = (
            _equal(pairs, values)
            if len(set(values)) < 2
            else _verdict(
                values,
                differs,
                equivalent,
                margin,
                f'p = {adjusted:.2g} by Holm' if is_primary else f'p = {p[name]:.2g}, unadjusted',
            )
        )
        if pairs.lost() and not pairs.void:
            note += '; ' * bool(note) + (
                f'{pairs.LOST} ({listed(pairs.lost())}): an '
                f'equivalence must also hold without these {pairs.ONE.split()[0]}s'
            )
        if len(values) > statistics.ENUMERATED:
            note += '; ' * bool(note) + (
                f'sign-flip p from {statistics.DRAWS:,} random sign patterns'
            )
        sd = statistics.estimate(values, 1 - alpha).sd
        share = alpha / len(primary) if is_primary else alpha
        doubt = _doubt(verdict, values, margin, level, level_tost)
        if doubt and len(set(values)) > 1:  # else the note says already that there is no test
            note += '; ' * bool(note) + f'not sure: {doubt}'
        out[name] = Judgement(
            verdict=verdict,
            doubt=doubt,
            note=note,
            level=1 - 2 * level_tost if equivalent else 1 - level,
            p=p[name],
            p_holm=adjusted if is_primary else math.nan,
            q=q.get(name, math.nan),
            p_sign_flip=statistics.sign_flip(values),
            p_tost=p_tost[name],
            p_tost_holm=adjusted_tost if is_primary else math.nan,
            mde=statistics.detectable(len(values), share) * sd if sd else math.nan,
        )
    return out


def _tost(pairs: Compared, margin: float) -> float:
    """p of the two one-sided tests.

    Two runs at chance are no sign of equivalence: if both runs of a pair diverged, the other pairs
    must also show it. (Of a trend or a family difference: if any run of a seed diverged.)
    """
    p = statistics.tost(pairs.gaps(), margin)
    if not pairs.lost():
        return p
    return float(np.maximum(p, statistics.tost(list(pairs.ended().values()), margin)))


def _family(
    p: Mapping[str, float], primary: list[str], alpha: float
) -> dict[str, tuple[float, bool, float]]:
    """name -> (adjusted p, rejected, level): Holm over the primary ones, the others one by one."""
    out: dict[str, tuple[float, bool, float]] = {}
    for names in (primary, *([name] for name in p if name not in primary)):
        holm = statistics.holm([p[name] for name in names], alpha)
        out |= dict(
            zip(names, zip(holm.adjusted, holm.rejected, holm.level, strict=True), strict=True)
        )
    return out


def _verdict(
    gaps: list[Fraction], differs: bool, equivalent: bool, margin: float, p: str
) -> tuple[Outcome, str]:
    """Verdict and note if both tests could be made; `p` is text for the note."""
    sign: Literal['positive', 'negative'] = 'positive' if sum(gaps) > 0 else 'negative'
    if equivalent and differs:
        small = f'differs from 0 ({p}) and lies within ±{margin:g} pp'
        return cast(Outcome, sign + WITHIN), small
    if equivalent:
        return 'equivalent', ''
    return (sign if differs else 'inconclusive'), ''


def _doubt(
    verdict: str, gaps: list[Fraction], margin: float, level: float, level_tost: float
) -> str:
    """Why a verdict is not sure; '' if exact tests confirm it, or if nothing was decided.

    Args:
      level, level_tost: at which the gap and the equivalence were judged.
    """
    if verdict == 'inconclusive':
        return ''
    if len(set(gaps)) < 2:
        return 'it rests on no test'
    tests = []
    if decided(verdict) == 'equivalent':
        # one-sided, so its smallest p is half of the two-sided one
        p = statistics.sign_flip_tost(gaps, margin)
        tests.append(('that it is within the margin', 0.5, p, level_tost))
    if verdict != 'equivalent':
        tests.append(('the sign', 1.0, statistics.sign_flip(gaps), level))
    return '; '.join(
        _unconfirmed(what, part * statistics.attainable(len(gaps)), p, at, len(gaps))
        for what, part, p, at in tests
        if p > at
    )


def _unconfirmed(what: str, least: float, p: float, level: float, seeds: int) -> str:
    if least > level:
        return (
            f'{what} rests on a t-test, because with {seeds} seeds the exact sign-flip test gives '
            f'no p below {least:.4g}'
        )
    return f'the exact sign-flip test does not confirm {what}: p = {p:.2g}, level {level:.2g}'


def _equal(pairs: Compared, gaps: list[Fraction]) -> tuple[Verdict, str]:
    """Verdict and note without a t-test: no pair, one pair, or the same gap in every seed."""
    if len(gaps) < 2:
        return 'inconclusive', f'{"one" if gaps else "no"} {pairs.ONE}: no test'
    if gaps[0]:
        return 'inconclusive', (
            f'sd = 0: {float(gaps[0]):+.2f} pp in every seed, so no t-test; see the sign-flip p'
        )
    if pairs.void:
        return 'inconclusive', f'sd = 0: {pairs.LOST} in every seed, so no test'
    correct = pairs.correct()
    if correct is not None and np.array_equal(*correct):
        return 'equivalent', 'sd = 0: identical on every test image in every seed, so no test'
    return 'inconclusive', f'sd = 0: {pairs.EQUAL} in every seed, so no test'
