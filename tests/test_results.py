"""The committed results are what the committed rows give: every report can be made again."""

import csv
import math
import re
import shutil
from pathlib import Path

import pytest

from moe_vision.study import __main__ as study
from moe_vision.study import design, registration, rows

ROOT = Path(__file__).resolve().parents[1]
STUDIES = sorted(p.parent for p in (ROOT / 'results').glob('*/*/preregistration.json'))
REPORTED = [s for s in STUDIES if (s / 'report' / 'report.md').exists()]


def ids(path: Path) -> str:
    return '/'.join(path.parts[-2:])


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
    assert study.main(['report', f'--workdir={results}']) == 0
    return results


@pytest.mark.parametrize('folder', REPORTED, ids=ids)
def test_a_report_is_made_again_from_its_rows(folder, results):
    made, kept = results / folder.relative_to(ROOT / 'results') / 'report', folder / 'report'
    names = {str(p.relative_to(kept)) for p in kept.rglob('*') if p.is_file()}
    assert names == {str(p.relative_to(made)) for p in made.rglob('*') if p.is_file()}
    assert (made / 'report.md').read_text() == (kept / 'report.md').read_text()
    for name in names:
        if name.endswith('.csv'):
            ours, theirs = (list(csv.reader((of / name).open())) for of in (made, kept))
            assert [len(row) for row in ours] == [len(row) for row in theirs], name
            assert all(
                close(a, b)
                for x, y in zip(ours, theirs, strict=True)
                for a, b in zip(x, y, strict=True)
            ), name


@pytest.mark.parametrize('folder', STUDIES, ids=ids)
def test_rows_carry_the_hash_of_what_was_registered(folder):
    record, digest = registration.read(str(folder))
    found, _ = rows.read(str(folder), record, digest)
    assert sum(map(len, found.values())) == cells(folder)
    assert all(row['preregistration'] == digest for arm in found.values() for row in arm.values())


@pytest.mark.parametrize('folder', STUDIES, ids=ids)
def test_the_guide_has_a_line_for_the_folder(folder):
    lines = (ROOT / 'results' / 'README.md').read_text().splitlines()
    kind, name = folder.parts[-2:]
    start = f'| [{kind}/{name}]({kind}/{name}/report/report.md) |'
    if folder not in REPORTED:
        start = next(
            x
            for x in lines
            if x.startswith(f'| {kind}/{{') and name in re.findall(r'\w+', x.split('|')[1])
        )
    assert [x.endswith(f'| {cells(folder)} |') for x in lines if x.startswith(start)] == [True]


def test_the_page_of_the_gate_says_what_its_report_says():
    page = (ROOT / 'results' / 'gate' / 'README.md').read_text()
    tables = ROOT / 'results' / 'gate' / 'control' / 'report' / 'tables'
    gaps = {r['comparison']: r for r in csv.DictReader((tables / 'gaps.csv').open())}
    lines = re.findall(r'^\| `(\w+)` \u2212 `(\w+)`[^|]*\| (\S+) \| (\S+) to (\S+) \|', page, re.M)
    assert len(lines) == 9
    for arm, baseline, *numbers in lines:
        gap = gaps[f'{arm}_minus_{baseline}']
        assert numbers == [signed(gap[n]) for n in ('mean', 'low', 'high')], arm
    random, oracle = (float(gaps[f'{n}_minus_random']['mean']) for n in ('k2', 'oracle'))
    assert f'{random:.2f} of the {oracle:.2f} pp' in page and random > oracle / 2
    again = gaps['dense_again_minus_dense']
    assert f'by {float(again["mean"]):.2f} pp with p = {float(again["p"]):.3f}' in page


def test_the_walk_through_a_study_says_what_its_gate_found():
    """docs/your_images.md, beside the report of the solar cells."""
    page = ' '.join((ROOT / 'docs' / 'your_images.md').read_text().split())
    folder = ROOT / 'results' / 'solar_cells' / 'gate'
    _, underfit = (folder / 'report' / 'report.md').read_text().split('## Underfit')
    for arm, flops in (('dense', '1'), ('same_params', '2.84')):
        line = next(x for x in underfit.splitlines() if x.startswith(f'| `{arm}` |'))
        cells = [cell.strip() for cell in line.strip('|').split('|')]
        assert f'| `{arm}` | {flops} | {" | ".join(cells[1:])} |' in page
    (gap,) = csv.DictReader((folder / 'report' / 'tables' / 'gaps.csv').open())
    assert gap['verdict'] in page and f'{float(gap["cost"]):.2f}' == '2.84'
    assert (
        f'gains {signed(gap["mean"])} pp, with a 95 % interval from {signed(gap["low"])} to '
        f'{signed(gap["high"])}'
    ) in page
    assert f'an sd of {float(gap["sd"]):.2f} pp' in page
    assert f'{float(gap["params"]):.1f} times the parameters' in page
    assert f'gaps of {design.detectable(7, float(gap["sd"])):.1f} pp, not of 0.8' in page
