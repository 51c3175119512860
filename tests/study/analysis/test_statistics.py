"""Statistics agree with hand-computed numbers and scipy's own tests, and have their properties."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from scipy import stats

from moe_vision.study.analysis import statistics

NAN = float('nan')
pytestmark = pytest.mark.filterwarnings('error')  # undefined values are not computed


def samples(sizes=(2, 3, 5, 8, 12), seed=0):
    rng = np.random.default_rng(seed)
    return [rng.normal(rng.normal(0, 0.5), 0.3, n) for n in sizes]


def test_three_seeds_by_hand():
    # mean 2, sd 1, t = 2 sqrt 3; with 2 degrees of freedom P(|T| > t) = 1 - t / sqrt(t^2 + 2)
    result = statistics.estimate([1, 2, 3], 0.95)
    assert result.values == (1, 2, 3)
    assert (result.n, result.mean, result.sd, result.level) == (3, 2, 1, 0.95)
    assert (result.low, result.high) == pytest.approx((2 - 2.48414, 2 + 2.48414), abs=1e-5)
    assert statistics.effect_size([1, 2, 3]) == 2
    assert statistics.t_test([1, 2, 3]) == pytest.approx(1 - math.sqrt(12 / 14))
    assert statistics.tost([1, 2, 3], 5) == pytest.approx((1 - math.sqrt(27 / 29)) / 2)
    assert statistics.sign_flip([1, 2, 3]) == 2 / 8


def test_two_seeds_by_hand():
    # mean 2, standard error 1; t with 1 degree of freedom is Cauchy
    assert statistics.t_test([1, 3]) == pytest.approx(1 - 2 / math.pi * math.atan(2))
    assert statistics.tost([1, 3], 1) == pytest.approx(0.5 + math.atan(1) / math.pi)
    result = statistics.estimate([1, 3], 0.5)  # the quartiles of Cauchy are -1 and 1
    assert (result.low, result.high) == pytest.approx((1, 3))


@pytest.mark.parametrize('values', samples(), ids=len)
def test_agree_with_scipy(values):
    expected = stats.ttest_rel(values + 1, np.ones_like(values))
    interval = expected.confidence_interval(0.97)
    result = statistics.estimate(values, 0.97)
    assert statistics.t_test(values) == pytest.approx(expected.pvalue, rel=1e-9)
    assert (result.low, result.high) == pytest.approx((interval.low, interval.high), abs=1e-9)
    assert result.sd == pytest.approx(values.std(ddof=1))
    flips = stats.permutation_test(
        (values,), np.mean, permutation_type='samples', n_resamples=np.inf, vectorized=False
    )
    assert statistics.sign_flip(values) == pytest.approx(flips.pvalue, abs=1e-12)
    low = stats.ttest_1samp(values, -0.4, alternative='greater').pvalue
    high = stats.ttest_1samp(values, 0.4, alternative='less').pvalue
    assert statistics.tost(values, 0.4) == pytest.approx(max(low, high), rel=1e-9)


@pytest.mark.parametrize('values', samples(seed=1), ids=len)
def test_signs_order_and_shift(values):
    for test in (statistics.t_test, statistics.sign_flip, lambda v: statistics.tost(v, 0.3)):
        assert test(-values) == pytest.approx(test(values), rel=1e-9)
        assert test(values[::-1]) == test(values)
    # "mean >= margin" is "mean of (values - margin) >= 0": half the two-sided p where it is below
    shifted = values - values.min() + 1
    assert statistics.tost(shifted, 0.1) == pytest.approx(
        1 - statistics.t_test(shifted - 0.1) / 2, rel=1e-9
    )


def test_tost_is_the_interval_within_the_margin():
    seen = set()
    for values in samples((2, 3, 5, 8) * 20, seed=2):
        for alpha in (0.05, 0.0125):
            result = statistics.estimate(values, 1 - 2 * alpha)
            within = -0.5 < result.low and result.high < 0.5
            assert (statistics.tost(values, 0.5) <= alpha) == within
            seen.add(within)
    assert seen == {True, False}


@pytest.mark.parametrize('values', [[0.3 - 0.2, 0.1, 0.1], [Fraction(1, 3)] * 3, [0.0] * 3])
def test_equal_gaps_have_sd_0_and_no_test(values):
    result = statistics.estimate(values, 0.95)
    assert result.sd == 0 and result.mean == pytest.approx(float(values[1]), abs=1e-12)
    for nothing in (
        result.low,
        result.high,
        statistics.t_test(values),
        statistics.tost(values, 1),
        statistics.effect_size(values),
    ):
        assert math.isnan(nothing)
    assert statistics.sign_flip(values) == (0.25 if values[0] else 1)


@pytest.mark.parametrize(
    'value, shown',
    [
        (math.inf, 'inf'),
        (-math.inf, '-inf'),
        (NAN, 'nan'),
        (np.float32('inf'), 'inf'),
        (10**400, 'too large'),
        (Fraction(10**400, 3), 'too large'),
    ],
)
def test_what_is_no_finite_number_is_named(value, shown):
    for test in (
        statistics.exact,
        statistics.t_test,
        statistics.sign_flip,
        lambda v: statistics.estimate(v, 0.95),
        lambda v: statistics.tost(v, 1),
        lambda v: statistics.correlation(v, [1, 2]),
    ):
        with pytest.raises(ValueError, match=f'^value 1 is {shown}; statistics need finite'):
            test([0.5, value])


def test_exact_takes_every_kind_of_finite_number():
    kinds = [0.1 + 0.2, np.float64(0.3), Fraction(3, 10)]
    assert statistics.exact(kinds) == [Fraction(3, 10)] * 3
    whole = statistics.exact([np.int64(3), np.float32(3), 3, True])
    assert whole == [3, 3, 3, 1] and statistics.exact([]) == []
    assert statistics.exact([1.5e308, 5e-324]) == [Fraction(1.5e308), 0]


@pytest.mark.parametrize('scale', [1.0, 1e-6, 1e150, 1e300, 10**300])
def test_the_scale_of_gaps_changes_no_test(scale):
    values = [scale * v for v in (1, 2, 4)]
    assert statistics.t_test(values) == pytest.approx(statistics.t_test([1, 2, 4]))
    assert statistics.effect_size(values) == pytest.approx(statistics.effect_size([1, 2, 4]))
    assert statistics.sign_flip(values) == 0.25
    assert statistics.tost(values, 3 * scale) == pytest.approx(statistics.tost([1, 2, 4], 3))
    assert statistics.sign_flip_tost(values, 3 * scale) == statistics.sign_flip_tost([1, 2, 4], 3)
    assert statistics.correlation(values, [1, 2, 4]) == pytest.approx(1)
    assert statistics.correlation(values, [4, 2, 1]) < 0


def test_one_value_and_none():
    one, none = statistics.estimate([1.5], 0.9), statistics.estimate([], 0.9)
    assert (one.n, one.mean, none.n) == (1, 1.5, 0)
    for nothing in (
        one.sd,
        one.low,
        one.high,
        none.mean,
        none.sd,
        none.low,
        none.high,
        statistics.t_test([1.5]),
        statistics.tost([], 1),
        statistics.sign_flip([]),
    ):
        assert math.isnan(nothing)
    assert statistics.sign_flip([1.5]) == 1


@pytest.mark.parametrize(
    'values, p',
    [
        ([1, 1, -1], 1),  # every pattern has |sum| >= 1
        ([2, 1, 1], 2 / 8),
        ([1, 1, 1, -1], 10 / 16),  # |sum| is 4 in 2 patterns, 2 in 8, 0 in 6
        ([0, 0, 5], 1),
        ([0.3, 0.1 + 0.2, -0.3, 0.6], 8 / 16),  # in units of 0.3, |sum| is 5 in 2 patterns, 3 in 6
        ([1] * 5, 0.0625),
        ([1] * 6, 0.03125),
        ([-1] * 8, 0.0078125),
        ([1] * 20, 2**-19),
    ],
)
def test_sign_flip_by_counting(values, p):
    assert statistics.sign_flip(values) == p


@pytest.mark.parametrize(
    'values, margin, p',
    [
        ([0, 0, 0], 1, 1 / 8),  # 1, 1, 1 on both sides: only the observed signs give 3
        ([0, 0, 0, 0, 0], 1, 1 / 32),
        ([1, 0, 0], 2, 1 / 8),  # from the upper margin: 1, 2, 2
        ([3, 0, 0], 2, 2 / 8),  # from the upper margin: -1, 2, 2, whose signs give 5 and 3
        ([0, 0], 0, 1),
    ],
)
def test_equivalence_by_sign_flips_by_counting(values, margin, p):
    found = statistics.sign_flip_tost(values, margin)
    by_hand = []
    for side in (1, -1):
        moved = [side * v + margin for v in values]
        sums = [
            sum(s * m for s, m in zip(signs, moved, strict=True))
            for signs in itertools.product((1, -1), repeat=len(values))
        ]
        by_hand.append(sum(x >= sum(moved) for x in sums) / len(sums))
    assert found == max(by_hand) == p
    assert statistics.sign_flip_tost([-v for v in values], margin) == found


@pytest.mark.parametrize('n, p', [(1, 1), (3, 0.25), (5, 0.0625), (6, 0.03125), (8, 0.0078125)])
def test_the_smallest_attainable_p_is_that_of_equal_signs(n, p):
    assert statistics.attainable(n) == p == statistics.sign_flip([1] * n)
    assert statistics.sign_flip_tost([0] * n, 1) == p / 2
    assert math.isnan(statistics.attainable(0)) and math.isnan(statistics.sign_flip_tost([], 1))


def test_sign_flip_with_many_seeds_is_drawn_and_repeatable():
    values = np.random.default_rng(3).normal(0.5, 1, 24)
    p = statistics.sign_flip(values)
    assert p == statistics.sign_flip(values)
    assert p == pytest.approx(statistics.t_test(values), abs=0.01)
    assert statistics.sign_flip([1] * 40) == 1 / (1 + statistics.DRAWS)


def test_sign_flip_of_large_numbers_does_not_overflow():
    assert statistics.sign_flip([2**62, 2**62, 2**62]) == 0.25


def test_holm_by_hand():
    result = statistics.holm([0.01, 0.04, 0.03, 0.005], 0.05)
    assert result.adjusted == pytest.approx((0.03, 0.06, 0.06, 0.02))
    assert result.rejected == (True, False, False, True)
    # ranks 2, 4, 3, 1 of 4: 0.05/3, then stopped at the third at 0.05/2, 0.05/4
    assert result.level == pytest.approx((0.05 / 3, 0.025, 0.025, 0.0125))


def test_false_discovery_by_hand():
    """Of 0.005, 0.01, 0.03, 0.04: times 4/1, 4/2, 4/3, 4/4, then the least of all from there on."""
    q = statistics.false_discovery([0.01, 0.04, 0.03, 0.005])
    assert q == pytest.approx([0.02, 0.04, 0.04, 0.02])
    assert statistics.false_discovery([0.04, 0.01]) == pytest.approx([0.04, 0.02])
    with_gap = statistics.false_discovery([0.01, NAN])  # which keeps its place: 0.01 * 2
    assert with_gap[0] == pytest.approx(0.02) and math.isnan(with_gap[1])
    assert statistics.false_discovery([]) == []


def test_holm_with_ties_does_not_depend_on_their_order():
    assert statistics.holm([0.01, 0.01], 0.05).level == (0.025, 0.025)
    assert statistics.holm([0.03, 0.03], 0.05).rejected == (False, False)
    assert statistics.holm([0.03, 0.03], 0.05).adjusted == (0.06, 0.06)
    p = [0.01, 0.2, 0.01, 0.2, 0.001]
    result, back = statistics.holm(p, 0.05), statistics.holm(p[::-1], 0.05)
    assert result.level == back.level[::-1] and result.adjusted == back.adjusted[::-1]


def test_holm_keeps_the_place_of_a_test_that_could_not_be_made():
    result = statistics.holm([0.02, NAN, 0.001], 0.05)
    assert result.adjusted[0] == pytest.approx(0.04) and result.adjusted[2] == pytest.approx(0.003)
    assert math.isnan(result.adjusted[1])
    assert result.rejected == (True, False, True)
    assert result.level == pytest.approx((0.025, 0.05, 0.05 / 3))
    assert statistics.holm([], 0.05).adjusted == ()
    assert statistics.holm([NAN, NAN], 0.05).level == (0.025, 0.025)


def test_holm_level_and_adjusted_p_agree_and_errors_are_rare():
    rng = np.random.default_rng(4)
    wrong = 0
    for p in rng.uniform(size=(2000, 4)):
        result = statistics.holm(p, 0.05)
        wrong += any(result.rejected)
        for value, adjusted, rejected, level in zip(
            p, result.adjusted, result.rejected, result.level, strict=True
        ):
            assert rejected == (adjusted <= 0.05) == (value <= level)
    assert wrong / 2000 == pytest.approx(0.05, abs=0.015)


@pytest.mark.parametrize(
    'n, at_5, at_1',
    [(3, 3.27, 6.55), (5, 1.69, 2.48), (8, 1.16, 1.54), (10, 1.00, 1.29), (20, 0.67, 0.82)],
)
def test_detectable_gap_is_that_of_the_table(n, at_5, at_1):
    """Rounded up, so that the power is at least 80 %, at 0.05 and at 0.05 / 4."""
    for level, expected in ((0.05, at_5), (0.0125, at_1)):
        size = statistics.detectable(n, level)
        assert math.ceil(100 * size) / 100 == expected
        critical = stats.t.isf(level / 2, n - 1)
        assert stats.nct.sf(critical, n - 1, size * math.sqrt(n)) == pytest.approx(0.8, abs=1e-4)


def test_detectable_gap_is_found_that_often():
    rng = np.random.default_rng(5)
    draws = rng.normal(statistics.detectable(5, 0.05), 1, (4000, 5))
    assert (stats.ttest_1samp(draws, 0, axis=1).pvalue < 0.05).mean() == pytest.approx(
        0.8, abs=0.02
    )
    assert statistics.detectable(2, 0.05 / 40) > 100
    assert math.isnan(statistics.detectable(1, 0.05))


def test_correlation():
    rng = np.random.default_rng(6)
    x, y = rng.normal(size=(2, 7))
    assert statistics.correlation(x, y) == pytest.approx(stats.pearsonr(x, y)[0])
    assert statistics.correlation([1, 2, 3], [6, 4, 2]) == -1
    assert math.isnan(statistics.correlation([0.1 + 0.2, 0.3, 0.3], [1, 2, 3]))
    assert math.isnan(statistics.correlation([1], [1]))


@pytest.mark.parametrize('seeds', [2, 5])
def test_image_error_where_all_seeds_agree_is_that_of_the_discordant_counts(seeds):
    arm = np.array([[1] * 90 + [1] * 5 + [0] * 2 + [0] * 3], bool).repeat(seeds, 0)
    baseline = np.array([[1] * 90 + [0] * 5 + [1] * 2 + [0] * 3], bool).repeat(seeds, 0)
    by_hand = 100 * math.sqrt(5 + 2 - (5 - 2) ** 2 / 100) / 100  # with I, not I - 1
    assert statistics.image_error(arm, baseline) == pytest.approx(by_hand * math.sqrt(100 / 99))
    assert statistics.image_error(arm, arm) == 0


def test_image_error_by_hand_of_two_seeds_on_three_images():
    arm = np.array([[1, 1, 0], [1, 0, 0]], bool)
    # differences 1 1 0 and 1 0 0: means 1, 1/2, 0 vary by 1/4. Without the means of seeds, 2/3 and
    # 1/3, and of images, what is left is -1/6 1/3 -1/6 and its opposite: 12/36 in all, over 1 * 2
    wanted = 100 * math.sqrt((1 / 4 - (12 / 36 / 2) / 2) / 3)
    assert statistics.image_error(arm, np.zeros_like(arm)) == pytest.approx(wanted)
    for few in (arm[:1], arm[:, :1], arm[:0]):
        assert math.isnan(statistics.image_error(few, few))


@pytest.mark.parametrize(
    'differences, wanted',
    [
        ([[1, 1, 1, 0], [0, 0, 0, -1]], 25.0),  # rows differ by 1 everywhere: only images vary
        ([[1, 0, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0]], 25.0),  # all seeds agree: 1/4 over 4 images
        ([[1, 1], [0, 0]], 0.0),  # only seeds vary
        ([[1, 0], [0, 1]], 0.0),  # only seeds on images vary: negative, so 0
        # means 1, 1/2, 0, 0 vary by 11/48; left are -1/8 3/8 -1/8 -1/8 and its opposite: 3/8, over
        # 1 * 3: 1/8. So (11/48 - 1/16) / 4 = 1/24
        ([[1, 1, 0, 0], [1, 0, 0, 0]], 100 / math.sqrt(24)),
    ],
)
def test_image_error_by_hand_of_crossed_seeds_and_images(differences, wanted):
    d = np.array(differences)
    assert statistics.image_error(d > 0, d < 0) == pytest.approx(wanted)
    assert statistics.image_error(d < 0, d > 0) == pytest.approx(wanted)


@pytest.mark.parametrize('seeds, by_seed', [(2, 0.0), (2, 0.3), (5, 0.3)])
def test_image_error_is_the_spread_over_test_sets_whatever_seeds_change(seeds, by_seed):
    """Over many test sets of the same seeds, the squared error has the variance of the mean gap."""
    rng = np.random.default_rng(8)
    images, sets = 200, 400
    found, means = [], []
    for _ in range(sets):
        rate = np.where(rng.random((1, images)) < 0.5, 0.6, 0.3)  # images vary by 0.15^2
        seed = by_seed * np.linspace(-1, 1, seeds)[:, None]
        right = rng.random((seeds, images)) < rate + seed
        found.append(statistics.image_error(right, np.zeros_like(right)))
        means.append(100 * right.mean())
    rates = np.array([0.6, 0.3])[:, None] + by_seed * np.linspace(-1, 1, seeds)
    one_image = (rates * (1 - rates)).mean()
    true = 100**2 * 0.15**2 / images
    assert np.mean(np.square(found)) == pytest.approx(true, rel=0.1)
    assert np.var(means) == pytest.approx(true + 100**2 * one_image / seeds / images, rel=0.2)


@pytest.mark.parametrize('seeds', [2, 8, 64])
def test_image_error_holds_nothing_that_the_seeds_change(seeds):
    """Each image is right at its own rate in each arm; only the rates belong to the test set."""
    rng = np.random.default_rng(3)
    rates = np.where(rng.random((2, 1, 1000)) < 0.5, 0.95, 0.5)
    found = [statistics.image_error(*(rng.random((2, seeds, 1000)) < rates)) for _ in range(100)]
    true = 100 * (rates[0, 0] - rates[1, 0]).std(ddof=1) / math.sqrt(1000)
    assert np.mean(np.square(found)) == pytest.approx(true**2, rel=0.1)
    same = [statistics.image_error(*(rng.random((2, seeds, 1000)) < rates[0])) for _ in range(100)]
    noise = 100 * math.sqrt(2 * (rates[0] * (1 - rates[0])).mean() / 1000 / seeds)
    assert np.median(same) < 0.3 * noise
