"""Every figure of a study has its numbers in a file, and draws them where they belong."""

import csv
import io
import math
import re
from xml.etree import ElementTree

import pytest
import study_report_cases as cases

from moe_vision.study import report
from moe_vision.study.report import chart, gap_figures, pictures, timing, training_figures
from moe_vision.study.report.document import Picture, Text

SVG = '{http://www.w3.org/2000/svg}'


@pytest.fixture(scope='module')
def maker():
    return cases.full()


@pytest.fixture(scope='module')
def analysis(maker):
    return maker.analysis()


@pytest.fixture(scope='module')
def folder(maker, analysis, tmp_path_factory):
    out = tmp_path_factory.mktemp('figures')
    report.write(analysis, maker.timings(), str(out))
    return out


def paths(root: ElementTree.Element) -> list[list[tuple[float, float]]]:
    """The straight paths of a picture as points, in pixels."""
    found = []
    for node in root.iter(f'{SVG}path'):
        data = node.get('d', '')
        if not re.search('[CQz]', data):
            numbers = [float(v) for v in re.findall(r'-?\d+\.?\d*(?:e-?\d+)?', data)]
            found.append(list(zip(numbers[::2], numbers[1::2], strict=True)))
    return found


def test_every_picture_has_its_numbers_and_every_file_its_picture(folder):
    names = {p.stem for p in (folder / 'figures').glob('*.svg')}
    assert names == {
        'verdicts',
        'gap_against_rho',
        'k_ablation',
        'soft_axis',
        'traces',
        'agreement',
    }
    assert names == {p.stem for p in (folder / 'figures').glob('*.csv')}
    text = (folder / 'report.md').read_text()
    for name in names:
        assert f'(figures/{name}.svg)' in text and f'(figures/{name}.csv)' in text
        root = ElementTree.fromstring((folder / f'figures/{name}.svg').read_text())
        assert root.tag == f'{SVG}svg' and root.get('aria-label')
        raw = (folder / f'figures/{name}.svg').read_text()
        assert 'var(' not in raw and 'http' not in raw.replace('http://www.w3.org/2000/svg', '')
    assert (folder / 'timings/wall_clock.svg').exists()
    assert '(timings/wall_clock.csv)' in (folder / 'timings.md').read_text()


def test_gaps_lie_where_their_numbers_say(folder):
    """In gap_against_rho all whiskers have one scale: x is log ρ and y the gap."""
    rows = list(csv.DictReader(io.StringIO((folder / 'figures/gap_against_rho.csv').read_text())))
    root = ElementTree.fromstring((folder / 'figures/gap_against_rho.svg').read_text())
    upright = [p for p in paths(root) if len(p) == 2 and p[0][0] == p[1][0] and p[0][1] != p[1][1]]
    drawn = sorted((x, *sorted((a, b))) for (x, a), (_, b) in upright)
    assert len(rows) == 10 and len(drawn) == 10
    shift = {'standard': -2.5, 'depthwise': 2.5}
    wanted = sorted(
        (
            math.log(float(r['rho_place'])),
            shift[r['series']],
            -float(r['high_pp']),
            -float(r['low_pp']),
        )
        for r in rows
    )
    (x0, s0, top0, _), (x1, s1, *_) = wanted[0], wanted[-1]
    across = (drawn[-1][0] - s1 - drawn[0][0] + s0) / (x1 - x0)
    low, high = min(w[2] for w in wanted), max(w[3] for w in wanted)
    down = (max(d[2] for d in drawn) - min(d[1] for d in drawn)) / (high - low)
    for (x, top, bottom), (log_rho, s, t, b) in zip(drawn, wanted, strict=True):
        assert x == pytest.approx(drawn[0][0] - s0 + across * (log_rho - x0) + s, abs=0.1)
        assert top == pytest.approx(drawn[0][1] + down * (t - top0), abs=0.1)
        assert bottom - top == pytest.approx(down * (b - t), abs=0.1)


def test_figures_hold_the_analysis(analysis, maker):
    drawn = {p.name: p for p in pictures.every(analysis) if isinstance(p, Picture)}
    for name, at in (('verdicts', 0), ('gap_against_rho', 1), ('soft_axis', 1)):
        head = list(drawn[name].head)
        for row in drawn[name].rows:
            e = analysis.gaps[row[at]].estimate
            values = [row[head.index(key)] for key in ('gap_pp', 'low_pp', 'high_pp', 'level')]
            assert values == [e.mean, e.low, e.high, e.level]
    rho = {row[1]: row[4] for row in drawn['gap_against_rho'].rows}
    assert rho == {n: analysis.gaps[n].rho_place for n in rho} and len(rho) == 10
    slots = {(row[0], row[4]) for row in drawn['soft_axis'].rows}
    assert slots == {(f'axis {a}', 4 * s) for a in ('batch', 'none') for s in (1, 2, 4, 8)}
    lines = {(row[1], row[3]): row[4] for row in drawn['k_ablation'].rows}
    gap = analysis.gaps['k2_vs_dense']
    assert [lines['k2_vs_dense', s] for s in gap.seeds] == list(gap.estimate.values)
    assert ('k4_vs_dense', 7) not in lines
    assert {row[2] for row in drawn['k_ablation'].rows} == {'k = 1', 'k = 2', 'k = 4'}
    row = next(r for r in drawn['traces'].rows if r[1] == 'temperature_1' and r[2] == 3)
    at = maker.rows['temperature_1'][3]['curve'][0]
    layers = at['layers'].values()
    assert row[3:5] == [10, 1.0] and row[7] == 100 * at['accuracy']
    assert row[6] == pytest.approx(sum(layer['gate_entropy'] for layer in layers) / 2)


def test_a_diverged_run_does_not_hide_the_others(analysis):
    """It lies 12 pp below: it is marked at the edge and named, and the others set the range."""
    gaps = analysis.gaps.values()
    low, high = chart.limits(gaps, 0.5)
    calm = [g.estimate for g in gaps if not g.diverged]
    assert low < min(e.low for e in calm) and high > max(e.high for e in calm)
    assert low > -3 and analysis.gaps['soft_batch_s1_vs_dense'].estimate.mean < -10
    picture = gap_figures.soft_axis(analysis, 'n', 't', analysis.study['figures'][2]['series'])
    assert '−12.53 pp' in picture.svg and 'Arrows at the edge' in picture.how
    alone = [analysis.gaps['soft_batch_s1_vs_dense']]
    assert chart.limits(alone, 0.5)[0] < alone[0].estimate.low


def test_the_mean_curve_waits_for_most_seeds():
    curve = training_figures.mean_curve({0: {1.0: 1.0, 2.0: 3.0}, 1: {1.0: 2.0}})
    assert curve == {1.0: 1.5}


def test_figures_without_data_say_why(maker):
    empty = cases.Maker(3)
    empty.figures = maker.figures + [{'kind': 'pie', 'title': 'Pie', 'series': {}}, {}, None]
    found = list(pictures.every(empty.analysis()))
    assert [type(p) for p in found] == [Text] * 8
    words = ' '.join(str(p.words) for p in found)
    assert words.count('is left out') == 8 and 'its kind is “pie”' in words
    clock = list(pictures.clock(empty.analysis(), {}))
    assert len(clock) == 1 and 'neither' not in clock[0].words and 'left out' in clock[0].words


def test_wall_clock_holds_what_was_measured(maker, analysis):
    rows = timing.latency_rows(analysis, maker.timings()['latency'])
    assert [r.batch for r in rows[:4]] == [1, 8, 64, 512]  # by number, not by name
    assert rows[3][:4] == ('dense', 1e7, 512, pytest.approx(0.4 + 0.012 * 512))
    assert rows[3].images_per_second == pytest.approx(512_000 / rows[3].median_ms)
    assert rows[3].accuracy_pp == analysis.arms['dense'].mean


@pytest.mark.parametrize('names', [[f'series_{i}' for i in range(20)], ['x' * 300, 'y'], []])
def test_the_legend_stays_in_the_picture(names):
    lines = chart.legend_lines([chart.short(n) for n in names])
    assert sum(map(len, lines)) == len(names)
    for line in lines:
        assert sum(42 + chart.LETTER * len(name) for name in line) <= chart.WIDTH
    looks = [chart.look(i) for i in range(32)]
    assert len(set(looks)) == 32
