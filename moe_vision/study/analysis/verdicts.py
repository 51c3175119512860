"""Judges every comparison: equivalence comes first, then a difference, then neither.

There are two families of tests: two-sided t-tests (is there a gap?) and equivalence tests (is it
within the margin?). Each is corrected by Holm over the primary comparisons at alpha, so the chance
of any false verdict is at most 2 alpha. A comparison is `equivalent` by the second family; else
`positive` or `negative` by the first; else `inconclusive`, whatever its p. The interval beside a
verdict has the level of the test that the verdict rests on. Exploratory comparisons are judged one
by one at alpha. The smallest detectable gap uses the level that is known before the results:
alpha / m for m primary comparisons (Bonferroni).
"""

import dataclasses
import math
from collections.abc import Mapping
from fractions import Fraction

import numpy as np

from moe_vision.study.analysis import statistics
from moe_vision.study.analysis.pairs import Pairs, listed
from moe_vision.study.types import Verdict


@dataclasses.dataclass(frozen=True)
class Judgement:
    """A verdict and what it rests on; the fields are those of `analyse.Gap`."""

    verdict: Verdict
    note: str
    level: float  # of the interval
    p: float
    p_holm: float
    p_sign_flip: float
    p_tost: float
    p_tost_holm: float
    mde: float


def judge(
    compared: Mapping[str, tuple[Pairs, bool]], margin: float, alpha: float
) -> dict[str, Judgement]:
    """Judges all comparisons of a study.

    Args:
      compared: name -> (pairs, primary) of every comparison in the pre-registration. One without
        rows keeps its place in the family.
      margin: gaps within ± this many pp count as equivalent.
      alpha: level of each of the two families.
    """
    gaps = {name: pairs.gaps() for name, (pairs, _) in compared.items()}
    p = {name: statistics.t_test(values) for name, values in gaps.items()}
    p_tost = {name: _tost(pairs, margin) for name, (pairs, _) in compared.items()}
    primary = [name for name, (_, is_primary) in compared.items() if is_primary]
    different, same = _family(p, primary, alpha), _family(p_tost, primary, alpha)
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
                f'both arms diverged ({listed(pairs.lost())}): an '
                'equivalence must also hold without these pairs'
            )
        if len(values) > statistics.ENUMERATED:
            note += '; ' * bool(note) + (
                f'sign-flip p from {statistics.DRAWS:,} random sign patterns'
            )
        sd = statistics.estimate(values, 1 - alpha).sd
        share = alpha / len(primary) if is_primary else alpha
        out[name] = Judgement(
            verdict,
            note,
            1 - 2 * level_tost if equivalent else 1 - level,
            p[name],
            adjusted if is_primary else math.nan,
            statistics.sign_flip(values),
            p_tost[name],
            adjusted_tost if is_primary else math.nan,
            statistics.detectable(len(values), share) * sd if sd else math.nan,
        )
    return out


def _tost(pairs: Pairs, margin: float) -> float:
    """p of the two one-sided tests.

    Two runs at chance are no sign of equivalence: if both runs of a pair diverged, the other pairs
    must also show it.
    """
    p = statistics.tost(pairs.gaps(), margin)
    return float(np.maximum(p, statistics.tost(pairs.ended(), margin))) if pairs.lost() else p


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
) -> tuple[Verdict, str]:
    """Verdict and note if both tests could be made; `p` is text for the note."""
    if equivalent:
        note = f'negligible: differs from 0 ({p}) but lies within ±{margin:g} pp'
        return 'equivalent', note if differs else ''
    if differs:
        return 'positive' if sum(gaps) > 0 else 'negative', ''
    return 'inconclusive', ''


def _equal(pairs: Pairs, gaps: list[Fraction]) -> tuple[Verdict, str]:
    """Verdict and note without a t-test: no pair, one pair, or the same gap in every seed."""
    if len(gaps) < 2:
        return 'inconclusive', ('one pair of seeds' if gaps else 'no pair of seeds') + ': no test'
    if gaps[0]:
        return 'inconclusive', (
            f'sd = 0: {float(gaps[0]):+.2f} pp in every seed, so no t-test; see the sign-flip p'
        )
    if pairs.void:
        return 'inconclusive', 'sd = 0: both arms diverged in every seed, so no test'
    correct = pairs.correct()
    if correct is not None and np.array_equal(*correct):
        return 'equivalent', 'sd = 0: identical on every test image in every seed, so no test'
    return 'inconclusive', 'sd = 0: equal accuracies in every seed, so no test'
