"""The committed results are what the committed rows give: every report can be made again."""

import csv
import functools
import json
import math
import re
import shutil
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from moe_vision.study import __main__ as study
from moe_vision.study import design, registration, rows
from moe_vision.study.analysis import statistics

ROOT = Path(__file__).resolve().parents[1]
STUDIES = sorted(p.parent for p in (ROOT / 'results').rglob('preregistration.json'))
REPORTED = [s for s in STUDIES if (s / 'report' / 'report.md').exists()]


def ids(path: Path) -> str:
    return path.relative_to(ROOT / 'results').as_posix()


def cells(folder: Path) -> int:
    """How many rows a study has, packed or as files."""
    packed = folder / 'rows.jsonl'
    lines = packed.read_bytes().splitlines() if packed.exists() else []
    return len([*lines, *folder.glob('rows/*/*.json')])


def signed(x: str) -> str:
    """Two decimals with a sign, as pages write them."""
    return f'{float(x):+.2f}'.replace('-', '\u2212')


def close(ours: str, theirs: str) -> bool:
    """The same text, or the same number but for its last digits (versions of libraries)."""
    try:
        return math.isclose(float(ours), float(theirs), rel_tol=1e-6, abs_tol=1e-9)
    except ValueError:
        return ours == theirs


@pytest.fixture(scope='module')
def results(tmp_path_factory):
    """All reports, made again by one command from what they are made of."""
    results = tmp_path_factory.mktemp('results')
    for folder in REPORTED:
        to = results / folder.relative_to(ROOT / 'results')
        shutil.copytree(folder, to, ignore=shutil.ignore_patterns('report', 'runs', 'claims'))
    shutil.copy(ROOT / 'results' / 'overview.json', results)
    assert study.main(['report', f'--workdir={results}']) == 0
    return results


def assert_same_files(made: Path, kept: Path) -> None:
    """The same names, and in tables the same numbers."""
    names = {str(p.relative_to(kept)) for p in kept.rglob('*') if p.is_file()}
    assert names == {str(p.relative_to(made)) for p in made.rglob('*') if p.is_file()}
    for name in names:
        if name.endswith('.csv'):
            ours, theirs = (list(csv.reader((of / name).open())) for of in (made, kept))
            assert [len(row) for row in ours] == [len(row) for row in theirs], name
            assert all(
                close(a, b)
                for x, y in zip(ours, theirs, strict=True)
                for a, b in zip(x, y, strict=True)
            ), name


def test_the_overview_is_made_again_from_the_rows(results):
    assert_same_files(results / 'overview', ROOT / 'results' / 'overview')


def test_the_numbers_of_the_answer_are_those_of_the_overview():
    answer = (ROOT / 'results' / 'README.md').read_text().split('\n## ')[1]
    rows = csv.DictReader((ROOT / 'results' / 'overview' / 'gaps.csv').open())
    known = {signed(row[n]) for row in rows for n in ('gap_pp', 'low_pp', 'high_pp')}
    length = csv.DictReader((ROOT / 'results/gate/length/report/tables/contrasts.csv').open())
    known |= {signed(row[n]) for row in length for n in ('low', 'high')}
    told = re.findall(r'[+\u2212]\d+\.\d\d', answer)
    assert len(told) == 9 and set(told) <= known


@pytest.mark.parametrize('folder', REPORTED, ids=ids)
def test_a_report_is_made_again_from_its_rows(folder, results):
    made, kept = results / folder.relative_to(ROOT / 'results') / 'report', folder / 'report'
    assert_same_files(made, kept)
    assert (made / 'report.md').read_text() == (kept / 'report.md').read_text()


@pytest.mark.parametrize('folder', STUDIES, ids=ids)
def test_rows_carry_the_hash_of_what_was_registered(folder):
    record, digest = registration.read(str(folder))
    found, _ = rows.read(str(folder), record, digest)
    assert sum(map(len, found.values())) == cells(folder)
    assert all(row['preregistration'] == digest for arm in found.values() for row in arm.values())


@pytest.mark.parametrize('folder', STUDIES, ids=ids)
def test_the_guide_has_a_line_for_the_folder(folder):
    lines = (ROOT / 'results' / 'README.md').read_text().splitlines()
    name = ids(folder)
    start = f'| [{name}]({name}/report/report.md) |' if folder in REPORTED else f'| {name} |'
    assert [x.endswith(f'| {cells(folder)} |') for x in lines if x.startswith(start)] == [True]


def assert_fits(folder: Path, arms: Iterable[str], text: str) -> None:
    """The accuracies on training and validation images in a text are those of a report."""
    _, underfit = (folder / 'report' / 'report.md').read_text().split('## Underfit')
    for arm in arms:
        line = next(x for x in underfit.splitlines() if x.startswith(f'| `{arm}` |'))
        cells = [cell.strip() for cell in line.strip('|').split('|')]
        assert re.search(rf'\| `{arm}` \|[^|]*?\|? ?{re.escape(" | ".join(cells[1:]))} \|', text)


def stands_in(part: str, text: str, lines: int) -> dict[str, dict[str, str]]:
    """Holds a table of gaps to the report of a part of the gate; returns the report's gaps."""
    table = ROOT / 'results' / 'gate' / part / 'report' / 'tables' / 'gaps.csv'
    gaps = {r['comparison']: r for r in csv.DictReader(table.open())}
    found = re.findall(r'^\| `(\w+)` \u2212 `(\w+)`[^|]*\| (\S+) \| (\S+) to (\S+) \|', text, re.M)
    assert len(found) == lines
    for arm, baseline, *numbers in found:
        gap = gaps[f'{arm}_minus_{baseline}']
        assert numbers == [signed(gap[n]) for n in ('mean', 'low', 'high')], arm
    return gaps


@functools.cache
def rows_of(folder: Path) -> list[dict]:
    lines = (folder / 'rows.jsonl').read_text().splitlines()
    return [json.loads(line) for line in lines]


def trained_gaps(arm: str, baseline: str, folder: Path) -> np.ndarray:
    """The gaps by seed, in pp, on the training images that a study scores."""
    scores = {(r['arm'], r['seed']): r['result']['train_accuracy'] for r in rows_of(folder)}
    seeds = sorted(seed for a, seed in scores if a == arm)
    return 100 * np.array([scores[arm, s] - scores[baseline, s] for s in seeds])


def test_the_page_of_the_gate_says_how_gaps_change_with_length():
    page = (ROOT / 'results' / 'gate' / 'README.md').read_text().split('\n## ')[3]
    tables = ROOT / 'results' / 'gate' / 'length' / 'report' / 'tables'
    gaps = {r['comparison']: r for r in csv.DictReader((tables / 'gaps.csv').open())}
    changes = {r['name']: r for r in csv.DictReader((tables / 'contrasts.csv').open())}
    found = re.findall(r'^\| `(\w+)` \u2212 `(\w+)`[^|]*\| (.*) \|$', page, re.M)
    assert len(found) == len(changes) == 3
    for arm, baseline, cells in found:
        name = f'{arm}_minus_{baseline}'
        change = changes[f'{name}_72_less_8']
        assert cells.split(' | ') == [
            *(signed(gaps[f'{name}_{epochs}']['mean']) for epochs in (8, 24, 72)),
            signed(change['mean']),
            f'{signed(change["low"])} to {signed(change["high"])}',
            change['expected'].replace('none', ''),
            change['verdict'],
        ]
    find = statistics.detectable(6, 0.05 / 2) * float(
        changes['k2_minus_dense_active_72_less_8']['sd']
    )
    assert f'is {find:.2f} pp' in ' '.join(page.split())
    assert {gaps[f'k2_minus_dense_{n}']['verdict'] for n in (8, 24, 72)} == {'positive'}
    gate = ROOT / 'results' / 'gate'
    lent = ({**r, 'arm': f'{r["arm"]}_24'} for r in rows_of(gate / 'underfit'))
    rows = [*rows_of(gate / 'length'), *lent]
    means = [
        100 * np.mean([r['curve'][-1]['accuracy'] for r in rows if r['arm'] == f'dense_{epochs}'])
        for epochs in (8, 24, 72)
    ]
    assert 'from {:.2f} over {:.2f} to {:.2f} %'.format(*means) in ' '.join(page.split())


def test_the_page_of_the_gate_says_what_its_report_says():
    gate = ROOT / 'results' / 'gate'
    _, page, underfit, _ = (gate / 'README.md').read_text().split('\n## ')
    gaps = stands_in('control', page, 9)
    random, oracle = (float(gaps[f'{n}_minus_random']['mean']) for n in ('k2', 'oracle'))
    assert f'{random:.2f} of the {oracle:.2f} pp' in page and random > oracle / 2
    frozen = random - float(gaps['k2_minus_frozen_random']['mean'])
    assert f'gets {frozen:.2f} of those pp' in page
    again = gaps['dense_again_minus_dense']
    assert f'{100 * (1 - (1 - float(again["p"])) ** 10):.0f} times in 100' in page
    collapsed = Counter(r['arm'] for r in rows_of(gate / 'control') if r['result']['collapsed'])
    assert collapsed == {'shuffled': 6, 'k1': 5, 'frozen_random': 2}
    assert not any(r['result'].get('collapsed') for r in rows_of(gate / 'underfit'))
    assert f'by {float(again["mean"]):.2f} pp with p = {float(again["p"]):.3f}' in page

    gaps, words = stands_in('underfit', underfit, 5), ' '.join(underfit.split())
    assert_fits(gate / 'underfit', ('dense', 'same_params'), underfit)
    gain = gaps['same_params_minus_dense']
    assert f'room for {float(gain["mean"]):.2f} pp' in words
    assert f'{float(gain["cost"]):.2f} times the FLOPs' in words
    sds = [
        float(gaps[n]['sd']) for n in ('k2_minus_dense', 'k2_minus_dense_active', 'k1_minus_dense')
    ]
    upper = math.sqrt(5 / stats.chi2.ppf(0.2, 5))  # of an sd over six seeds, at 80 %
    find = statistics.detectable(12, 0.05 / 6)
    on_training = [
        trained_gaps(*pair, gate / 'underfit')
        for pair in (('k2', 'dense'), ('k2', 'dense_active'), ('k1', 'dense'))
    ]
    trained = [gaps.std(ddof=1) for gaps in on_training]
    found = [find * s for s in trained]
    for values in (sds, [find * upper * s for s in sds], [find * s for s in sds], trained, found):
        assert '{:.2f}, {:.2f} and {:.2f} pp'.format(*values) in words
    assert f'is {upper:.2f} times as large' in words
    low, high = stats.ttest_1samp(on_training[1], 0).confidence_interval(0.95)
    assert f'differ by {signed(on_training[1].mean())} pp on 10,000 training images' in words
    assert f'(95 % interval {signed(low)} to {signed(high)})' in words


def test_the_walk_through_a_study_says_what_its_gate_found():
    """docs/your_images.md, beside the report of the solar cells."""
    page = ' '.join((ROOT / 'docs' / 'your_images.md').read_text().split())
    folder = ROOT / 'results' / 'solar_cells' / 'gate'
    assert_fits(folder, ('dense', 'same_params'), page)
    (gap,) = csv.DictReader((folder / 'report' / 'tables' / 'gaps.csv').open())
    assert gap['verdict'] in page and f'| `same_params` | {float(gap["cost"]):.2f} |' in page
    assert (
        f'gains {signed(gap["mean"])} pp, with a 95 % interval from {signed(gap["low"])} to '
        f'{signed(gap["high"])}'
    ) in page
    assert f'an sd of {float(gap["sd"]):.2f} pp' in page
    assert f'{float(gap["params"]):.1f} times the parameters' in page
    gaps = trained_gaps('same_params', 'dense', folder)
    low, high = stats.ttest_1samp(gaps, 0).confidence_interval(0.95)
    told = f'{signed(gaps.mean())} pp, 95 % interval {signed(low)} to {signed(high)}'
    assert told in page
    assert f'gaps of {design.detectable(7, float(gap["sd"])):.1f} pp, not of 0.8' in page
