"""The trend along ρ and the difference of families agree with scipy on the same gaps."""

import csv

import numpy as np
import pytest
import study_report_cases as cases
from scipy import stats

from moe_vision.study import report
from moe_vision.study.report import pictures, trend


@pytest.fixture(scope='module')
def analysis():
    return cases.full().analysis()


@pytest.fixture(scope='module')
def lines(analysis):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trend, 'NEAR', 0.3)  # 0.8 and 0.9 % are one level in this made-up study
        return list(trend.lines(analysis, pictures.series_of(analysis, 'gap_against_rho')))


def series(analysis):
    return next(f['series'] for f in analysis.study['figures'] if f['kind'] == 'gap_against_rho')


def test_the_trend_of_a_family_is_its_rank_correlation(analysis, lines):
    by_name = {line[1]: line for line in lines if line[0] == 'trend'}
    assert set(by_name) == set(series(analysis))
    for name, members in series(analysis).items():
        gaps = [analysis.gaps[m] for m in members]
        x, y = [g.rho_place for g in gaps], [g.estimate.mean for g in gaps]
        want = stats.permutation_test(
            (x,),
            lambda a, y=y: stats.spearmanr(a, y).statistic,
            permutation_type='pairings',
            n_resamples=np.inf,
            alternative='two-sided',
        )
        assert by_name[name][3] == pytest.approx(want.statistic)
        assert by_name[name][6] == pytest.approx(want.pvalue)


def test_families_are_compared_seed_by_seed_at_each_level(analysis, lines):
    (a, ours), (b, theirs) = series(analysis).items()
    differences = [line for line in lines if line[0] == 'family']
    ends = [(ours[0], theirs[0]), (ours[-1], theirs[-1])]  # the others differ in ρ
    assert {line[1] for line in differences} == {f'{a} - {b}'} and len(differences) == len(ends)
    for line, pair in zip(differences, ends, strict=True):
        one, other = (analysis.gaps[name] for name in pair)
        ours, theirs = (dict(zip(g.seeds, g.estimate.values, strict=True)) for g in (one, other))
        d = np.array([ours[s] - theirs[s] for s in ours if s in theirs])
        interval = stats.ttest_1samp(d, 0).confidence_interval(0.9)
        assert line[3:6] == pytest.approx((d.mean(), *interval))
        margin = analysis.study['margin']
        each = [
            stats.ttest_1samp(d, m, alternative=way).pvalue
            for m, way in ((-margin, 'greater'), (margin, 'less'))
        ]
        assert line[6] == pytest.approx(max(each))


def test_the_section_and_its_file_exist_only_with_such_a_figure(analysis, tmp_path):
    report.write(analysis, {}, str(tmp_path / 'with'))
    rows = list(csv.DictReader((tmp_path / 'with/tables/trend.csv').open()))
    text = (tmp_path / 'with/report.md').read_text()
    assert '## Gaps along ρ' in text and 'Exploratory.' in text
    assert (
        text.split('## Gaps along ρ')[1].split('\n## ')[0].count('| trend |')
        == sum(row['what'] == 'trend' for row in rows)
        == len(series(analysis))
    )
    analysis.study['figures'][:] = [
        f for f in analysis.study['figures'] if f['kind'] != 'gap_against_rho'
    ]
    report.write(analysis, {}, str(tmp_path / 'without'))
    assert '## Gaps along ρ' not in (tmp_path / 'without/report.md').read_text()
    assert not (tmp_path / 'without/tables/trend.csv').exists()
