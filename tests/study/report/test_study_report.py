"""A study's report says in every form what the analysis says, with the same bytes each time."""

import csv
import dataclasses
import html
import io
import json
import math
import pathlib
import re
import subprocess
import sys

import pytest
import study_report_cases as cases

from moe_vision.study import report
from moe_vision.study.analysis import analyse

ROOT = pathlib.Path(__file__).resolve().parents[3]
NEVER = (
    'no difference',
    'no effect',
    'no significant',
    'not significant',
    'proves',
    'proven',
    'same accuracy',
    'nan',
    'None',
    'inf ',
)


@pytest.fixture(scope='module')
def made():
    maker = cases.full()
    return maker.analysis(), maker.timings()


@pytest.fixture(scope='module')
def folder(made, tmp_path_factory):
    out = tmp_path_factory.mktemp('report')
    paths = report.write(*made, str(out))
    assert sorted(map(str, (p for p in out.rglob('*') if p.is_file()))) == paths
    return out


def read(path: pathlib.Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text())))


def tables(text: str, section: str) -> list[list[list[str]]]:
    """The tables of a section of a Markdown file, as cells without markup."""
    part = text.split(f'\n## {section}\n')[1].split('\n## ')[0]
    found: list[list[list[str]]] = [[]]
    for line in part.splitlines():
        if line.startswith('|'):
            cells = re.split(r'(?<!\\)\|', html.unescape(line))[1:-1]
            found[-1].append([c.strip().strip('`*').replace('−', '-') for c in cells])
        elif found[-1]:
            found.append([])
    return [t for t in found if t]


def same(shown: str, value: str, digits: int = 2) -> bool:
    """Whether a number in the text is the number of the file, rounded."""
    if shown in ('–', ''):
        return value == ''
    return abs(float(shown.rstrip('×%')) - float(value)) <= 0.5001 * 10**-digits


def test_the_table_of_verdicts_is_the_file_of_gaps(made, folder):
    """All numbers agree; primary comparisons come first, in a table of their own."""
    gaps = {row['comparison']: row for row in read(folder / 'tables/gaps.csv')}
    primary, other, tests, otherwise = tables((folder / 'report.md').read_text(), 'Verdicts')
    assert {r[0] for r in primary[2:]} == {n for n, g in gaps.items() if g['primary'] == '1'}
    assert {r[0] for r in other[2:]} == {n for n, g in gaps.items() if g['primary'] == '0'}
    assert primary[0][:9] == [
        'comparison',
        'verdict',
        'gap, pp',
        'interval, pp',
        'level',
        'seeds',
        'FLOPs ÷ baseline',
        'executed FLOPs ÷ baseline',
        'expected',
    ]
    for name, verdict, gap, interval, level, n, cost, executed, expected, *_ in (
        primary[2:] + other[2:]
    ):
        row = gaps[name]
        low, high = interval.split(' to ')
        assert verdict == row['verdict'] and n == row['n']
        assert same(gap, row['mean']) and same(low, row['low']) and same(high, row['high'])
        assert same(level.rstrip(' %'), str(100 * float(row['level'])))
        assert same(cost, row['cost']) and same(executed, row['cost_executed'])
        assert expected.split(':')[0] == row['expected'].replace('none', '–')
    for name, sd, effect, *ps, mde, correlation, error in tests[2:]:
        row = gaps[name]
        assert same(sd, row['sd']) and same(mde, row['mde']) and same(error, row['image_error'])
        assert float(effect) == pytest.approx(float(row['effect_size']), rel=6e-3, abs=1e-9)
        assert float(correlation) == pytest.approx(float(row['correlation']), rel=6e-2)
        columns = ('p', 'p_holm', 'q', 'p_sign_flip', 'p_tost', 'p_tost_holm')
        for p, key in zip(ps, columns, strict=True):
            assert (p == '–') == (row[key] == '')
            if p.startswith('<'):
                assert float(row[key]) < float(p[1:])
            elif p != '–':
                assert float(p) == pytest.approx(float(row[key]), rel=6e-2)
    for name, _, selected, without, *_ in otherwise[2:]:
        assert same(selected.split(' ')[0], gaps[name]['selected_mean'])
        if without != 'none diverged':
            assert same(without.split(' ')[0], gaps[name]['without_diverged_mean'])
            assert gaps[name]['diverged'] == '1'
    assert len(tests) == len(otherwise) == len(gaps) + 2


def test_per_seed_values_add_up(made, folder):
    analysis, _ = made
    by_name: dict[str, list[float]] = {}
    for row in read(folder / 'tables/per_seed.csv'):
        gap = float(row['accuracy_arm_pp']) - float(row['accuracy_baseline_pp'])
        assert float(row['gap_pp']) == pytest.approx(gap, abs=1e-6)
        by_name.setdefault(row['comparison'], []).append(float(row['gap_pp']))
    for name, gap in analysis.gaps.items():
        assert by_name[name] == pytest.approx(gap.estimate.values)
    gaps, arms = tables((folder / 'report.md').read_text(), 'Per seed')
    shown = {row[0]: row[1:] for row in gaps[2:]}
    for row in read(folder / 'tables/per_seed.csv'):
        text = shown[row['comparison']][int(row['seed'])]
        assert same(text.removesuffix(' †'), row['gap_pp'])
        assert text.endswith('†') == (row['arm_diverged'] == '1')
    assert shown['k4_vs_dense'][7] == '' and len(arms) == len(analysis.arms) + 2


def test_the_bytes_are_the_same_twice_and_do_not_depend_on_the_clock(made, folder, tmp_path):
    """Timings change only timings.md and timings/; no file holds a date, host or path."""
    analysis, timings = made
    cells = json.loads(json.dumps(timings['cells']).replace('61.0', '99.0').replace('cpu', 'gpu'))
    report.write(analysis, {'cells': cells, 'latency': None}, str(tmp_path))
    for path in folder.rglob('*'):
        name = path.relative_to(folder)
        if path.is_dir() or name.parts[0].startswith('timings'):
            continue
        assert path.read_bytes() == (tmp_path / name).read_bytes(), name
        text = path.read_text()
        assert str(folder) not in text and '/tmp' not in text and str(ROOT) not in text, name
        assert not re.search(r'\b20[2-9]\d-\d\d', text), name
    text = (tmp_path / 'timings.md').read_text()
    assert 'gpu' in text and 'Not measured yet' in text and 'cpu' not in text


def test_forbidden_words_do_not_occur(made, folder):
    for name in ('report.md', 'report.html', 'timings.md'):
        text = (folder / name).read_text()
        text = re.sub(r'<style>.*?</style>|<svg.*?</svg>|None\. A run', '', text, flags=re.S)
        for word in NEVER:
            assert not re.search(rf'\b{word}\b', text), (name, word)


def test_a_cost_of_random_routes_that_was_not_measured_is_explained(made, folder, tmp_path):
    """Where experts choose tokens, the probe leaves it out."""
    maker = cases.full(3)
    for row in maker.rows['k2'].values():
        del row['mechanism']['random_drop']
    report.write(maker.analysis(), {}, str(tmp_path))
    why = 'cost of random routes is not measured where experts choose tokens'
    text = (tmp_path / 'report.md').read_text()
    assert why in text and why not in (folder / 'report.md').read_text()
    (table,) = tables(text, 'Mechanism')
    costs = {row[0]: row[table[0].index('cost of random routes, pp')] for row in table[2:]}
    assert costs.pop('k2') == '–' and costs and '–' not in costs.values()


def test_undecided_comparisons_are_called_undecided(made):
    """If all primary comparisons are inconclusive, one sentence says so, with the smallest gap."""
    from moe_vision.study.report import answer, document

    analysis, _ = made
    for name, gap in analysis.gaps.items():
        if gap.primary:
            analysis = cases.with_gap(analysis, name, verdict='inconclusive', p=0.9, mde=0.734)
    text = document.markdown(document.Document('t', 'k', 'f', [answer.section(analysis)]), 'f')
    assert '> Inconclusive: none of the 4 primary comparisons could be decided.' in text
    assert 'smaller than 0.73 pp reliably' in text
    assert 'Directions undecided' in text and 'Directions supported' not in text
    assert 'A large p does not show that two arms are alike' in text
    assert 'Pattern `reversal`: undecided' in text
    turned = cases.with_gap(analysis, 'standard_h8_vs_dense_standard', verdict='positive')
    turned = dataclasses.replace(
        turned,
        patterns=(
            dataclasses.replace(
                turned.patterns[0],
                verdicts=tuple(turned.gaps[n].verdict for n in turned.patterns[0].comparisons),
            ),
        ),
    )
    text = document.markdown(document.Document('t', 'k', 'f', [answer.section(turned)]), 'f')
    assert 'Directions not supported: `standard_h8_vs_dense_standard` (expected negative, ' in text
    assert 'Pattern `reversal`: not supported' in text


def written(analysis):
    from moe_vision.study.report import answer, document

    return document.markdown(document.Document('t', 'k', 'f', [answer.section(analysis)]), 'f')


@pytest.mark.parametrize('number', [1, 2])
def test_the_headline_is_as_sure_as_the_smallest_attainable_p_allows(number):
    """Three seeds that all agree: the t-test finds a gap, but sign flips give no p below 0.25."""
    maker = cases.Maker(3)
    base = maker.arm('dense', 90, 0.0, routed=False)
    names = [
        maker.compare(maker.arm(f'arm_{i}', 97, 0.3), base, 'positive', True, name=f'gap_{i}')
        for i in range(number)
    ]
    for i in range(3):
        for arm, by in (('dense', 0), *((f'arm_{n}', 20 + n) for n in range(number))):
            maker.rows[arm][i]['result']['test_accuracy'] = (300 + by + i * (by > 0)) / 360
    analysis = analyse.analyse(maker.study(), 'ab' * 32, maker.rows)
    assert {analysis.gaps[n].verdict for n in names} == {'positive'}
    assert {analysis.gaps[n].p_sign_flip for n in names} == {0.25}
    text = written(analysis)
    why = 'with 3 seeds the exact sign-flip test gives no p below 0.25'
    (line,) = (x for x in text.splitlines() if x.startswith('> '))
    start = {
        1: '> The only primary comparison is positive, but this is not sure: the sign rests on',
        2: '> Of 2 primary comparisons, 2 are positive. Not sure: `gap_0`, `gap_1` (the sign rests',
    }[number]
    assert line.startswith(start) and why in line
    assert '| Smallest attainable p | 0.25 |' in text
    assert text.count(why) == 2 + number  # in the headline, each sentence, and the pattern


def test_a_gap_that_is_small_and_differs_from_zero_is_called_both(made, tmp_path):
    name = 'standard_h8_vs_dense_standard'
    word = 'negative, within the margin'
    analysis = cases.with_gap(made[0], name, verdict=word, expected='negative')
    text = written(analysis)
    assert f'- `{name}`: **{word}**, the accuracy of `standard_h8` lies below that of' in text
    assert ', by less than 0.50 pp (gap' in text and f'is “{word}”' in text
    assert f'(expected negative, found “{word}”)' in text
    equal = cases.with_gap(made[0], name, verdict=word, expected='equivalent')
    assert f'Directions supported: `{name}`' in written(equal)
    report.write(analysis, {}, str(tmp_path))
    page = (tmp_path / 'report.html').read_text()
    assert f'<span class="v equivalent"><i aria-hidden="true">≈▼</i>{word}</span>' in page
    assert word in (tmp_path / 'figures/verdicts.svg').read_text()
    gaps = {row['comparison']: row for row in read(tmp_path / 'tables/gaps.csv')}
    assert gaps[name]['verdict'] == word


def test_rows_of_another_registration_confirm_nothing(made):
    from moe_vision.study.report import document, verdicts

    name = 'standard_h2048_vs_dense_standard'
    flag = 'exploratory: rows of another pre-registration (k2 seed 1)'
    analysis = cases.with_gap(made[0], name, flags=(flag,))
    text = document.markdown(document.Document('t', 'k', 'f', [verdicts.section(analysis)]), 'f')
    primary, other, *_ = tables(text, 'Verdicts')
    assert name not in [r[0] for r in primary]
    assert [r[-1] for r in other if r[0] == name] == [flag]


def test_a_real_analysis_can_be_written(tmp_path):
    """The rows include an arm without rows, and a gap with sd = 0."""
    maker = cases.full(3)
    maker.rows['k1'] = {}
    maker.rows['k2'] = {s: row | {'arm': 'k2'} for s, row in maker.rows['dense'].items()}
    record = json.loads(json.dumps(maker.study()))
    for arm, known in maker.arms.items():
        record['arms'][arm]['config'] = {'model': {'moe': known['moe']}}
    analysis = analyse.analyse(record, 'ab' * 32, maker.rows, maker.problems)
    report.write(analysis, maker.timings(), str(tmp_path))
    text = (tmp_path / 'report.md').read_text()
    assert 'sd = 0' in text and 'no pair of seeds: no test' in text
    assert 'exploratory: not a primary' not in text  # the heading says so, not every line
    gaps = {row['comparison']: row for row in read(tmp_path / 'tables/gaps.csv')}
    assert gaps['k1_vs_dense']['mean'] == '' and gaps['k2_vs_dense']['sd'] == '0'
    slots = read(tmp_path / 'figures/soft_axis.csv')
    assert sorted({float(row['experts_times_slots']) for row in slots}) == [4, 8, 16, 32]
    assert math.isclose(float(slots[1]['gap_pp']), float(gaps[slots[1]['comparison']]['mean']))


def test_provenance_counts_rows(made, folder):
    found = {row[0]: row[1] for row in tables((folder / 'report.md').read_text(), 'Provenance')[0]}
    number = sum(map(len, made[0].rows.values()))
    assert found['version of jax'] == f'0.10.2` ({number})'
    assert found['version of python'] == f'3.11.2` ({number})'
    assert found['device'] == f'cpu` ({number})' and found['commit'].endswith(f'({number})')


def test_no_model_code_is_imported():
    code = (
        'import sys; from moe_vision.study.report import (pictures, page, answer, arms, timing,'
        'registered, verdicts); bad = {"jax", "flax", "optax", "configs", "ml_collections"}; '
        'assert not bad & set(sys.modules), bad & set(sys.modules)'
    )
    subprocess.run([sys.executable, '-c', code], cwd=ROOT, check=True)
