"""Trends and family differences agree with numbers by hand and with scipy, seed by seed."""

import math
from fractions import Fraction

import numpy as np
import pytest
from scipy import stats
from study_analysis_cases import HASH, cells, diverged, row, study

from moe_vision.study import types
from moe_vision.study.analysis import analyse, contrasts, statistics

pytestmark = pytest.mark.filterwarnings('error')  # undefined values are not computed

RHO = {'low': 0.1, 'mid': 0.3, 'high': 0.5}
GAPS = {  # images of 1000 by which each arm is better than dense, per seed
    'low': [-10, -20, 0, -10, -20, -30],
    'mid': [10, 0, 20, 10, 0, 10],
    'high': [20, 30, 40, 10, 20, 10],
}
CHANGES = [3, 5, 4, 2, 4, 4]  # pp, by hand: at equal distances of ρ the line ends are high - low


def arm(counts, rho, **changes):
    """Rows with so many images more than 900 right."""
    return [
        row(900 + c, result={'rho_place': rho, 'rho_active': rho and rho / 2}, **changes)
        for c in counts
    ]


def rows(gaps=None, rho=None):
    gaps, rho = gaps or GAPS, rho or RHO
    arms = {name: arm(counts, rho[name]) for name, counts in gaps.items()}
    return cells(**arms, dense=[900] * len(next(iter(gaps.values()))))


def record(trends=None, differences=None, gaps=None, primary=(), **more):
    names = list(gaps or GAPS)
    return study(
        {n: (n, 'dense', 'none', n in primary) for n in names},
        (*names, 'dense'),
        tuple(range(6)),
        trends={n: types.Trend(*t) for n, t in (trends or {}).items()},
        family_differences={n: types.FamilyDifference(*d) for n, d in (differences or {}).items()},
        **more,
    )


TREND = (('low', 'mid', 'high'), 'rho_place', 'positive', True)


def test_the_weights_of_a_line_by_hand():
    """x = 0, 1, 3: mean 4/3, sum of squares 14/3, range 3; w = 3 (x - 4/3) / (14/3)."""
    weights = contrasts.slope_weights([0, 1, 3])
    assert weights == (Fraction(-6, 7), Fraction(-3, 14), Fraction(15, 14))
    assert contrasts.slope_weights([0.1, 0.3, 0.5]) == (-1, 0, 1)
    assert contrasts.slope_weights([0.2, 0.4]) == (-1, 1)
    for x in ([0.3, 0.3], [0.1, math.nan], [0.1, math.inf], [1e-15, 2e-15]):
        assert contrasts.slope_weights(x) == ()


def test_a_trend_is_the_change_of_a_line_through_the_gaps_of_each_seed():
    analysis = analyse.analyse(record({'along': TREND}), HASH, rows())
    trend = analysis.contrasts['along']
    assert trend.estimate.values == tuple(CHANGES) and trend.seeds == (0, 1, 2, 3, 4, 5)
    wanted = stats.ttest_1samp(CHANGES, 0)
    assert trend.p == trend.p_holm == pytest.approx(wanted.pvalue)
    assert (trend.estimate.low, trend.estimate.high) == pytest.approx(
        tuple(wanted.confidence_interval(0.95))
    )
    assert trend.p_sign_flip == 2 / 64 and trend.verdict == 'positive' and trend.doubt == ''
    assert trend.mde == pytest.approx(statistics.detectable(6, 0.05) * np.std(CHANGES, ddof=1))
    assert trend.effect_size == pytest.approx(np.mean(CHANGES) / np.std(CHANGES, ddof=1))
    assert trend.x == (0.1, 0.3, 0.5) and trend.confirms
    assert trend.arms == ('low', 'dense', 'mid', 'high')
    means = [np.mean(g) / 10 for g in GAPS.values()]
    line = stats.linregress(list(RHO.values()), means)
    for x in (0.1, 0.37, 0.5):
        assert trend.fitted(x) == pytest.approx(line.intercept + line.slope * x)


@pytest.mark.parametrize('column, scale', [('rho_place', 1), ('rho_active', 0.5)])
def test_a_trend_at_other_places_of_rho_agrees_with_linregress(column, scale):
    rho = {'low': 0.05, 'mid': 0.2, 'high': 0.7}
    declared = (('low', 'mid', 'high'), column, 'none', False)
    analysis = analyse.analyse(record({'along': declared}), HASH, rows(rho=rho))
    x = [scale * v for v in rho.values()]
    wanted = [
        stats.linregress(x, [g[s] / 10 for g in GAPS.values()]).slope * (x[-1] - x[0])
        for s in range(6)
    ]
    trend = analysis.contrasts['along']
    assert trend.estimate.values == pytest.approx(wanted, abs=1e-9)
    assert trend.x == pytest.approx(x) and not trend.confirms and math.isnan(trend.p_holm)


def test_a_primary_trend_is_one_of_the_family_of_primary_comparisons():
    declared = record({'along': TREND}, primary=('low', 'mid'))
    analysis = analyse.analyse(declared, HASH, rows())
    primary = [analysis.gaps['low'], analysis.gaps['mid'], analysis.contrasts['along']]
    p = [stats.ttest_1samp(np.array(v) / 10, 0).pvalue for v in (GAPS['low'], GAPS['mid'])]
    p.append(stats.ttest_1samp(CHANGES, 0).pvalue)
    assert [f.p_holm for f in primary] == pytest.approx(statistics.holm(p, 0.05).adjusted)
    assert analysis.levels[0] == pytest.approx(1 - 0.05 / 3)
    assert [f.outer.level for f in primary] == [analysis.levels[0]] * 3
    alone = analyse.analyse(record(primary=('low', 'mid')), HASH, rows())
    assert alone.gaps['low'].mde < analysis.gaps['low'].mde  # the trend is a third test


def test_a_pattern_may_name_a_trend():
    patterns = {'both': ('high', 'along')}
    declared = record({'along': TREND}, primary=('high',), patterns=patterns)
    declared['comparisons']['high']['expected'] = 'positive'
    (pattern,) = analyse.analyse(declared, HASH, rows()).patterns
    assert pattern.supported and pattern.verdicts == ('positive', 'positive')
    declared['trends']['along']['expected'] = 'negative'
    assert not analyse.analyse(declared, HASH, rows()).patterns[0].supported


FAMILIES = {  # means of both differences, by hand: 1, 0, -1, 0, 1, -1 images
    'a_1': [10, 20, 30, 20, 10, 20],
    'b_1': [9, 21, 31, 19, 9, 22],
    'a_2': [40, 30, 20, 30, 40, 30],
    'b_2': [39, 29, 21, 31, 39, 30],
}
SAME = ((('a_1', 'b_1'), ('a_2', 'b_2')), 'equivalent', True)
AT = {'a_1': 0.2, 'b_1': 0.201, 'a_2': 0.5, 'b_2': 0.49}


def test_a_family_difference_is_the_mean_over_pairs_of_differences_of_gaps():
    declared = record(differences={'family': SAME}, gaps=FAMILIES)
    found = analyse.analyse(declared, HASH, rows(FAMILIES, AT)).contrasts['family']
    values = [0.1, 0, -0.1, 0, 0.1, -0.1]  # pp
    assert found.estimate.values == pytest.approx(values)
    assert found.verdict == 'equivalent' and found.flags == () and found.confirms
    each = [
        stats.ttest_1samp(values, m, alternative=way).pvalue
        for m, way in ((-1, 'greater'), (1, 'less'))
    ]
    assert found.p_tost == pytest.approx(max(each))
    narrow = record(differences={'family': SAME}, gaps=FAMILIES, margin=0.05)
    found = analyse.analyse(narrow, HASH, rows(FAMILIES, AT)).contrasts['family']
    assert found.p > 0.9 and found.verdict == 'inconclusive'  # a large p shows nothing


def test_pairs_at_another_rho_are_named():
    declared = record(differences={'family': SAME}, gaps=FAMILIES)
    found = analyse.analyse(declared, HASH, rows(FAMILIES, AT | {'b_2': 0.3})).contrasts['family']
    assert found.flags == ('ρ differs: 0.5 in a_2 and 0.3 in b_2',)


def test_seeds_that_a_comparison_lacks_are_left_out():
    made = rows()
    del made['mid'][4], made['dense'][1]
    made['low'][4] = diverged()
    trend = analyse.analyse(record({'along': TREND}), HASH, made).contrasts['along']
    assert trend.seeds == (0, 2, 3, 5)
    assert trend.estimate.values == tuple(CHANGES[s] for s in trend.seeds)
    assert trend.flags == ('exploratory: only 4 of 6 registered seeds have all runs',)
    assert trend.primary and not trend.confirms and trend.diverged == 0


def test_a_diverged_run_scores_chance_and_shows_no_equivalence():
    made = rows(FAMILIES, AT)
    for lost in ('a_1', 'b_1', 'a_2', 'b_2'):
        made[lost][2] = diverged(result={'rho_place': AT[lost]})
    declared = record(differences={'family': SAME}, gaps=FAMILIES)
    found = analyse.analyse(declared, HASH, made).contrasts['family']
    assert found.estimate.values[2] == 0 and found.diverged == 4  # chance minus chance
    assert found.without_diverged.values == pytest.approx((0.1, 0, 0, 0.1, -0.1))
    assert found.p_tost >= statistics.tost(found.without_diverged.values, 1)
    assert (
        found.note == 'a run diverged (seed 2): an equivalence must also hold without these seeds'
    )
    for seed in range(1, 6):
        made['a_1'][seed] = made['b_1'][seed] = diverged(result={'rho_place': 0.2})
    found = analyse.analyse(declared, HASH, made).contrasts['family']
    assert found.verdict == 'inconclusive' and math.isnan(found.p_tost)
    trend = analyse.analyse(record({'along': TREND}), HASH, rows() | {'high': made['a_1']})
    assert trend.contrasts['along'].diverged == 5


def test_rows_of_another_registration_confirm_no_trend():
    made = rows()
    made['mid'][3]['preregistration'] = 'b' * 64
    made['mid'][2]['device'] = 'NVIDIA H200'
    trend = analyse.analyse(record({'along': TREND}), HASH, made).contrasts['along']
    assert not trend.confirms and trend.flags == (
        'exploratory: mid: rows of another pre-registration (mid seed 3)',
        'mid: device differs: NVIDIA H200 and cpu (seed 2)',
    )


@pytest.mark.parametrize(
    'rho', [dict.fromkeys(RHO, 0.3), RHO | {'mid': None}, dict.fromkeys(RHO, 1e-15)]
)
def test_without_two_known_places_there_is_no_slope(rho):
    trend = analyse.analyse(record({'along': TREND}), HASH, rows(rho=rho)).contrasts['along']
    assert (trend.verdict, trend.note) == (
        'inconclusive',
        'no seed that all comparisons have: no test',
    )
    assert trend.seeds == () and math.isnan(trend.estimate.mean)
    assert 'no slope: ρ is unknown for a comparison, or the same for all' in trend.flags


def test_figures_suggest_contrasts_that_are_called_unregistered():
    figure = types.Figure('gap_against_rho', 'x', {'a': ('a_1', 'a_2'), 'b': ('b_1', 'b_2')})
    declared = record(gaps=FAMILIES, figures=(figure,))
    (found,) = analyse.analyse(declared, HASH, rows(FAMILIES, AT)).contrasts.values()
    assert found.name == 'a − b' and found.estimate.values == pytest.approx(
        (0.1, 0, -0.1, 0, 0.1, -0.1)
    )
    assert found.remarks == ['exploratory: not registered'] and not found.confirms
    apart = AT | {'b_1': 0.3, 'b_2': 0.3}
    assert not analyse.analyse(declared, HASH, rows(FAMILIES, apart)).contrasts
    line = types.Figure('gap_against_rho', 'x', {'one': ('low', 'mid', 'high')})
    declared = record(figures=(line,))
    (trend,) = analyse.analyse(declared, HASH, rows()).contrasts.values()
    assert trend.estimate.values == tuple(CHANGES) and trend.name == 'one along ρ'
    registered = record({'along': TREND}, figures=(line,))
    assert list(analyse.analyse(registered, HASH, rows()).contrasts) == ['along']


def test_equal_changes_have_no_spread_and_no_test():
    made = rows({'low': [0] * 6, 'mid': [10] * 6, 'high': [20] * 6})
    trend = analyse.analyse(record({'along': TREND}), HASH, made).contrasts['along']
    assert trend.estimate.sd == 0 and trend.verdict == 'inconclusive'
    assert trend.note == 'sd = 0: +2.00 pp in every seed, so no t-test; see the sign-flip p'
    flat = rows(dict.fromkeys(RHO, [5] * 6))
    trend = analyse.analyse(record({'along': TREND}), HASH, flat).contrasts['along']
    assert trend.note == 'sd = 0: a value of 0 in every seed, so no test'


def points(*accuracies):
    return [{'step': i, 'accuracy': a, 'layers': {}} for i, a in enumerate(accuracies)]


def test_a_study_on_validation_compares_the_last_points_of_curves():
    """By hand: 91, 92, 95 % against 90 % in each seed; test accuracies say the opposite."""
    moe = [row(100, curve=points(0.2, v)) for v in (0.91, 0.92, 0.95)]
    dense = [row(900, curve=points(0.99, 0.9)) for _ in range(3)]
    declared = study({'gap': ('moe', 'dense', 'positive', True)}, metric='validation_accuracy')
    analysis = analyse.analyse(declared, HASH, cells(moe=moe, dense=dense))
    gap = analysis.gaps['gap']
    assert gap.arm_values == (91, 92, 95) and gap.estimate.values == (1, 2, 5)
    assert analysis.arms['moe'].values == (91, 92, 95) and analysis.split == 'validation'
    assert math.isnan(gap.image_error) and gap.selected.n == 0
    assert gap.cost == 1 and all(map(math.isnan, analysis.arms['moe'].unbounded))
    assert analysis.rows['moe'][0]['correct']  # rows stay as they were read


@pytest.mark.parametrize('curve', [[], points(0.9, None), points(0.9, 7.0)])
def test_a_run_without_a_validation_accuracy_counts_as_chance(curve):
    made = cells(moe=[row(900, curve=curve)] * 3, dense=[row(900, curve=points(0.8))] * 3)
    declared = study({'gap': ('moe', 'dense', 'none', True)}, metric='validation_accuracy')
    analysis = analyse.analyse(declared, HASH, made)
    assert analysis.gaps['gap'].arm_values == (10, 10, 10)
    assert analysis.arms['moe'].diverged == (0, 1, 2)
    assert analysis.problems == (
        'arm moe: seeds 0, 1, 2: no validation accuracy after the last step; it counts as chance',
    )
