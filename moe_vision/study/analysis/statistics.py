"""Paired statistics over few seeds: t-test, Holm's correction, equivalence, exact permutation.

The replicated unit is a training seed: a value is accuracy(arm) - accuracy(baseline) of one seed,
in percentage points (pp); epochs are never pooled. Fractions and integers are kept exact and floats
are rounded to twelve decimals, so that equal gaps compare as equal and no rounding error hides a
tie or sd = 0. NaN means "not defined".

Axis letters: S seeds, I test images.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from scipy import optimize, stats

Values = Sequence[Fraction | int | float] | np.ndarray

ENUMERATED = 20  # number of seeds up to which all 2^S sign patterns are counted
DRAWS = 100_000  # random patterns above that
POWER = 0.8  # of the smallest detectable gap
_DECIMALS = 10**12


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A paired difference over seeds: n values, mean, sd, t-interval at `level`."""

    values: tuple[float, ...]
    n: int
    mean: float
    sd: float
    low: float
    high: float
    level: float  # such as 0.95


def exact(values: Values) -> list[Fraction]:
    """The values as fractions; floats to twelve decimals, however large they are.

    Raises:
      ValueError: a value is NaN, infinite, or too large for a float.
    """
    return [_exact(value, place) for place, value in enumerate(values)]


def _exact(value: Fraction | int | float, place: int) -> Fraction:
    try:
        finite = math.isfinite(float(value))
    except OverflowError:  # a whole number or a fraction
        finite = False
    if not finite:
        shown = 'too large' if isinstance(value, (int, Fraction)) else f'{float(value)}'
        raise ValueError(
            f'value {place} is {shown}; statistics need finite numbers: leave it out, or count '
            'the run as diverged'
        )
    if isinstance(value, (float, np.floating)):
        return Fraction(round(Fraction(float(value)) * _DECIMALS), _DECIMALS)
    return Fraction(value.item() if isinstance(value, np.generic) else value)


def _root(square: Fraction) -> float:
    """The square root, also of a square that is too large or too small for a float."""
    half = (square.numerator.bit_length() - square.denominator.bit_length()) // 2
    try:
        return math.ldexp(math.sqrt(square / Fraction(4) ** half), half)
    except OverflowError:
        return math.inf


def estimate(values: Values, level: float) -> Estimate:
    """Mean, sd (n - 1) and two-sided t-interval of values[S].

    One value has no sd. Equal values have sd = 0 and no interval, because runs that agree to the
    last image do not show how much they vary.
    """
    numbers = exact(values)
    n = len(numbers)
    mean = sum(numbers, Fraction(0)) / n if n else math.nan
    squares = sum(((v - Fraction(mean)) ** 2 for v in numbers), Fraction(0))
    sd = _root(squares / (n - 1)) if n > 1 else math.nan
    half = math.nan
    if n > 1 and sd:
        half = float(stats.t.isf((1 - level) / 2, n - 1)) * sd / math.sqrt(n)
    return Estimate(
        tuple(map(float, numbers)),
        n,
        float(mean),
        sd,
        float(mean - half),
        float(mean + half),
        level,
    )


def effect_size(values: Values) -> float:
    """d_z = mean / sd; NaN where sd is 0 or not defined."""
    e = estimate(values, 0.95)
    return e.mean / e.sd if e.sd else math.nan


def t_test(values: Values) -> float:
    """Two-sided p of the paired t-test: are the differences values[S] 0 on average?"""
    e = estimate(values, 0.95)
    return 2 * _upper(e, abs(e.mean))


def tost(values: Values, margin: float) -> float:
    """p of two one-sided t-tests: the larger of "mean <= -margin" and "mean >= margin".

    p <= a exactly when the (1 - 2a) t-interval lies within [-margin, margin].
    """
    e = estimate(values, 0.95)
    return max(_upper(e, e.mean + margin), _upper(e, margin - e.mean))


def _upper(e: Estimate, distance: float) -> float:
    """P(T > distance / standard error)."""
    if not e.sd > 0:
        return math.nan
    return float(stats.t.sf(distance / (e.sd / math.sqrt(e.n)), e.n - 1))


@dataclasses.dataclass(frozen=True)
class Holm:
    """Holm's step-down over a family of p-values, in the order given.

    adjusted: p_(i) * (m - i + 1), cumulative maximum, at most 1; NaN where p is.
    level: the level at which each is judged, so that an interval at 1 - level agrees with the
      verdict: alpha / (m - i + 1) for a rejected one of rank i (equal p share the strictest), and
      the level at which the procedure stopped for all others.
    """

    adjusted: tuple[float, ...]
    rejected: tuple[bool, ...]
    level: tuple[float, ...]


def holm(p: Sequence[float], alpha: float) -> Holm:
    """Controls the chance of any false rejection in the family at alpha.

    A NaN stands for a test that could not be made: it keeps its place in the family (m does not
    shrink) and is never rejected.
    """
    m = len(p)
    known = [1.0 if math.isnan(v) else v for v in p]
    adjusted, rejected, level = [math.nan] * m, [False] * m, [alpha] * m
    highest, stopped, before = 0.0, math.nan, -1
    for rank, i in enumerate(sorted(range(m), key=lambda i: (known[i], math.isnan(p[i])))):
        threshold = alpha / (m - rank)
        highest = max(highest, min(1.0, known[i] * (m - rank)))
        adjusted[i] = math.nan if math.isnan(p[i]) else highest
        rejected[i] = math.isnan(stopped) and known[i] <= threshold and not math.isnan(p[i])
        if not rejected[i] and math.isnan(stopped):
            stopped = threshold
        tied = rejected[i] and before >= 0 and known[before] == known[i]
        level[i] = level[before] if tied else threshold if rejected[i] else stopped
        before = i
    return Holm(tuple(adjusted), tuple(rejected), tuple(level))


def false_discovery(p: Sequence[float]) -> list[float]:
    """q of each p-value, by Benjamini and Hochberg: p_(i) * m / i, cumulative minimum from above.

    Of the tests whose q is at most 0.05, no more than 5 % are expected to be false. A NaN stands
    for a test that could not be made: it keeps its place in m, and its q is NaN.
    """
    if not p:
        return []
    q = stats.false_discovery_control([1.0 if math.isnan(v) else v for v in p])
    return [
        math.nan if math.isnan(v) else float(adjusted) for v, adjusted in zip(p, q, strict=True)
    ]


def sign_flip(values: Values) -> float:
    """Two-sided p of the sign-flip test of values[S], which assumes only symmetry.

    It is the share of all 2^S sign patterns whose |sum| is at least as large as the observed one:
    counted in whole numbers up to S = 20, above that estimated from random patterns with a fixed
    seed. So p is never below `attainable(S)`.
    """
    total, sums, drawn = _flipped(exact(values))
    return _share(abs(sums) >= abs(total), drawn)


def sign_flip_tost(values: Values, margin: float) -> float:
    """p of two one-sided sign-flip tests, of "mean <= -margin" and "mean >= margin": the larger.

    They ask what `tost` asks, and assume that values[S] are symmetric about their mean. p is never
    below 2^-S, half of `attainable(S)`.
    """
    numbers, (m,) = exact(values), exact([margin])
    p = []
    for moved in ([v + m for v in numbers], [m - v for v in numbers]):
        total, sums, drawn = _flipped(moved)
        p.append(_share(sums >= total, drawn))
    return float(np.max(p))


def attainable(n: int) -> float:
    """The smallest p that a two-sided sign-flip test of n values can give; NaN for none."""
    return 2.0 ** (1 - n) if n else math.nan


def _flipped(numbers: list[Fraction]) -> tuple[int, np.ndarray, bool]:
    """The sum, its values under all 2^S sign patterns or under drawn ones, and whether drawn."""
    unit = math.lcm(*(v.denominator for v in numbers))
    steps = [int(v * unit) for v in numbers]
    small = sum(map(abs, steps)) < 2**62
    whole = np.array(steps, np.int64 if small else object)
    if len(numbers) > ENUMERATED:
        signs = np.random.default_rng(0).integers(0, 2, (DRAWS, len(numbers))) * 2 - 1
        return sum(steps), signs @ whole, True
    sums = whole[:0] if not steps else np.array([0], whole.dtype)
    for step in whole:
        sums = np.concatenate([sums + step, sums - step])
    return sum(steps), sums, False


def _share(extreme: np.ndarray, drawn: bool) -> float:
    """The share of sign patterns that are as extreme; a drawn set counts the observed one, too."""
    if not len(extreme):
        return math.nan
    return (1 + int(extreme.sum())) / (1 + DRAWS) if drawn else float(extreme.mean())


@functools.cache
def detectable(n: int, level: float) -> float:
    """The smallest mean, in sd, that the two-sided t-test at `level` detects with 80 % power.

    Computed from the non-central F distribution, that of t squared, because scipy's non-central t
    gives NaN for some arguments.
    """
    if n < 2:
        return math.nan
    critical = float(stats.t.isf(level / 2, n - 1)) ** 2

    def lacking(size: float) -> float:
        return float(stats.ncf.sf(critical, 1, n - 1, n * size**2)) - POWER

    high = 1.0
    while lacking(high) < 0:
        high *= 2
    return float(optimize.brentq(lacking, 0, high, xtol=1e-10))


def correlation(x: Values, y: Values) -> float:
    """Pearson's correlation of x[S] and y[S]; NaN for fewer than two values or a constant side."""
    a, b = exact(x), exact(y)
    if len(set(a)) < 2 or len(set(b)) < 2:
        return math.nan
    mean_a, mean_b = sum(a) / len(a), sum(b) / len(b)
    products = sum((u - mean_a) * (v - mean_b) for u, v in zip(a, b, strict=True))
    squares = sum((u - mean_a) ** 2 for u in a) * sum((v - mean_b) ** 2 for v in b)
    return math.sqrt(products**2 / squares) * ((products > 0) - (products < 0))


def image_error(arm: np.ndarray, baseline: np.ndarray) -> float:
    """Standard error (pp) of the mean gap that the finite test set adds, whatever the seeds.

    Seeds and images are crossed, because the images are the same in every seed. The difference of
    seed s on image i is d[s, i] = mean + a[s] + b[i] + e[s, i], with independent terms of the
    variances A, B and E: what a seed changes on all images, how images differ in all seeds, and
    what a seed changes on one image. The mean over both has the variance A/S + B/I + E/(S I). The
    means of seeds vary by A + E/I, so their interval holds A/S + E/(S I) already, and B/I is what
    the test set adds.

    B by the method of moments (two-way random effects without replication: Searle, Casella and
    McCulloch, Variance Components, 1992, chapter 4). With r[s, i] = d[s, i] - mean_i d[s, :] -
    mean_s d[:, i] + mean d, in which neither a nor b is left,

      sum r^2 / ((S - 1)(I - 1)) has the expectation E, and
      the variance over images of mean_s d[:, i] has the expectation B + E/S,

    so B is the second minus the first / S. A negative result counts as 0.

    >>> arm, baseline = [[1, 1, 1, 0], [0, 0, 0, 0]], [[0, 0, 0, 0], [0, 0, 0, 1]]
    >>> image_error(np.array(arm), np.array(baseline))  # r = 0: images vary by 1/4, sqrt(1/4 / 4)
    25.0

    Args:
      arm, baseline: [S, I] bool, whether each test image was classified correctly.

    Returns:
      The standard error; NaN for fewer than two seeds or images, which cannot separate the terms.
    """
    seeds, images = arm.shape
    if seeds < 2 or images < 2:
        return math.nan
    d = arm.astype(np.int64) - baseline.astype(np.int64)
    of_image, of_seed = d.sum(0), d.sum(1)

    def squares(sums: np.ndarray, terms: int) -> Fraction:  # around the mean of d, and exact
        return Fraction(int((sums**2).sum()), terms) - Fraction(int(d.sum()) ** 2, d.size)

    between = squares(of_image, seeds)
    rest = squares(d, 1) - between - squares(of_seed, images)
    variance = between / seeds / (images - 1) - rest / (seeds - 1) / (images - 1) / seeds
    return 100 * math.sqrt(max(variance, 0) / images)
