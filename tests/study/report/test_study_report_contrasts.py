"""The report shows trends, family differences, tuning, lent rows, and which split is scored."""

import csv
import html
import json

import pytest
import study_report_cases as cases

from moe_vision.study import report
from moe_vision.study.analysis import analyse

FAMILY = [f'standard_h{w}_vs_dense_standard' for w in (8, 32, 128, 512, 2048)]
OTHER = [f'depthwise_h{w}_vs_dense_depthwise' for w in (8, 2048)]
ENDS = [FAMILY[0], FAMILY[-1]]
REGISTERED = {
    'trends': {
        'rises': {'comparisons': FAMILY, 'x': 'rho_place', 'expected': 'positive', 'primary': True}
    },
    'family_differences': {
        'same': {
            'pairs': [list(p) for p in zip(ENDS, OTHER, strict=True)],
            'expected': 'equivalent',
            'primary': False,
        }
    },
}


def made(change=lambda record, rows: None, seeds=6):
    maker = cases.full(seeds)
    record = json.loads(json.dumps(maker.study())) | json.loads(json.dumps(REGISTERED))
    change(record, maker.rows)
    return analyse.analyse(record, 'ab' * 32, maker.rows, maker.problems)


def no_pictures(record, rows=None):
    record['figures'] = []  # they take most of the time


def written(analysis, folder):
    report.write(analysis, {}, str(folder))
    return (folder / 'report.md').read_text()


def table(path):
    return list(csv.DictReader(path.open()))


def section(text, name):
    return text.split(f'\n## {name}\n')[1].split('\n## ')[0]


def line(text, start):
    return next(x for x in text.splitlines() if x.startswith(start))


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('report')


@pytest.fixture(scope='module')
def both(folder):
    analysis = made(lambda record, rows: record['patterns'].update(reversal=['rises', *ENDS]))
    return analysis, written(analysis, folder)


def test_they_are_rows_of_the_table_of_verdicts(both):
    analysis, text = both
    primary, other = section(text, 'Verdicts').split('### Exploratory comparisons')
    trend, same = analysis.contrasts['rises'], analysis.contrasts['same']
    row = line(primary, '| `rises` |')
    assert f'**{trend.verdict}**' in row
    assert 'trend: change of the gap from ρ place 0.8 % to 62 %, over `standard_h8_vs' in row
    row = line(other, '| `same` |')
    first, second = (f'`{n}`' for n in (ENDS[0], OTHER[0]))
    assert f'family difference: mean of {first} − {second}, ' in row
    assert 'equivalent: ' in row and 'not a primary' not in row
    assert same.name in section(text, 'Per seed')
    assert 'A trend and a family difference stand in the same tables' in text


def test_what_they_say_in_words(both):
    text = section(both[1], 'Question and answer')
    trend = both[0].contrasts['rises']
    assert trend.verdict == 'positive'
    said = '- `rises`: **positive**, the gap rises from ρ place 0.8 % to 62 % (change of the gap '
    assert said + f'{trend.estimate.mean:+.2f} pp, ' in text and ', 6 seeds)' in text
    assert 'Pattern `reversal`: ' in text and '`rises` positive' in text
    registered = section(both[1], 'Pre-registration')
    assert '| `rises` | trend over `standard_h8_vs_dense_standard`, ' in registered
    assert f'Of {len(both[0].gaps) + 2} registered comparisons, 5 are primary' in registered


def test_their_numbers_are_in_files(both, folder):
    rows = {r['name']: r for r in table(folder / 'tables/contrasts.csv')}
    for name, found in both[0].contrasts.items():
        row = rows[name]
        values = [float(v.split(': ')[1]) for v in row['seed_values_pp'].split(', ')]
        assert values == pytest.approx(found.estimate.values)
        assert float(row['mean']) == pytest.approx(found.estimate.mean)
        assert row['verdict'] == found.verdict and row['kind'] == found.kind
        assert row['comparisons'].split(' ') == [p.name for p in found.parts]
        assert [float(x) for x in row['values_of_x'].split(' ')] == pytest.approx(found.x)
    assert rows['rises']['p_holm'] and not rows['same']['p_holm']
    drawn = {r['comparison']: r for r in table(folder / 'figures/verdicts.csv')}
    assert drawn['rises']['group'] == 'primary' and drawn['rises']['cost'] == ''
    assert drawn['same']['group'] == 'exploratory: trends and family differences'


def test_a_figure_of_gaps_against_rho_draws_the_trend_of_a_series(both, folder):
    rows = table(folder / 'figures/gap_against_rho.csv')
    trend = both[0].contrasts['rises']
    for row in rows:
        mine = row['series'] == 'standard'
        assert row['trend'] == ('rises' if mine else '')
        if mine:
            assert float(row['trend_gap_pp']) == pytest.approx(
                trend.fitted(float(row['rho_place']))
            )
    ends = [float(r['trend_gap_pp']) for r in rows if r['series'] == 'standard']
    assert max(ends) - min(ends) == pytest.approx(abs(trend.estimate.mean))
    text = 'The line of a series is its trend, fitted by least squares to the mean gaps (curved, '
    assert text + 'because this axis is logarithmic): rises ' in html.unescape(both[1])


def test_a_study_without_any_has_none_of_this(tmp_path):
    def without(record, rows):
        record.update(trends={}, family_differences={}, figures=[])

    text = written(made(without, 3), tmp_path)
    assert 'family difference' not in text and not (tmp_path / 'tables/contrasts.csv').exists()


def test_little_data_is_said_in_words(tmp_path):
    def lose(record, rows):
        no_pictures(record)
        rows['standard_h8'].clear()

    def one_seed(record, rows):
        no_pictures(record)
        for seeds in rows.values():
            del seeds[1], seeds[2]

    problems = section(written(made(lose, 3), tmp_path), 'Problems and flags')
    assert '- `rises`: no slope: ρ is unknown for a comparison, or the same for all' in problems
    text = written(made(one_seed, 3), tmp_path)
    row = line(section(text, 'Verdicts'), '| `rises` | **inconclusive** |')
    assert 'one seed that all comparisons have: no test' in row
    assert '- `rises`: only 1 of 3 registered seeds have all runs' in text


def on_validation(record, rows):
    record['metric'] = 'validation_accuracy'
    for row in rows['k2'].values():
        row['result'] |= {'train_accuracy': 0.9, 'accuracy_at_capacity': {'1.25': 0.8}}


def test_a_study_on_validation_says_so_and_shows_no_test_accuracy(tmp_path):
    analysis = made(on_validation)
    text = written(analysis, tmp_path)
    arm = analysis.arms['k2']
    by_hand = [100 * row['curve'][-1]['accuracy'] for row in analysis.rows['k2'].values()]
    assert arm.values == pytest.approx(by_hand, abs=1e-6)
    assert f'| `k2` | 6 | {arm.mean:.2f} ± {arm.sd:.2f} | 0 |' in section(text, 'Arms')
    for page in (text, (tmp_path / 'report.html').read_text()):
        assert 'validation accuracy with the weights after the last step' in page
        assert 'test accuracy' not in page.lower() and 'test images' not in page
        assert 'The test set' not in page and 'no estimate for other images' in page
        assert 'Other capacity factors' not in page and 'Underfit' in page
    assert 'validation accuracy, %' in (tmp_path / 'figures/accuracy_against_flops.svg').read_text()
    assert 'Validation accuracy after the last step.' in text
    assert 'the rows do not say how many' in text  # as those of older versions

    def counted(record, rows):
        on_validation(record, rows)
        for row in (row for seeds in rows.values() for row in seeds.values()):
            row['validation_images'] = 250

    text = written(made(counted), tmp_path)
    assert '· 250 validation images ·' in text and 'Accuracies are on 250 validation images' in text
    assert '| Resolution of accuracy | 0.40 pp | one of 250 validation images |' in text
    assert 'do not say how many' not in text
    test = written(made(), tmp_path)
    assert 'test accuracy, %' in test and '360 test images' in test


TUNED = {
    'tune': {
        'grid': {'train.learning_rate': [0.003, 0.01]},
        'arms': {'k2': ['k4']},
        'seeds': [100],
    },
    'tuned': {
        'registration': 'cd' * 32,
        'common': {'train.learning_rate': 0.003},
        'arms': {
            'k2': {
                'chosen': {'train.learning_rate': 0.01},
                'scores': [
                    {
                        'point': {'train.learning_rate': rate},
                        'validation_accuracy': score,
                        'seeds': [score],
                    }
                    for rate, score in ((0.003, 81.25), (0.01, 83.5))
                ],
            }
        },
    },
}


def test_the_grid_the_scores_and_the_choice_of_a_tuning_are_shown(tmp_path):
    text = section(
        written(made(lambda r, _: r.update(TUNED, figures=[]), 3), tmp_path), 'Pre-registration'
    )
    assert '| `k2` | `train.learning_rate` = 0.003 | 81.25 | 81.25 |  |' in text
    assert '| `k2` | `train.learning_rate` = 0.01 | 83.50 | 83.50 | chosen |' in text
    assert '- `k2` gives its setting to `k4`' in text and 'with seeds 100, which' in text
    assert 'by the mean over tuned arms, is `train.learning_rate` = 0.003' in text
    assert 'pre-registration `cdcdcdcdcdcd`' in text


ODD = ('x', 3, [None, 'x'], {'arms': 3}, {'arms': {'k2': 3}})


@pytest.mark.parametrize(
    'odd', [*ODD, {'arms': {'<b>|': {'scores': [3, {'point': '<i>', 'seeds': {}}]}}, 'common': 'x'}]
)
def test_an_odd_tuning_is_still_a_report(odd, tmp_path):
    text = written(made(lambda r, _: r.update(tuned=odd, figures=[]), 3), tmp_path)
    assert '### Tuning' in text and '<' not in text


def test_rows_of_a_neighbour_are_marked_with_whose_they_are(tmp_path):
    def lend(record, rows):
        no_pictures(record)
        for seed in (0, 2):
            rows['k2'][seed] |= {'study': 'first', 'lent_by': 'two'}
        for row in rows['k1'].values():
            row |= {'study': 'first', 'lent_by': 'k1'}

    text = section(written(made(lend, 3), tmp_path), 'Arms')
    assert line(text, '| arm |').endswith('| rows of |')
    k2 = '| study `first` (arm `two`, seeds 0, 2), this study (1) |'
    assert line(text, '| `k2` |').endswith(k2)
    assert line(text, '| `k1` |').endswith('| study `first` (arm `k1`, seeds 0, 1, 2) |')
    assert line(text, '| `k4` |').endswith('| this study |')
    assert 'rows of' not in section(written(made(no_pictures, 3), tmp_path), 'Arms')
