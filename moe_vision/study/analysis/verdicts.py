"""Equivalence first, then a difference, then nothing: one verdict per comparison.

Two families, each corrected by Holm over the primary comparisons at alpha (so that some verdict is
false with a probability of at most 2 alpha): the two-sided t-tests (is there a gap?) and the
equivalence tests (is it within the margin?). A comparison is
`equivalent` by the second family; else `positive` or `negative` by the first; else `inconclusive`,
whatever its p. The interval shown beside a verdict is at the level of the test that it rests on.
Exploratory comparisons are judged one by one at alpha. The smallest detectable gap is told for the
level that is certain before the results: alpha / m for the m primary comparisons (Bonferroni).
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


def judge(compared: Mapping[str, tuple[Pairs, bool]], margin: float,
          alpha: float) -> dict[str, Judgement]:
    """Judges all comparisons of a study, name -> (pairs, primary).

    Args:
      compared: all that the pre-registration names, those without rows too: they keep their place
        in the family.
      margin: of equivalence, pp.
      alpha: of each family.
    """
    gaps = {name: pairs.gaps() for name, (pairs, _) in compared.items()}
    p = {name: statistics.t_test(of) for name, of in gaps.items()}
    p_tost = {name: _tost(pairs, margin) for name, (pairs, _) in compared.items()}
    primary = [name for name, (_, is_primary) in compared.items() if is_primary]
    different, same = _family(p, primary, alpha), _family(p_tost, primary, alpha)
    out = {}
    for name, (pairs, is_primary) in compared.items():
        of = gaps[name]
        adjusted, found, level = different[name]
        adjusted_tost, equivalent, level_tost = same[name]
        verdict, note = _equal(pairs, of) if len(set(of)) < 2 else _verdict(
            of, found, equivalent, margin,
            f'p = {adjusted:.2g} by Holm' if is_primary else f'p = {p[name]:.2g}, unadjusted')
        if pairs.lost() and not pairs.void:
            note += '; ' * bool(note) + (f'both arms diverged ({listed(pairs.lost())}): the other '
                                         'pairs must bear out an equivalence, too')
        if len(of) > statistics.ENUMERATED:
            note += '; ' * bool(note) + (
                f'sign-flip p from {statistics.DRAWS:,} random sign patterns')
        sd = statistics.estimate(of, 1 - alpha).sd
        share = alpha / len(primary) if is_primary else alpha
        out[name] = Judgement(
            verdict, note, 1 - 2 * level_tost if equivalent else 1 - level, p[name],
            adjusted if is_primary else math.nan, statistics.sign_flip(of), p_tost[name],
            adjusted_tost if is_primary else math.nan,
            statistics.detectable(len(of), share) * sd if sd else math.nan)
    return out


def _tost(pairs: Pairs, margin: float) -> float:
    """p of the two one-sided tests. Chance against chance is no sign of equivalence: where a pair
    diverged on both sides, the pairs that ended must bear it out, too."""
    p = statistics.tost(pairs.gaps(), margin)
    return float(np.maximum(p, statistics.tost(pairs.ended(), margin))) if pairs.lost() else p


def _family(p: Mapping[str, float], primary: list[str],
            alpha: float) -> dict[str, tuple[float, bool, float]]:
    """name -> (adjusted p, rejected, level): Holm over the primary ones, each other one alone."""
    out: dict[str, tuple[float, bool, float]] = {}
    for names in (primary, *([name] for name in p if name not in primary)):
        holm = statistics.holm([p[name] for name in names], alpha)
        out |= dict(zip(names, zip(holm.adjusted, holm.rejected, holm.level, strict=True),
                        strict=True))
    return out


def _verdict(of: list[Fraction], found: bool, equivalent: bool, margin: float,
             said: str) -> tuple[Verdict, str]:
    """Where both tests could be made."""
    if equivalent:
        note = f'negligible: differs from 0 ({said}) but lies within ±{margin:g} pp'
        return 'equivalent', note if found else ''
    if found:
        return 'positive' if sum(of) > 0 else 'negative', ''
    return 'inconclusive', ''


def _equal(pairs: Pairs, of: list[Fraction]) -> tuple[Verdict, str]:
    """Where no t-test can be made: no pair, one pair, or the same gap in every seed."""
    if len(of) < 2:
        return 'inconclusive', ('one pair of seeds' if of else 'no pair of seeds') + ': no test'
    if of[0]:
        return 'inconclusive', (f'sd = 0: {float(of[0]):+.2f} pp in every seed, so no t-test; '
                                'see the sign-flip p')
    if pairs.void:
        return 'inconclusive', 'sd = 0: both arms diverged in every seed, so no test'
    correct = pairs.correct()
    if correct is not None and np.array_equal(*correct):
        return 'equivalent', 'sd = 0: identical on every test image in every seed, so no test'
    return 'inconclusive', 'sd = 0: equal accuracies in every seed, so no test'
