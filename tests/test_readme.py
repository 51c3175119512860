"""The numbers in README.md, results/README.md and docs are those of the rows beside them."""

import csv
import functools
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

ROOT = Path(__file__).resolve().parents[1]


def test_the_numbers_of_the_digits_table_follow_from_the_rows():
    readme = (ROOT / 'README.md').read_text()
    data = json.loads((ROOT / 'results' / 'digits_k2_and_twin.json').read_text())
    assert data['commit'][:7] in readme
    rows = {
        name: sorted((r for r in data['rows'] if r['config'] == name), key=lambda r: r['seed'])
        for name in ('digits_k2', 'digits_dense')
    }
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


DIGITS = ROOT / 'results' / 'digits'
KINDS = ('width', 'placement', 'top_k', 'soft', 'temperature', 'wall_clock')


def pp(value) -> str:
    return f'{float(value):+.2f}'.replace('-', '−')


@functools.cache
def gaps(kind):
    with (DIGITS / kind / 'report' / 'tables' / 'gaps.csv').open() as f:
        return {r['comparison']: r for r in csv.DictReader(f)}


def per_seed(kind):
    with (DIGITS / kind / 'report' / 'tables' / 'per_seed.csv').open() as f:
        return list(csv.DictReader(f))


@functools.cache
def rows(kind):
    return [json.loads(line) for line in (DIGITS / kind / 'rows.jsonl').open()]


@functools.cache
def readme():
    return ' '.join((ROOT / 'README.md').read_text().split())


@functools.cache
def discussion():
    return ' '.join((ROOT / 'results' / 'README.md').read_text().split())


PRIMARY = [(k, c) for k in KINDS for c, r in gaps(k).items() if r['primary'] == '1']


@pytest.mark.parametrize('kind, comparison', PRIMARY)
def test_a_line_of_the_studies_table_is_that_of_the_report(kind, comparison):
    r = gaps(kind)[comparison]
    start = f'| {kind} | `{comparison}` |'
    table = (ROOT / 'results' / 'README.md').read_text().splitlines()
    line = next(x for x in table if x.startswith(start))
    assert [c.strip().strip('*') for c in line[len(start) :].split('|')[:-1]] == [
        f'{100 * float(r["rho_place"]):.1f} %',
        r['expected'],
        r['verdict'],
        pp(r['mean']),
        f'{pp(r["low"])} to {pp(r["high"])}',
        f'{100 * float(r["level"]):.5g} %',
        f'{float(r["cost"]):.2f}×',
        f'{float(r["mde"]):.2f}',
    ]


def compared(kind, comparison):
    """What a comparison compares: configs and seeds of both arms, whatever their names are."""
    sides = (gaps(kind)[comparison][side] for side in ('arm', 'baseline'))
    cells = ([(r['config'], r['run_seed']) for r in rows(kind) if r['arm'] == a] for a in sides)
    return json.dumps(list(cells), sort_keys=True)


def test_what_the_discussion_counts_in_the_studies():
    all_rows = [r for kind in KINDS for r in rows(kind)]
    assert f'{len(all_rows)} cells' in discussion() and {r['images'] for r in all_rows} == {360}
    assert {r['status'] for r in all_rows} == {'done'}
    for commit in {r['git_commit'] for r in all_rows}:
        assert commit[:7] in discussion()
    verdicts = Counter(gaps(k)[c]['verdict'] for k, c in PRIMARY)
    distinct = {compared(k, c) for k, c in PRIMARY}
    told = {1: 'one', 2: 'two', 3: 'three', 4: 'four', 10: 'ten', 11: 'eleven', 12: 'twelve'}
    negative, same, neither = (
        told[verdicts[v]] for v in ('negative', 'equivalent', 'inconclusive')
    )
    assert (
        f'Of {len(PRIMARY)} primary comparisons {negative} came out negative, {same} '
        f'equivalent and {neither} inconclusive'
    ) in discussion()
    assert (
        f'In {len(all_rows)} cells it has {len(PRIMARY)} primary comparisons ({len(distinct)} '
        f'distinct), of which {negative} came out negative, {same} equivalent and {neither} '
        'inconclusive'
    ) in readme()
    assert f'They are {len(distinct)} distinct ones' in discussion()
    assert not any(v.startswith('positive') for v in verdicts)
    unsure = {c: gaps(k)[c]['note'] for k, c in PRIMARY if 'not sure' in gaps(k)[c]['note']}
    assert list(unsure) == ['backbone_gap']
    (note,) = unsure.values()
    assert f'does not confirm `backbone_gap` ({note.rsplit(": ", 1)[1]})' in discussion()
    found = [float(gaps(k)[c]['mde']) for k, c in PRIMARY]
    assert f'{min(found):.2f} to {max(found):.2f} pp' in discussion()


def test_what_the_discussion_says_of_single_gaps():
    decided = {
        c: r
        for kind in KINDS
        for c, r in gaps(kind).items()
        if c.endswith(('_gap', '_minus_dense')) and r['verdict'] in ('negative', 'positive')
    }
    assert set(decided) == {
        'standard_5_gap',
        'throughout_gap',
        'depthwise_3_gap',
        'k1_scaled_minus_dense',
    }
    assert {r['verdict'] for r in decided.values()} == {'negative'}
    for r in decided.values():
        told = f'({pp(r["mean"])} pp, 95 % interval {pp(r["low"])} to {pp(r["high"])})'
        assert r['primary'] == '1' or told in discussion()
    q = {c: float(r['q']) for c, r in decided.items() if r['q']}
    assert [c for c, v in q.items() if v <= 0.05] == ['throughout_gap']
    assert f'(q = {q["throughout_gap"]:.3f})' in discussion()
    controls = ('random', 'frozen_random', 'shuffled')
    wide = [gaps('width')[f'standard_5_minus_{router}'] for router in controls]
    for router in controls:
        assert gaps('top_k')[f'k2_minus_{router}']['verdict'] == 'equivalent'
    assert {r['verdict'] for r in wide} == {'inconclusive'}
    told = '{}, {} and {} pp'.format(*(pp(r['mean']) for r in wide))
    furthest = max(abs(float(r[end])) for r in wide for end in ('low', 'high'))
    assert f'{told}, 95 % intervals within ±{furthest:.2f} pp' in discussion()
    again = {k: gaps(k)['dense_again_minus_dense']['mean'] for k in KINDS}
    assert len({pp(again[k]) for k in KINDS if k != 'width'}) == 1
    assert f'differs from itself by {pp(again["top_k"])} pp in one network' in discussion()
    assert f'by {pp(again["width"])} pp in the other' in discussion()
    accuracies = {}
    for r in rows('top_k'):
        accuracies.setdefault(r['arm'], []).append(100 * r['result']['test_accuracy'])
    means = [np.mean(v) for v in accuracies.values()]
    assert f'between {min(means):.1f} and {max(means):.1f} %' in discussion()


@pytest.mark.parametrize('kind', ['top_k', 'wall_clock'])
def test_what_the_discussion_says_at_equal_flops(kind):
    r = gaps(kind)['k2_minus_dense_active']
    assert f'{float(r["cost"]):.2f}' == '1.00' and r['primary'] == '0'
    gap = np.array(
        [float(x['gap_pp']) for x in per_seed(kind) if x['comparison'] == r['comparison']]
    )
    low, high = stats.ttest_1samp(gap, 0).confidence_interval(0.95)
    told = f'is {r["verdict"]}: {pp(gap.mean())} pp, 95 % interval {pp(low)} to {pp(high)}'
    assert told in discussion() and r['verdict'] == 'negative, within the margin'
    assert f'the sign-flip p is {float(r["p_sign_flip"]):g}' in discussion()
    assert 'not sure' in r['note']
    same, wider = (gaps(kind)[c] for c in ('k2_minus_dense', 'dense_active_minus_dense'))
    assert f'{pp(same["mean"])} pp at {float(same["cost"]):.2f}× the FLOPs' in discussion()
    assert f'gains, too ({pp(wider["mean"])} pp)' in discussion()


def test_what_the_discussion_says_of_time():
    arms = json.loads((DIGITS / 'wall_clock' / 'timings' / 'latency.json').read_text())['arms']
    k2, dense = (
        {b: t['median_ms'] for b, t in arms[a]['batches'].items()} for a in ('k2', 'dense')
    )
    ratios = [k2[b] / dense[b] for b in k2]
    assert list(k2) == ['1', '8', '64', '512']
    times = f'{min(ratios):.1f} to {max(ratios):.1f} times as long as its twin'
    assert f'k = 2 takes {times} for 1 to 512 images' in discussion()


CORES = 'cpu-2-cores.json'
PERFORMANCE = ROOT / 'docs' / 'performance.md'
SPEED = [  # words of a line of that page, suite, words of the row, baseline
    ('factor 1.25, forward', 'layer', 'vectors, T=8192 D=256 F=1024 E=8 k=2 cf=1.25', 'floor'),
    ('which pads nothing', 'layer', 'vectors, T=8192 D=256 F=1024 E=8 k=2 cf=1.25', 'dense'),
    ('128 maps', 'layer', 'maps 8x8, T=128 D=64 F=64 E=8 k=2 cf=1.25', 'floor'),
    ('as many maps', 'layer', 'maps 8x8, T=128 D=64 F=64 E=8 k=2 cf=1.25', 'dense'),
    ('the same at factor 1.0', 'layer', 'vectors, T=8192 D=256 F=1024 E=8 k=2 cf=1', 'dense'),
    ('dispatch by one-hot', 'layer', 'vectors, T=8192 D=256 F=1024 E=8 k=2 cf=1', 'einsum'),
    ('ragged_dot`', 'layer', 'vectors, T=1024 D=256 F=1024 E=8 k=2 cf=1.25', 'ragged'),
    ('step of `digits_k2`', 'step', 'digits_k2', 'twin'),
    ('step of a small ViT', 'step', 'small ViT', 'twin'),
    (
        'through `cifar10_standard`',
        'latency',
        'cifar10_standard, batch 1',
        'dense of its active FLOPs',
    ),
    ('through `digits_k2`', 'latency', 'digits_k2, batch 1', 'dense of its active FLOPs'),
    ('whose factor is 2', 'latency', 'digits_k2, batch 64', 'dense of its active FLOPs'),
    (
        "`seed_mode='together'`",
        'seeds',
        'a whole study, digits_k2 and digits_dense, S=8',
        'one by one',
    ),
]


@pytest.mark.parametrize('words, suite, case, baseline', SPEED)
def test_a_line_of_the_table_of_times_is_that_of_its_row(words, suite, case, baseline):
    suites = json.loads((ROOT / 'benchmarks' / 'results' / CORES).read_text())['suites']
    row = next(r for r in suites[suite]['rows'] if r['case'] == case)
    line = next(
        x
        for x in PERFORMANCE.read_text().splitlines()
        if words in x and x.startswith('|') and x.count('|') == 4
    )
    assert line.endswith(f'| {row["ratios"][baseline]:.2f} |')
    if 'times the FLOPs' in line:
        assert f'{row["facts"]["times the FLOPs"]:.2f} times the FLOPs' in line


def test_what_the_page_says_of_programs_compiled_for_a_gpu():
    lines = (ROOT / 'benchmarks' / 'results' / 'h100-compiled.md').read_text().splitlines()
    cells = [[c.strip() for c in x.strip('|').split('|')] for x in lines if x.startswith('|')]
    layers = [c for c in cells if c[0].startswith('vectors')]
    step, vit = (
        next(c for c in cells if c[0].startswith(n)) for n in ('imagenet_k2', 'imagenet_vit')
    )
    floor = [float(c[2]) for c in layers]
    told = ' '.join(PERFORMANCE.read_text().split())
    assert f'take {min(floor):.2f} to {max(floor):.2f} of their experts alone' in told
    assert f"{step[2]} of its twin's at {step[-1]} times the FLOPs" in told
    assert f'that of `imagenet_vit_s16_k2` {vit[2]} at {vit[-1]} times' in told
    for c in (step, vit):  # what programs were shortened to
        assert f'{c[3]} kernels, {c[4]} GB, {c[1]} ms' in told
    assert f'{layers[0][6]} GB, {layers[0][1]} ms, {layers[0][7]} MB' in told
    for c in layers:
        assert not c[4] or round(1 / float(c[4])) == 7
        memory = [float(m.replace(',', '')) for m in (c[7], c[10]) if m]
        assert len(memory) < 2 or round(memory[1] / memory[0]) == 6


def test_the_same_config_and_seed_give_the_same_answers_in_every_study():
    """Trained anew in each: right on the same images, and equal in every probed number."""
    found = {}
    for kind in KINDS:
        for r in rows(kind):
            key = json.dumps([r['config'], r['run_seed']], sort_keys=True)
            found.setdefault(key, []).append(r)
    shared = [of for of in found.values() if len(of) > 1]
    assert len(shared) > 50
    for first, *others in shared:
        assert all(r['correct'] == first['correct'] for r in others)
        assert all(r['result'] == first['result'] for r in others)
