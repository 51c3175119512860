"""Combines comparisons seed by seed: trends of gaps along ρ, and differences between families.

Both are weighted sums of the gaps of one seed, so the tests of comparisons apply to them. Gaps are
in percentage points (pp).
"""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any, Literal

from moe_vision.study.analysis.pairs import Pairs
from moe_vision.study.analysis.statistics import exact
from moe_vision.study.analysis.summaries import ArmSummary

Kind = Literal['trend', 'family difference']
_NEAR = 0.1  # two ρ that differ by less than this share of the larger one count as the same


@dataclasses.dataclass(frozen=True)
class Combined:
    """One value per seed from the gaps of several comparisons, for the seeds that all of them have.

    Attributes:
      names, parts: of the comparisons; the two of a pair of families stand next to each other.
      column, x: which ρ, and that of the arm of each.
      weights: what the gap of each is multiplied with; () if the ρ of a trend define no slope.
    """

    ONE = 'seed that all comparisons have'
    WHOLE = 'all runs'
    LOST = 'a run diverged'
    EQUAL = 'a value of 0'

    kind: Kind
    names: tuple[str, ...]
    parts: tuple[Pairs, ...]
    column: str
    x: tuple[float, ...]
    weights: tuple[Fraction, ...]

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds with a value, in the order of the study."""
        return tuple(self._sums([p.gap_of() for p in self.parts]))

    def gaps(self) -> list[Fraction]:
        """The value of each seed, pp: the change of a trend's line, or the mean difference."""
        return list(self._sums([p.gap_of() for p in self.parts]).values())

    def selected(self) -> dict[int, Fraction]:
        """seed -> its value at the checkpoints chosen on validation; {} if none were chosen."""
        return self._sums([p.selected() for p in self.parts])

    def ended(self) -> dict[int, Fraction]:
        """seed -> its value, without seeds in which a run diverged."""
        return self._sums([p.ended() for p in self.parts])

    def lost(self) -> list[int]:
        """Seeds in which a run diverged: where chance meets chance, a small value says nothing."""
        ended = self.ended()
        return [s for s in self.seeds if s not in ended]

    @property
    def void(self) -> bool:
        """Whether a run diverged in every seed."""
        return len(self.lost()) == len(self.seeds)

    def correct(self) -> None:
        """Images are compared between two arms only."""

    def middle(self) -> tuple[float, float]:
        """The point that the line of the mean passes through: mean ρ, and mean gap in pp."""
        known, seeds = [p.gap_of() for p in self.parts], self.seeds
        gaps = [float(of[s]) for of in known for s in seeds]
        return math.fsum(self.x) / len(self.x), math.fsum(gaps) / len(gaps) if gaps else math.nan

    def _sums(self, gaps: Sequence[Mapping[int, Fraction]]) -> dict[int, Fraction]:
        common = [s for s in gaps[0] if self.weights and all(s in of for of in gaps)]
        sums = (
            sum((w * of[s] for w, of in zip(self.weights, gaps, strict=True)), Fraction(0))
            for s in common
        )
        return dict(zip(common, exact([float(v) for v in sums]), strict=True))


def slope_weights(x: Sequence[float]) -> tuple[Fraction, ...]:
    """Weights of the values at x that sum to the change of their least-squares line over x.

    The slope is sum (x - mean x) y / sum (x - mean x)^2, and the change is the slope times max x -
    min x. () if x has an unknown value, or the same one everywhere.
    """
    known = exact(x) if all(map(math.isfinite, x)) else []
    if len(set(known)) < 2:
        return ()
    mean = sum(known, Fraction(0)) / len(known)
    squares = sum(((v - mean) ** 2 for v in known), Fraction(0))
    return tuple((v - mean) * (max(known) - min(known)) / squares for v in known)


def of_study(
    record: Mapping[str, Any], pairs: Mapping[str, Pairs], arms: Mapping[str, ArmSummary]
) -> dict[str, Combined]:
    """The trends and family differences that a study registered, by name."""
    return {
        **{
            name: _trend(trend['comparisons'], trend['x'], pairs, arms)
            for name, trend in record.get('trends', {}).items()
        },
        **{
            name: _difference(difference['pairs'], pairs, arms)
            for name, difference in record.get('family_differences', {}).items()
        },
    }


def unregistered(
    record: Mapping[str, Any], pairs: Mapping[str, Pairs], arms: Mapping[str, ArmSummary]
) -> dict[str, Combined]:
    """What the figures of gaps against ρ suggest, if the study registered nothing of that kind.

    It is a trend for each series of three or more comparisons, and the difference of two series
    over the levels of ρ that both have. The names have a space, so no registered name equals one.
    """
    if record.get('trends') or record.get('family_differences'):
        return {}
    out = {}
    for figure in record.get('figures', ()):
        if figure['kind'] != 'gap_against_rho':
            continue
        for name, members in figure['series'].items():
            if len(set(members)) > 2:
                out[f'{name} along ρ'] = _trend(members, 'rho_place', pairs, arms)
        for (one, a), (other, b) in itertools.combinations(figure['series'].items(), 2):
            if matched := list(_matched(a, b, pairs, arms)):
                out[f'{one} − {other}'] = _difference(matched, pairs, arms)
    return out


def _matched(
    a: Sequence[str],
    b: Sequence[str],
    pairs: Mapping[str, Pairs],
    arms: Mapping[str, ArmSummary],
) -> Iterator[tuple[str, str]]:
    left = dict.fromkeys(b)
    for one in a:
        for other in left:
            if one != other and near(*(arms[pairs[n].arm].rho_place for n in (one, other))):
                yield one, other
                del left[other]
                break


def near(a: float, b: float) -> bool:
    """Whether two ρ count as the same."""
    return abs(a - b) <= _NEAR * max(a, b)


def _trend(
    names: Sequence[str], x: str, pairs: Mapping[str, Pairs], arms: Mapping[str, ArmSummary]
) -> Combined:
    places = tuple(getattr(arms[pairs[n].arm], x) for n in names)
    weights = slope_weights(places)
    return Combined('trend', tuple(names), tuple(pairs[n] for n in names), x, places, weights)


def _difference(
    couples: Sequence[Sequence[str]], pairs: Mapping[str, Pairs], arms: Mapping[str, ArmSummary]
) -> Combined:
    names = tuple(itertools.chain.from_iterable(couples))
    weights = (Fraction(1, len(couples)), Fraction(-1, len(couples))) * len(couples)
    parts, x = tuple(pairs[n] for n in names), 'rho_place'
    places = tuple(getattr(arms[p.arm], x) for p in parts)
    return Combined('family difference', names, parts, x, places, weights)
