"""The committed results are what the committed rows give: every report can be made again."""

import csv
import math
import shutil
from pathlib import Path

import pytest

from moe_vision.study import __main__ as study
from moe_vision.study import registration, rows

ROOT = Path(__file__).resolve().parents[1]
STUDIES = sorted(p.parent for p in (ROOT / 'results').glob('*/*/preregistration.json'))
REPORTED = [s for s in STUDIES if (s / 'report' / 'report.md').exists()]
ids = lambda path: '/'.join(path.parts[-2:])  # noqa: E731


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
        to.mkdir(parents=True)
        shutil.copy(folder / 'preregistration.json', to)
        for part in ('rows', 'timings'):
            shutil.copytree(folder / part, to / part)
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
            assert all(close(a, b) for x, y in zip(ours, theirs, strict=True)
                       for a, b in zip(x, y, strict=True)), name


@pytest.mark.parametrize('folder', STUDIES, ids=ids)
def test_rows_carry_the_hash_of_what_was_registered(folder):
    record, digest = registration.read(str(folder))
    found, _ = rows.read(str(folder), record, digest)
    assert sum(map(len, found.values())) == len(list(folder.glob('rows/*/*.json')))
    assert all(row['preregistration'] == digest for arm in found.values() for row in arm.values())
