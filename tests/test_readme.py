"""The README's numbers are those of the rows beside them."""

import csv
import json
from pathlib import Path

import numpy as np
from scipy import stats

ROOT = Path(__file__).resolve().parents[1]


def test_the_numbers_of_the_digits_table_follow_from_the_rows():
    readme = (ROOT / 'README.md').read_text()
    data = json.loads((ROOT / 'results' / 'digits_k2_and_twin.json').read_text())
    assert data['commit'][:7] in readme
    rows = {name: sorted((r for r in data['rows'] if r['config'] == name), key=lambda r: r['seed'])
            for name in ('digits_k2', 'digits_dense')}
    accuracy = {}
    for name, of in rows.items():
        assert [r['seed'] for r in of] == [0, 1, 2, 3, 4]
        accuracy[name] = 100 * np.array([r['test_accuracy'] for r in of])
        line = next(x for x in readme.splitlines() if x.startswith(f'| `{name}`'))
        assert f'{accuracy[name].mean():.2f} ± {accuracy[name].std(ddof=1):.2f} %' in line
        assert f'{of[0]["flops"] / 1e6:.1f} M' in line and f'{of[0]["params_total"]:,}' in line
    gap = accuracy['digits_k2'] - accuracy['digits_dense']
    low, high = stats.ttest_1samp(gap, 0).confidence_interval(0.95)
    text = ' '.join(readme.split())
    assert f'−{-gap.mean():.2f} percentage points' in text
    assert f'from −{-low:.2f} to {high:.2f}' in text
    cost = rows['digits_k2'][0]['flops'] / rows['digits_dense'][0]['flops']
    assert f"{cost:.2f} times the twin's FLOPs" in text
    experts = [r['effective_experts'] for r in rows['digits_k2']]
    assert f'{min(experts):.1f} to {max(experts):.1f} effective experts' in text


def test_the_studies_rows_are_those_of_their_tables():
    readme = (ROOT / 'README.md').read_text()
    folder = ROOT / 'results' / 'digits' / 'width'
    with (folder / 'report' / 'tables' / 'gaps.csv').open() as f:
        primary = [r for r in csv.DictReader(f) if r['primary'] == '1']
    pp = lambda v: f'{float(v):+.2f}'.replace('-', '−')  # noqa: E731
    for r in primary:
        line = next(x for x in readme.splitlines() if x.startswith(f'| `{r["comparison"]}`'))
        cells = [c.strip().strip('*') for c in line.split('|')[2:-1]]
        assert cells == [
            f'{100 * float(r["rho_place"]):.1f} %', r['expected'], r['verdict'], pp(r['mean']),
            f'{pp(r["low"])} to {pp(r["high"])}', f'{100 * float(r["level"]):.5g} %',
            f'{float(r["cost"]):.2f}×']
    found = [float(r['mde']) for r in primary]
    assert f'between {min(found):.2f} and {max(found):.2f} pp' in ' '.join(readme.split())
    rows = [json.loads(p.read_text()) for p in folder.glob('rows/*/*.json')]
    assert f'{len(rows)} cells' in readme and {r['images'] for r in rows} == {360}
    commit, = {r['git_commit'] for r in rows}
    assert f'commit {commit[:7]}' in readme
