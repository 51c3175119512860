"""The analysis of constructed rows agrees with numbers by hand and from scipy."""

import base64
import math
import subprocess
import sys
import typing
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from study_analysis_cases import HASH, IMAGES, VERSIONS, cells, diverged, row, study

from moe_vision.study import types
from moe_vision.study.analysis import analyse, statistics, verdicts

pytestmark = pytest.mark.filterwarnings('error')  # undefined values are not computed

PRIMARY = {'gap': ('moe', 'dense', 'positive', True)}


def judged(moe, dense, margin=1.0, expected='positive', primary=True, **more):
    """The gap of two arms with these counts per seed."""
    record = study(
        {'gap': ('moe', 'dense', expected, primary)},
        seeds=tuple(range(len(moe))),
        margin=margin,
        **more,
    )
    return analyse.analyse(record, HASH, cells(moe=moe, dense=dense)).gaps['gap']


def test_three_seeds_by_hand():
    gap = judged([910, 925, 935], [900, 905, 905])  # 1, 2, 3 pp
    assert gap.estimate.values == (1, 2, 3) and gap.seeds == (0, 1, 2)
    assert gap.arm_values == (91, 92.5, 93.5) and gap.baseline_values == (90, 90.5, 90.5)
    assert (gap.estimate.mean, gap.estimate.sd, gap.effect_size) == (2, 1, 2)
    assert gap.p == gap.p_holm == pytest.approx(1 - math.sqrt(12 / 14))
    assert gap.p_sign_flip == 0.25
    assert gap.verdict == 'inconclusive' and gap.note == '' and gap.flags == ()
    assert gap.estimate.level == 0.95
    assert gap.estimate.low == pytest.approx(2 - 2.48414, abs=1e-5)
    assert gap.mde == pytest.approx(3.2640, abs=1e-4)
    assert gap.correlation == pytest.approx(np.corrcoef(gap.arm_values, gap.baseline_values)[0, 1])
    assert gap.selected.n == 0 and gap.diverged == 0
    assert gap.without_diverged == gap.estimate


def test_each_verdict():
    base = [900] * 5
    assert judged([930, 931, 929, 930, 932], base).verdict == 'positive'
    assert judged([870, 871, 869, 870, 872], base).verdict == 'negative'
    assert judged([901, 899, 900, 902, 898], base).verdict == 'equivalent'
    assert judged([930, 870, 910, 890, 901], base).verdict == 'inconclusive'
    for counts, verdict in (  # 0.14 pp, significant, inside 1 pp
        ([901, 902, 901, 902, 901], 'positive, within the margin'),
        ([899, 898, 899, 898, 899], 'negative, within the margin'),
    ):
        gap = judged(counts, base)
        assert gap.verdict == verdict and gap.p < 0.05
        assert gap.note.startswith(
            f'differs from 0 (p = {gap.p_holm:.2g} by Holm) and lies within ±1 pp'
        )
    assert judged([901, 902, 901, 902, 901], base, margin=0.1).verdict == 'positive'


@pytest.mark.parametrize(
    'verdict, decides',
    [
        ('positive', 'positive'),
        ('negative', 'negative'),
        ('positive, within the margin', 'equivalent'),
        ('negative, within the margin', 'equivalent'),
        ('equivalent', 'equivalent'),
        ('inconclusive', 'inconclusive'),
    ],
)
def test_a_verdict_that_says_both_decides_what_equivalent_decides(verdict, decides):
    """So no registered expectation comes out otherwise than before the word said both."""
    assert verdict in typing.get_args(types.Outcome)
    assert verdicts.decided(verdict) == decides
    assert decides in typing.get_args(types.Verdict)


def test_a_pattern_that_expects_equivalence_is_met_by_a_small_gap():
    record = study(
        {'gap': ('moe', 'dense', 'equivalent', True)},
        seeds=tuple(range(5)),
        patterns={'all': ('gap',)},
    )
    rows = cells(moe=[901, 902, 901, 902, 901], dense=[900] * 5)
    analysis = analyse.analyse(record, HASH, rows)
    assert analysis.gaps['gap'].verdict == 'positive, within the margin'
    assert analysis.patterns[0].supported
    assert analysis.patterns[0].p == analysis.gaps['gap'].p_tost_holm
    record['comparisons']['gap']['expected'] = 'positive'  # which small gaps have never met
    assert not analyse.analyse(record, HASH, rows).patterns[0].supported


def spread(mean, seeds):
    """Counts around 900 + mean, two images apart and different, one per seed."""
    return [900 + mean + 2 * (i - seeds // 2) + (i == 0) for i in range(seeds)]


@pytest.mark.parametrize(
    'seeds, mean, primary, doubt',
    [
        (3, 40, 1, 'the sign rests on a t-test, because with 3 seeds'),
        (3, -40, 1, 'gives no p below 0.25'),
        (5, 40, 1, 'gives no p below 0.0625'),
        (6, 40, 1, ''),  # 2^-5 = 0.031 <= 0.05
        (6, 40, 2, 'gives no p below 0.03125'),  # Bonferroni's 0.025 for the first of two
        (8, 40, 4, ''),  # 2^-7 = 0.0078 <= 0.0125
        (3, 1, 1, 'that it is within the margin rests on a t-test'),
        (3, 1, 1, 'gives no p below 0.125'),  # one-sided
        (8, 0, 1, ''),
    ],
)
def test_a_verdict_is_sure_only_where_an_exact_test_can_confirm_it(seeds, mean, primary, doubt):
    names = [f'arm_{i}' for i in range(primary)]
    record = study(
        {n: (n, 'dense', 'none', True) for n in names}, (*names, 'dense'), tuple(range(seeds))
    )
    counts = {n: spread(mean, seeds) for n in names}
    gaps = analyse.analyse(record, HASH, cells(**counts, dense=[900] * seeds)).gaps
    for gap in gaps.values():
        assert gap.verdict != 'inconclusive'
        assert (doubt in gap.doubt) if doubt else gap.doubt == ''
        assert (gap.note == f'not sure: {gap.doubt}') if doubt else gap.note == ''


def test_a_verdict_that_the_sign_flip_test_does_not_confirm_is_not_sure():
    """One seed of six goes the other way: p of t is below 0.05, that of sign flips is not."""
    gap = judged([902, 902, 902, 902, 902, 899], [900] * 6, margin=0.05)
    assert gap.verdict == 'positive' and gap.p < 0.05 < gap.p_sign_flip
    assert gap.doubt == (
        f'the exact sign-flip test does not confirm the sign: p = {gap.p_sign_flip:.2g}, level 0.05'
    )
    both = judged([899, 898, 899, 897, 900, 897], [900] * 6)
    assert both.verdict == 'negative, within the margin'
    assert both.doubt.count('the sign') == (both.p_sign_flip > 0.05)
    assert judged([930, 870, 910, 890, 901], [900] * 5).doubt == ''  # nothing was decided


@pytest.mark.parametrize('primary, outer', [(0, 1 - 0.05 / 4), (1, 0.95), (2, 0.975), (4, 0.9875)])
def test_all_pictures_of_a_study_have_one_pair_of_levels(primary, outer):
    """Outer: the primary comparisons, or all if there are none, hold at once; inner: 90 %."""
    names = [f'arm_{i}' for i in range(4)]
    record = study(
        {n: (n, 'dense', 'none', i < primary) for i, n in enumerate(names)},
        (*names, 'dense'),
        tuple(range(5)),
    )
    counts = {n: spread(20 * i, 5) for i, n in enumerate(names)}
    analysis = analyse.analyse(record, HASH, cells(**counts, dense=[900, 901, 903, 904, 908]))
    assert analysis.levels == pytest.approx((outer, 0.9))
    for of in (*analysis.gaps.values(), *analysis.arms.values()):
        for drawn, level in zip((of.outer, of.inner), analysis.levels, strict=True):
            assert drawn == statistics.estimate(drawn.values, level)
    gap = analysis.gaps['arm_3']
    wanted = stats.ttest_rel(gap.arm_values, gap.baseline_values).confidence_interval(outer)
    assert (gap.outer.low, gap.outer.high) == pytest.approx(tuple(wanted))


def test_chance_against_chance_is_no_sign_of_equivalence():
    """Seven of eight pairs diverged on both sides, and the one that is left decides nothing."""
    lost = [diverged()] * 7
    gap = judged([901, *lost], [900, *lost])
    assert gap.verdict == 'inconclusive' and math.isnan(gap.p_tost)
    assert gap.note == (
        'both arms diverged (seeds 1, 2, 3, 4, 5, 6, 7): an equivalence must also '
        'hold without these pairs'
    )
    near, base = [901, 899, 900, 902, 898], [900] * 5
    whole, one_lost = judged(near, base), judged([*near, diverged()], [*base, diverged()])
    assert one_lost.verdict == 'equivalent' and one_lost.p_tost == whole.p_tost
    far = judged([930, 870, 910, *lost], [900, 900, 900, *lost])
    assert far.verdict == 'inconclusive' and far.p_tost > 0.05


def test_a_part_of_the_registered_seeds_confirms_nothing():
    moe, dense = [930, 931, 929, 930, 932], [900] * 5
    record = study(PRIMARY, seeds=tuple(range(8)), patterns={'all': ('gap',)})
    analysis = analyse.analyse(record, HASH, cells(moe=moe, dense=dense))
    gap = analysis.gaps['gap']
    assert gap.verdict == 'positive' and gap.primary
    assert gap.flags == ('exploratory: only 5 of 8 registered seeds have both runs',)
    assert not analysis.patterns[0].supported and math.isfinite(analysis.patterns[0].p)


def test_a_pattern_rests_on_tests():
    record = study(
        {'gap': ('moe', 'dense', 'equivalent', True)}, seeds=(0, 1), patterns={'all': ('gap',)}
    )
    analysis = analyse.analyse(record, HASH, cells(moe=[900, 910], dense=[900, 910]))
    assert analysis.gaps['gap'].verdict == 'equivalent'  # without a test: the same on every image
    assert math.isnan(analysis.patterns[0].p) and not analysis.patterns[0].supported


def test_swapping_the_arms_turns_the_sign_and_nothing_else():
    a, b = [930, 931, 925, 930], [900, 903, 899, 901]
    gap, back = judged(a, b), judged(b, a)
    assert (gap.verdict, back.verdict) == ('positive', 'negative')
    assert back.estimate.mean == -gap.estimate.mean and back.estimate.low == -gap.estimate.high
    for field in ('p', 'p_holm', 'p_sign_flip', 'p_tost', 'mde', 'correlation', 'image_error'):
        assert getattr(gap, field) == pytest.approx(getattr(back, field)), field


def test_interval_says_what_the_verdict_says():
    """Holds for random gaps in studies of four primary and two exploratory comparisons."""
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(60):
        names = [f'arm_{i}' for i in range(6)]
        counts = {
            n: 900
            + rng.normal(rng.choice([0, 8, -25, 3]), rng.choice([3, 9]), 6).round().astype(int)
            for n in names
        }
        record = study(
            {n: (n, 'dense', 'none', i < 4) for i, n in enumerate(names)},
            (*names, 'dense'),
            tuple(range(6)),
        )
        rows = cells(**counts, dense=rng.normal(900, 3, 6).round().astype(int))
        gaps = analyse.analyse(record, HASH, rows).gaps
        primary = [gaps[n] for n in names[:4]]
        adjusted = statistics.holm(
            [stats.ttest_rel(g.arm_values, g.baseline_values).pvalue for g in primary], 0.05
        ).adjusted
        assert [g.p_holm for g in primary] == pytest.approx(adjusted)
        others = [gaps[n] for n in names[4:]]
        found = statistics.false_discovery([g.p for g in others])
        assert [g.q for g in others] == found and all(math.isnan(g.q) for g in primary)
        for gap in gaps.values():
            e = gap.estimate
            seen.add(gap.verdict)
            excludes_0 = e.low > 0 or e.high < 0
            if verdicts.decided(gap.verdict) == 'equivalent':
                assert -1 < e.low and e.high < 1
                assert (gap.verdict != 'equivalent') == (
                    (gap.p_holm if gap.primary else gap.p) <= 0.05
                )
                assert gap.verdict == 'equivalent' or gap.verdict.startswith(
                    'positive' if e.mean > 0 else 'negative'
                )
            else:
                assert excludes_0 == (gap.verdict != 'inconclusive')
                assert gap.verdict == 'inconclusive' or (
                    (e.mean > 0) == (gap.verdict == 'positive')
                )
                assert (gap.p_tost_holm if gap.primary else gap.p_tost) > 0.05
    assert seen == set(typing.get_args(types.Outcome))


def test_levels_step_down_over_the_primary_comparisons_alone():
    arms = {
        'a': [930, 931, 929, 930, 932],
        'b': [910, 905, 912, 909, 911],
        'c': [902, 897, 909, 906, 894],
        'x': [910, 905, 912, 909, 911],
    }
    record = study(
        {n: (n, 'dense', 'none', n != 'x') for n in arms},
        (*arms, 'dense'),
        tuple(range(5)),
        margin=0.2,
    )
    gaps = analyse.analyse(record, HASH, cells(**arms, dense=[900] * 5)).gaps
    assert [gaps[n].verdict for n in arms] == ['positive', 'positive', 'inconclusive', 'positive']
    assert [gaps[n].estimate.level for n in arms] == pytest.approx(
        [1 - 0.05 / 3, 1 - 0.05 / 2, 0.95, 0.95]
    )
    assert gaps['a'].p_holm == pytest.approx(3 * gaps['a'].p)
    assert gaps['b'].p_holm == pytest.approx(2 * gaps['b'].p)
    assert math.isnan(gaps['x'].p_holm) and math.isnan(gaps['x'].p_tost_holm)
    assert gaps['x'].p == gaps['b'].p
    assert gaps['x'].flags == (
        'exploratory: not a primary comparison, judged at 0.05 without correction',
    )
    for name, level in (('a', 0.05 / 3), ('x', 0.05)):  # the smallest gap: by Bonferroni
        assert gaps[name].mde == pytest.approx(
            statistics.detectable(5, level) * gaps[name].estimate.sd
        )


def test_level_of_an_equivalent_verdict():
    counts = [901, 899, 900, 902, 898]
    record = study(
        {'a': ('moe', 'dense', 'none', True), 'b': ('lost', 'dense', 'none', True)},
        ('moe', 'dense', 'lost'),
        tuple(range(5)),
    )
    gaps = analyse.analyse(record, HASH, cells(moe=counts, dense=[900] * 5)).gaps
    assert gaps['a'].verdict == 'equivalent'
    assert gaps['a'].estimate.level == pytest.approx(1 - 2 * 0.05 / 2)  # two in the family
    assert gaps['a'].p_tost_holm == pytest.approx(2 * gaps['a'].p_tost)


IDENTICAL = 'sd = 0: identical on every test image in every seed, so no test'
EQUAL = 'sd = 0: equal accuracies in every seed, so no test'


@pytest.mark.parametrize(
    'moe, dense, verdict, note',
    [
        ([900, 910], [900, 910], 'equivalent', IDENTICAL),
        ([row(0, np.arange(IMAGES) >= 100), 910], [900, 910], 'inconclusive', EQUAL),
        ([row(900, correct=''), 910], [900, 910], 'inconclusive', EQUAL),
        (
            [903, 913, 703],
            [900, 910, 700],
            'inconclusive',
            'sd = 0: +0.30 pp in every seed, so no t-test; see the sign-flip p',
        ),
        (
            [diverged(), diverged()],
            [diverged(), diverged()],
            'inconclusive',
            'sd = 0: both arms diverged in every seed, so no test',
        ),
        ([910], [900], 'inconclusive', 'one pair of seeds: no test'),
        ([900], [900], 'inconclusive', 'one pair of seeds: no test'),
    ],
)
def test_no_spread_is_labelled_and_never_significant(moe, dense, verdict, note):
    gap = judged(moe, dense)
    assert (gap.verdict, gap.note) == (verdict, note)
    for value in (gap.p, gap.p_holm, gap.p_tost, gap.mde, gap.effect_size, gap.estimate.low):
        assert math.isnan(value)
    assert gap.p_sign_flip == (0.25 if len(moe) == 3 else 1)


def test_equal_gaps_are_seen_in_float32_shares():
    """0.9166667, 0.9138889 and so on: three images of 360 in every seed."""

    def share(count):
        return row(
            0, images=360, correct='', result={'test_accuracy': float(np.float32(count / 360))}
        )

    gap = judged([share(333), share(341), share(350)], [share(330), share(338), share(347)])
    assert gap.estimate.sd == 0 and gap.estimate.values == (pytest.approx(300 / 360),) * 3
    # an accuracy that is not a whole number of images stays as it is
    odd = judged([row(0, correct='', result={'test_accuracy': 0.91234567})] * 2, [900, 900])
    assert odd.estimate.mean == pytest.approx(1.234567)


@pytest.mark.parametrize('bad', [None, float('nan'), 'missing', 1e307, -0.1, 2])
def test_diverged_run_scores_chance(bad):
    lost = row(900)
    lost['result']['test_accuracy'] = bad
    for cell in (lost, diverged(), diverged(result={'flops': 100}), row(900, status='diverged')):
        gap = judged([910, 920, cell], [900, 900, 900])
        assert gap.arm_values == (91, 92, 10) and gap.estimate.values == (1, 2, -80)
        assert gap.diverged == 1
        assert gap.without_diverged.values == (1, 2)
        assert gap.without_diverged.level == gap.estimate.level
        assert math.isnan(gap.image_error)


def test_pairs_only_and_listed():
    record = study(
        PRIMARY | {'none': ('lost', 'dense', 'none', True)},
        ('moe', 'dense', 'lost'),
        seeds=(3, 1, 2, 0),
    )
    rows = {
        'moe': {0: row(910), 1: row(920), 7: row(0)},
        'dense': {1: row(900), 2: row(900), 3: row(900)},
        'typo': {0: row(0)},
    }
    analysis = analyse.analyse(record, HASH, rows, ['rows/x: half-written'])
    assert analysis.problems == (
        'rows/x: half-written',
        'arm typo: not in the pre-registration, left out',
        'arm moe: seed 7 not in the pre-registration, left out',
        'comparison gap: incomplete: moe has no row for seeds 3, 2; dense has no row for seed 0',
        'comparison none: incomplete: no pair of seeds: lost has no rows',
    )
    assert analysis.gaps['gap'].seeds == (1,) and analysis.arms['moe'].seeds == (1, 0)
    none = analysis.gaps['none']
    assert (none.estimate.n, none.verdict, none.note) == (
        0,
        'inconclusive',
        'no pair of seeds: no test',
    )
    assert math.isnan(none.cost) and math.isnan(none.params) and none.seeds == ()
    assert analysis.arms['lost'].values == () and analysis.rows is rows


def test_rows_of_another_pre_registration_confirm_nothing():
    rows = cells(moe=[930, 931, 929], dense=[900, 900, 900])
    record = study(PRIMARY, patterns={'all': ('gap',)})
    assert analyse.analyse(record, HASH, rows).patterns[0].supported
    rows['moe'][1]['preregistration'] = rows['moe'][2]['preregistration'] = 'b' * 64
    analysis = analyse.analyse(record, HASH, rows)
    assert analysis.gaps['gap'].flags == (
        'exploratory: rows of another pre-registration (moe seeds 1, 2)',
    )
    assert analysis.gaps['gap'].primary and analysis.gaps['gap'].verdict == 'positive'
    assert not analysis.patterns[0].supported
    assert analysis.patterns[0].p == analysis.gaps['gap'].p_holm


def test_unlike_pairs_are_flagged():
    rows = cells(moe=[930, 931, 929], dense=[900, 900, 900])
    rows['moe'][0] |= {'device': 'NVIDIA H200', 'git_commit': 'd' * 40 + '+changes'}
    rows['moe'][2] |= {'device': 'NVIDIA H200', 'versions': VERSIONS | {'jax': '0.11.0'}}
    rows['dense'][2] |= {'versions': {'jax': '0.10.2'}, 'git_commit': None}
    gap = analyse.analyse(study(PRIMARY), HASH, rows).gaps['gap']
    assert gap.flags == (
        'device differs: NVIDIA H200 and cpu (seeds 0, 2)',
        'version of jax differs: 0.11.0 and 0.10.2 (seed 2)',
        'version of numpy differs: 2.4.6 and unknown (seed 2)',
        'commit differs: dddddddddd+changes and cccccccccc (seed 0)',
        'commit differs: cccccccccc and unknown (seed 2)',
    )
    rows['moe'][0]['images'] = 500
    assert (
        'number of test images differs: 500 and 1000 (seed 0)'
        in analyse.analyse(study(PRIMARY), HASH, rows).gaps['gap'].flags
    )


def test_patterns_hold_all_or_nothing():
    arms = {
        'up': [930, 931, 929, 930, 932],
        'down': [880, 882, 879, 880, 881],
        'same': [900, 901, 899, 901, 900],
        'open': [890, 920, 905, 880, 912],
    }
    expected = {'up': 'positive', 'down': 'negative', 'same': 'equivalent', 'open': 'inconclusive'}
    record = study(
        {n: (n, 'dense', expected[n], True) for n in arms}
        | {'wrong': ('up', 'dense', 'negative', True)},
        (*arms, 'dense'),
        tuple(range(5)),
        patterns={
            'reversal': ('up', 'down'),
            'three': tuple(arms)[:3],
            'weak': ('up', 'open'),
            'bad': ('up', 'wrong'),
        },
    )
    analysis = analyse.analyse(record, HASH, cells(**arms, dense=[900] * 5))
    reversal, three, weak, bad = analysis.patterns
    gaps = analysis.gaps
    assert reversal.supported and reversal.verdicts == ('positive', 'negative')
    assert reversal.p == max(gaps['up'].p_holm, gaps['down'].p_holm)
    assert three.supported and three.p == max(reversal.p, gaps['same'].p_tost_holm)
    assert gaps['open'].verdict == 'inconclusive'
    assert (weak.supported, weak.p, bad.supported, bad.p) == (False, 1, False, 1)


def test_selected_gap():
    def at(count, best):
        return row(count, result={'test_accuracy_selected': best})

    rows = [at(900, 0.95), at(900, None), diverged()], [at(900, 0.93), at(900, 0.9), at(900, 0.94)]
    gap = judged(*rows)
    assert gap.selected.values == pytest.approx((2, 10 - 94))
    assert gap.selected.level == gap.estimate.level


def test_image_error_by_hand():
    right = np.arange(IMAGES) < 900
    other = right.copy()
    other[:5], other[900:920] = False, True  # 20 better, 5 worse
    gap = judged([row(0, other), row(0, other)], [900, 900])
    by_hand = 100 * math.sqrt(25 - 15**2 / IMAGES) / IMAGES
    assert gap.image_error == pytest.approx(by_hand * math.sqrt(IMAGES / (IMAGES - 1)))


@pytest.mark.parametrize('correct', ['!', 'AAAA', base64.b64encode(bytes(IMAGES // 8)).decode()])
def test_lists_of_correct_images_that_are_wrong_are_not_used(correct):
    rows = cells(moe=[910, row(920, correct=correct)], dense=[900, 900])
    analysis = analyse.analyse(study(PRIMARY, seeds=(0, 1)), HASH, rows)
    assert math.isnan(analysis.gaps['gap'].image_error)
    assert analysis.problems == (
        'arm moe: seed 1: the list of correct test images contradicts the accuracy and is not used',
    )


def test_arm_over_its_seeds():
    routed = {
        'effective_experts': 3.5,
        'dead_experts': 1,
        'drop_rate': 0.1,
        'collapsed': True,
        'flops': 150,
        'flops_executed': 180,
        'params_total': 40,
        'rho_active': 0.5,
    }
    moe = [
        row(
            910,
            result=routed,
            mechanism={
                'shuffle_drop': 0.2,
                'ablation': {'b': [0.1, 0.3]},
                'only': 1,
                'uneven': [1],
                'word': 'x',
            },
        ),
        row(
            930,
            result=routed | {'rho_active': 0.4},
            mechanism={'shuffle_drop': 0.4, 'ablation': {'b': [0.3, None]}, 'uneven': [1, 2]},
        ),
        diverged(result={'flops': 150}),
    ]
    analysis = analyse.analyse(study(PRIMARY), HASH, cells(moe=moe, dense=[900, 900, 900]))
    arm, dense = analysis.arms['moe'], analysis.arms['dense']
    assert arm.values == (91, 93, 10) and arm.diverged == (2,)
    assert arm.mean == pytest.approx(194 / 3)
    assert arm.sd == pytest.approx(np.std(arm.values, ddof=1))
    assert (arm.flops, arm.params_total, arm.rho_active) == (150, 40, pytest.approx(0.45))
    assert arm.routed and not dense.routed and arm.collapsed == 2
    assert arm.dead_experts[:2] == (1, 1) and math.isnan(arm.dead_experts[2])
    assert arm.unbounded[:2] == (50, 50) and math.isnan(arm.unbounded[2])
    assert all(map(math.isnan, dense.effective_experts)) and all(map(math.isnan, dense.selected))
    assert arm.mechanism == {
        'shuffle_drop': pytest.approx(0.3),
        'ablation': {'b': [0.2, pytest.approx(math.nan, nan_ok=True)]},
    }
    assert dense.mechanism == {} and arm.config == {'k': 1}
    gap = analysis.gaps['gap']
    assert (gap.cost, gap.cost_executed, gap.params, gap.rho_place) == (1.5, 1.5, 4, 0.25)


def test_many_seeds_say_that_the_sign_flip_was_drawn():
    counts = np.random.default_rng(9).normal(910, 3, 21).round().astype(int)
    gap = judged(list(counts), [900] * 21)
    assert gap.note == 'sign-flip p from 100,000 random sign patterns'


def test_the_order_of_rows_changes_nothing():
    record = study(PRIMARY)
    rows = cells(moe=[910, 925, 935], dense=[900, 905, 905])
    turned = {arm: dict(reversed(seeds.items())) for arm, seeds in reversed(rows.items())}
    a, b = (analyse.analyse(record, HASH, r) for r in (rows, turned))
    assert repr((a.gaps, a.arms, a.problems)) == repr((b.gaps, b.arms, b.problems))


def test_importing_needs_no_jax():
    done = subprocess.run(
        [
            sys.executable,
            '-c',
            'import sys; from moe_vision.study.analysis import analyse; '
            'print([m for m in ("jax", "flax", "matplotlib") if m in sys.modules])',
        ],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.strip() == '[]', done.stderr
