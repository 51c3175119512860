"""The picture of several studies shows the gaps that their reports hold, or says what is wrong."""

import csv
import dataclasses
import json
import math
import re
import shutil

import pytest
import study_report_cases as cases
from scipy import stats

from moe_vision.common.errors import UserError
from moe_vision.common.paths import ROOT
from moe_vision.study import __main__ as study
from moe_vision.study import overview
from moe_vision.study.analysis.summaries import summarise

SETTINGS = [
    {'setting': 'small', 'study': 'a', 'fit': 'dense', 'gaps': ['k2_gap', 'k1_gap']},
    {'setting': 'large <b>', 'study': 'b', 'gaps': [None, 'k1_gap']},
]


@pytest.fixture(scope='module')
def analyses():
    """Two studies of four seeds; in `a` the dense arm was scored on training images, too."""
    found = {}
    for name, shift in (('a', 0.0), ('b', 2.0)):
        maker = cases.Maker(4)
        maker.arm('dense', 90, 0.0, routed=False)
        maker.arm('k1', 89 + shift, 0.2)
        maker.arm('k2', 91 + shift, 0.3)
        for arm in ('k1', 'k2'):
            maker.compare(arm, 'dense', name=f'{arm}_gap')
        if name == 'a':
            for seed, row in maker.rows['dense'].items():
                row['curve'][-1]['accuracy'] = 0.88
                row['result'] |= {'train_accuracy': 0.90 + 0.01 * seed}
        made = maker.analysis()
        made.arms['dense'] = summarise('dense', maker.rows['dense'], (0.95, 0.9))
        found[name] = made
    return found


@pytest.fixture
def write(tmp_path, analyses):
    def write(asked):
        text = asked if isinstance(asked, str) else json.dumps(asked)
        (tmp_path / 'overview.json').write_text(text)
        return overview.write(str(tmp_path), lambda folder: analyses[folder[-1]])

    return write


def test_it_holds_every_gap_with_an_interval_of_its_own(write, analyses, tmp_path):
    written = write({'series': ['two', 'one'], 'settings': SETTINGS})
    folder = tmp_path / 'overview'
    assert written == [str(folder / name) for name in ('fit.svg', 'gaps.csv', 'gaps.svg')]
    rows = list(csv.DictReader((folder / 'gaps.csv').open()))
    assert [(r['setting'], r['study'], r['comparison'], r['series']) for r in rows] == [
        ('small', 'a', 'k2_gap', 'two'),
        ('small', 'a', 'k1_gap', 'one'),
        ('large <b>', 'b', 'k1_gap', 'one'),
    ]
    for row in rows:
        gap = analyses[row['study']].gaps[row['comparison']]
        ours = stats.ttest_1samp(gap.estimate.values, 0).confidence_interval(0.95)
        assert float(row['gap_pp']) == pytest.approx(gap.estimate.mean)
        assert [float(row['low_pp']), float(row['high_pp'])] == pytest.approx(list(ours))
        assert row['seeds'] == '4' and float(row['cost']) == pytest.approx(gap.cost)
    # training 90, 91, 92, 93 % less validation 88 %
    assert [float(r['training_less_validation_pp'] or 'nan') for r in rows[:2]] == [3.5, 3.5]
    assert rows[2]['training_less_validation_pp'] == ''


def test_the_pictures_say_in_words_what_they_show(write, analyses, tmp_path):
    write({'series': ['two', 'one'], 'settings': SETTINGS})
    gaps, fit = ((tmp_path / 'overview' / f'{n}.svg').read_text() for n in ('gaps', 'fit'))
    for svg in (gaps, fit):
        assert '<b>' not in svg and 'nan' not in svg
    mean = analyses['b'].gaps['k1_gap'].estimate.mean
    assert f'large &lt;b&gt;, one: {mean:+.2f} pp' in gaps
    assert 'small, two: ' in fit and 'large' not in fit


def test_without_an_arm_to_read_it_from_there_is_no_picture_of_underfit(write):
    assert [p[-8:] for p in write({'series': ['two', 'one'], 'settings': SETTINGS[1:]})] == [
        'gaps.csv',
        'gaps.svg',
    ]


def test_a_gap_without_rows_is_left_out(write, analyses, tmp_path, monkeypatch):
    gap = analyses['a'].gaps['k2_gap']
    empty = dataclasses.replace(gap.estimate, values=(), n=0, mean=math.nan)
    monkeypatch.setitem(
        analyses['a'].gaps, 'k2_gap', dataclasses.replace(gap, estimate=empty, outer=empty)
    )
    write({'series': ['two', 'one'], 'settings': SETTINGS[:1]})
    assert 'k2_gap' not in (tmp_path / 'overview' / 'gaps.csv').read_text()
    with pytest.raises(UserError, match='names no gap that has rows'):
        write({'series': ['two'], 'settings': [{**SETTINGS[0], 'gaps': ['k2_gap']}]})


@pytest.mark.parametrize(
    'asked, said',
    [
        ('{', 'cannot be read'),
        ([], 'needs `series`'),
        ({'series': ['x'], 'settings': []}, 'needs `series`'),
        ({'settings': [SETTINGS[0]]}, 'needs `series`'),
        ({'series': ['x', 'y'], 'settings': [SETTINGS[0], SETTINGS[0]]}, "two settings 'small'"),
        ({'series': ['x'], 'settings': [{**SETTINGS[0], 'gaps': ['a\nb']}]}, 'unknown gap'),
        ({'series': ['x'], 'settings': [{'study': 'a', 'gaps': ['k1_gap']}]}, 'lacks its name'),
        ({'series': ['x'], 'settings': [SETTINGS[0]]}, 'has 2 of 1 gaps.*write null'),
        (
            {'series': ['x'], 'settings': [{**SETTINGS[0], 'gaps': ['k1_gip']}]},
            "unknown gap of 'a'.*Did you mean 'k1_gap'",
        ),
        ({'series': ['x'], 'settings': [{**SETTINGS[0], 'gaps': [['k1_gap']]}]}, 'unknown gap'),
        (
            {'series': ['x'], 'settings': [{**SETTINGS[0], 'gaps': ['k1_gap'], 'fit': 'dens'}]},
            "unknown arm of 'a'.*Did you mean 'dense'",
        ),
        (
            {'series': ['x'], 'settings': [{**SETTINGS[0], 'gaps': ['k1_gap'], 'fits': 'dense'}]},
            "unknown key.*Did you mean 'fit'",
        ),
    ],
)
def test_what_it_cannot_draw_is_an_error_of_one_line(write, asked, said, tmp_path):
    with pytest.raises(UserError, match=said) as raised:
        write(asked)
    assert '\n' not in str(raised.value) and re.search(r'overview\.json|names no gap', str(raised))
    assert not (tmp_path / 'overview').exists()


def test_the_second_picture_goes_with_what_it_showed(write, tmp_path):
    write({'series': ['two', 'one'], 'settings': SETTINGS})
    assert (tmp_path / 'overview' / 'fit.svg').exists()
    write({'series': ['two', 'one'], 'settings': SETTINGS[1:]})
    assert not (tmp_path / 'overview' / 'fit.svg').exists()


def test_the_command_tells_of_a_study_that_is_not_there(tmp_path, capsys):
    """After the reports of those that are."""
    shutil.copytree(ROOT / 'results' / 'gate' / 'underfit', tmp_path / 'there')
    setting = {'setting': 's', 'study': 'there', 'gaps': ['k2_minus_dense']}
    for study_named, code in (('there', 0), ('no', 2)):
        asked = {'series': ['x'], 'settings': [{**setting, 'study': study_named}]}
        (tmp_path / 'overview.json').write_text(json.dumps(asked))
        assert study.main(['report', f'--workdir={tmp_path}']) == code
        told = capsys.readouterr()
        assert f'{tmp_path}/there/report' in told.out
        assert (f'{tmp_path}/no/preregistration.json' in told.err) == (code == 2)
    assert (tmp_path / 'overview' / 'gaps.csv').exists()
