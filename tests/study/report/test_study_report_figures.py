"""Every figure of a study has its numbers in a file, and draws them where they belong."""

import copy
import csv
import dataclasses
import functools
import io
import math
import re
import statistics
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest
import study_report_cases as cases

from moe_vision.study import report
from moe_vision.study.report import (
    chart,
    cost_figure,
    gap_figures,
    legend,
    pictures,
    timing,
    training_figures,
    verdict_figure,
)
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


def paths(root: ElementTree.Element, width: str = '') -> list[list[tuple[float, float]]]:
    """The straight paths of a picture as points, in pixels; of a stroke width, if it is given."""
    found = []
    for node in root.iter(f'{SVG}path'):
        data = node.get('d', '')
        if width and f'stroke-width: {width}' not in (node.get('style') or '').split('; '):
            continue
        if not re.search('[CQz]', data):
            numbers = [float(v) for v in re.findall(r'-?\d+\.?\d*(?:e-?\d+)?', data)]
            found.append(list(zip(numbers[::2], numbers[1::2], strict=True)))
    return found


def test_every_picture_has_its_numbers_and_every_file_its_picture(folder):
    names = {p.stem for p in (folder / 'figures').glob('*.svg')}
    assert names == {
        'verdicts',
        'accuracy_against_flops',
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
    for name in ('wall_clock', 'accuracy_against_time'):
        assert (folder / f'timings/{name}.svg').exists()
        assert f'(timings/{name}.csv)' in (folder / 'timings.md').read_text()


@pytest.mark.parametrize(
    'stroke, low_pp, high_pp',
    [('1.5', 'low_pp', 'high_pp'), ('5', 'inner_low_pp', 'inner_high_pp')],
)
def test_gaps_lie_where_their_numbers_say(folder, stroke, low_pp, high_pp):
    """In gap_against_rho all intervals have one scale: x is log ρ and y the gap."""
    rows = list(csv.DictReader(io.StringIO((folder / 'figures/gap_against_rho.csv').read_text())))
    root = ElementTree.fromstring((folder / 'figures/gap_against_rho.svg').read_text())
    straight = [p for p in paths(root, stroke) if len(p) == 2]
    upright = [p for p in straight if p[0][0] == p[1][0] and p[0][1] != p[1][1]]
    drawn = sorted((x, *sorted((a, b))) for (x, a), (_, b) in upright)
    assert len(rows) == 10 and len(drawn) == 10
    shift = {'standard': -4, 'depthwise': 4}
    wanted = sorted(
        (
            math.log(float(r['rho_place'])),
            shift[r['series']],
            -float(r[high_pp]),
            -float(r[low_pp]),
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
    for name, at in (('verdicts', 0), ('gap_against_rho', 1), ('soft_axis', 1), ('k_ablation', 1)):
        head = list(drawn[name].head)
        for row in drawn[name].rows:
            for part, e in (
                ('', analysis.gaps[row[at]].outer),
                ('inner_', analysis.gaps[row[at]].inner),
            ):
                keys = ('gap_pp', *(f'{part}{key}' for key in ('low_pp', 'high_pp', 'level')))
                assert [row[head.index(key)] for key in keys] == [e.mean, e.low, e.high, e.level]
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
    calm = [g.outer for g in gaps if not g.diverged]
    assert low < min(e.low for e in calm) and high > max(e.high for e in calm)
    assert low > -3 and analysis.gaps['soft_batch_s1_vs_dense'].estimate.mean < -10
    picture = gap_figures.soft_axis(analysis, 'n', 't', analysis.study['figures'][2]['series'])
    assert '−12.53 pp' in picture.svg and 'Arrows at the edge' in picture.how
    alone = [analysis.gaps['soft_batch_s1_vs_dense']]
    assert chart.limits(alone, 0.5)[0] < alone[0].outer.low


def test_every_interval_of_every_picture_has_one_of_two_levels(folder, analysis):
    """Whatever was drawn: gaps or accuracies, against ρ, k, FLOPs or time."""
    outer, inner = (f'{v:.10g}' for v in analysis.levels)
    levels = {'level': outer, 'inner_level': inner}
    seen = set()
    for path in [*folder.glob('figures/*.csv'), *folder.glob('timings/*.csv')]:
        for row in csv.DictReader(io.StringIO(path.read_text())):
            for key in levels.keys() & row.keys():
                assert row[key] == levels[key], path
                seen.add(path.stem)
    assert seen == {
        'verdicts',
        'accuracy_against_flops',
        'gap_against_rho',
        'k_ablation',
        'soft_axis',
        'wall_clock',
        'accuracy_against_time',
    }
    for picture in pictures.every(analysis):
        if isinstance(picture, Picture) and picture.name in seen:
            assert '98.75 %' in picture.how and '90 %' in picture.how
            assert (
                'those of all 4 primary comparisons of the study hold together with 95 %'
                in picture.how
            )
            assert (
                '98.75 % interval: 95 % together' in picture.svg and '90 % interval' in picture.svg
            )


def test_what_gaps_are_drawn_against_has_keys_and_a_dot_per_seed(analysis):
    series = analysis.study['figures'][0]['series']
    svg = gap_figures.against_rho(analysis, 'n', 't', series).svg
    for key in ('one seed', 'margin of equivalence', 'primary', 'exploratory'):
        assert f'>{key}<' in svg
    picture = ElementTree.fromstring(svg)
    dots = [n for n in picture.iter('use') if 'stroke-opacity: 0.55' in (n.get('style') or '')]
    assert len(dots) == sum(len(analysis.gaps[n].seeds) for of in series.values() for n in of) + 1


def test_comparisons_are_grouped_by_what_they_share(analysis):
    gaps = list(analysis.gaps.values())
    found = verdict_figure.groups(analysis, gaps)
    assert sorted(g.name for of in found.values() for g in of) == sorted(analysis.gaps)
    heads = list(found)
    assert heads[0] == 'primary' and all(g.confirms for g in found['primary'])
    for head in heads[1:]:
        assert head.startswith('exploratory') and not any(g.confirms for g in found[head])
        if 'other pairs' not in head:
            sides = [{g.arm for g in found[head]}, {g.baseline for g in found[head]}]
            assert min(map(len, sides)) == 1 and len(found[head]) >= 2
    few = [g for g in gaps if not g.confirms][:2]
    assert verdict_figure.groups(analysis, few) == {'exploratory': few}
    picture = verdict_figure.verdicts(analysis, 'n', 't', {})
    assert all(f'>{head}<' in picture.svg for head in heads)


def test_no_point_of_a_trace_is_clipped(maker):
    """Every validation lies inside its panel, the first ones of a slow start too."""
    for row in maker.rows['temperature_0'].values():
        row['curve'][0]['accuracy'] = 0.05
    analysis = maker.analysis()
    svg = training_figures.traces(analysis, 'n', 't', analysis.study['figures'][3]['series']).svg
    root = ElementTree.fromstring(svg.replace('<svg ', '<svg xmlns="http://www.w3.org/2000/svg" '))
    boxes = {}
    for clip in root.iter(f'{SVG}clipPath'):
        rect = clip.find(f'{SVG}rect')
        boxes[clip.get('id')] = [float(rect.get(k)) for k in ('x', 'y', 'width', 'height')]
    clipped = 0
    for node in root.iter(f'{SVG}path'):
        if box := boxes.get((node.get('clip-path') or '')[5:-1]):
            numbers = [float(v) for v in re.findall(r'-?\d+\.?\d*', node.get('d', ''))]
            x, y, width, height = box
            assert all(x - 1 <= v <= x + width + 1 for v in numbers[::2])
            assert all(y - 1 <= v <= y + height + 1 for v in numbers[1::2])
            clipped += 1
    assert len(boxes) == 4 and clipped > 4 * 3 * 8


def test_agreement_has_a_band_for_each_arm(analysis):
    picture = training_figures.agreement(analysis, 'n', 't')
    bands = [b for b in picture.svg.split('<path')[1:] if 'fill-opacity: 0.13' in b.split('>')[0]]
    bands += [b for b in picture.svg.split('<use')[1:] if 'fill-opacity: 0.13' in b.split('>')[0]]
    arms = {row[0] for row in picture.rows}
    assert len(bands) == 2 * min(len(arms), 8)
    assert 'bands: its 90 % t-interval' in picture.how


def test_accuracy_stands_against_every_cost_that_is_known(maker, analysis, folder):
    rows = {
        r['arm']: r
        for r in csv.DictReader(
            io.StringIO((folder / 'timings/accuracy_against_time.csv').read_text())
        )
    }
    assert list(rows) == list(analysis.arms)
    latency = maker.timings()['latency']['arms']
    for name, row in rows.items():
        arm = analysis.arms[name]
        assert float(row['flops']) == pytest.approx(arm.flops)
        assert (row['routed'] == '1') == arm.routed
        assert float(row['accuracy_pp']) == pytest.approx(arm.mean)
        assert float(row['low_pp']) == pytest.approx(arm.outer.low)
        seconds = [61.0 + s for s in maker.rows[name]]
        assert float(row['training_seconds']) == statistics.median(seconds)
        for batch in ('1', '512'):
            known = latency.get(name, {}).get('batches', {}).get(batch, {}).get('median_ms')
            shown = row[f'latency_ms_{batch}']
            assert float(shown) == pytest.approx(known) if known else shown == ''
    flops = list(csv.DictReader((folder / 'figures/accuracy_against_flops.csv').open()))
    assert 'training_seconds' not in flops[0] and [r['arm'] for r in flops] == list(rows)


CONFIG = {
    'model': {'name': 'conv', 'args': {'widths': [8]}, 'twin': 'same_width', 'moe': {'hidden': 8}},
    'train': {'epochs': 3},
}


@pytest.mark.parametrize(
    'change, joined',
    [
        ({'model.moe.hidden': 16}, True),
        ({'model.args.widths': [16]}, True),
        ({'model.twin': 'same_active_flops'}, True),
        ({'seed': 1}, True),
        ({'model.name': 'depthwise'}, False),
        ({'model.args.norm': 'batch'}, False),
        ({'model.moe.placement': 'head'}, False),
        ({'model.twin': 'same_drops'}, False),
        ({'train.epochs': 5}, False),
    ],
)
def test_a_line_joins_dense_arms_that_differ_in_width_alone(change, joined):
    maker = cases.Maker(3)
    for i in range(2):
        maker.arm(f'dense_{i}', 98 + i, 0.0, routed=False)
        maker.arms[f'dense_{i}']['flops'] = 1e7 * (1 + i)
    routed = maker.arm('k2', 98, 0.3)
    analysis = maker.analysis()
    other = copy.deepcopy(CONFIG)
    for key, value in change.items():
        *path, last = key.split('.')
        functools.reduce(dict.__getitem__, path, other)[last] = value
    arms = {
        name: dataclasses.replace(a, config=other if name == 'dense_1' else CONFIG)
        for name, a in analysis.arms.items()
    }
    analysis = dataclasses.replace(analysis, arms=arms)
    picture = cost_figure.accuracy_against(analysis, 'n', 't', [cost_figure.flops(analysis)])
    lines = {row[0]: row[2] for row in picture.rows}
    assert (lines['dense_0'] == lines['dense_1']) == joined and lines[routed] is None
    assert ('dense, by width' in picture.svg) == joined


def test_no_line_joins_two_sets_of_seeds_of_one_width():
    maker = cases.Maker(3)
    for name in ('dense', 'dense_again'):
        maker.arm(name, 98, 0.0, routed=False)
    analysis = maker.analysis()
    costs = [
        cost_figure.flops(analysis),
        cost_figure.Cost('seconds', 'seconds', {'dense': 3.0, 'dense_again': 4.0}),
    ]
    picture = cost_figure.accuracy_against(analysis, 'n', 't', costs)
    assert picture.rows[0][2] == picture.rows[1][2] and 'by width' not in picture.svg
    root = ElementTree.fromstring(picture.svg.replace('<svg ', f'<svg xmlns="{SVG[1:-1]}" '))
    assert not [p for p in paths(root, '1.3') if len(p) > 1]


@pytest.mark.parametrize('at', [[0.0], [0, 0, 0], [0, 5, 30], [1, 2, 3, 50, 51], [0, 8, 16, 17]])
def test_points_are_moved_apart_as_little_as_can_be(at):
    named = {str(i): float(v) for i, v in enumerate(at)}
    moved = {name: named[name] + by for name, by in cost_figure.apart(named, 10).items()}
    places = sorted(moved.values())
    assert all(b - a >= 10 - 1e-9 for a, b in zip(places, places[1:], strict=False))
    assert sum(moved.values()) == pytest.approx(sum(at))
    assert list(moved) == sorted(moved, key=lambda n: moved[n]) or len(set(at)) < len(at)


def test_a_study_of_very_many_arms_has_a_picture_that_can_be_read():
    maker = cases.Maker(2)
    for i in range(40):
        maker.arm(f'arm_{i}', 98, 0.01 * i, routed=i % 2 == 0)
    analysis = maker.analysis()
    picture = cost_figure.accuracy_against(analysis, 'n', 't', [cost_figure.flops(analysis)])
    assert '>routed<' in picture.svg and '>dense<' in picture.svg and '>arm_3<' not in picture.svg
    assert len(picture.rows) == 40


def test_one_comparison_of_two_series_stands_at_its_own_rho():
    """A picture of single points has the range of these points, although they are moved aside."""
    maker = cases.Maker(3)
    base = maker.arm('dense', 98, 0.0, routed=False)
    names = [maker.compare(maker.arm(n, 98, rho), base) for n, rho in (('a', 0.3), ('b', 0.5))]
    picture = gap_figures.against_rho(maker.analysis(), 'n', 't', {name: [name] for name in names})
    ticks = [float(v) for v in re.findall(r'>([\d.]+) %<', picture.svg)]
    assert len(ticks) >= 3 and all(25 < v < 55 for v in ticks)


def test_the_mean_curve_waits_for_most_seeds():
    curve = training_figures.mean_curve({0: {1.0: 1.0, 2.0: 3.0}, 1: {1.0: 2.0}})
    assert curve == {1.0: 1.5}


def test_figures_without_data_say_why(maker):
    empty = cases.Maker(3)
    empty.figures = maker.figures + [{'kind': 'pie', 'title': 'Pie', 'series': {}}, {}, None]
    found = list(pictures.every(empty.analysis()))
    assert [type(p) for p in found] == [Text] * 9
    words = ' '.join(str(p.words) for p in found)
    assert words.count('is left out') == 9 and 'its kind is “pie”' in words
    clock = list(pictures.clock(empty.analysis(), {}))
    assert len(clock) == 1 and 'neither' not in clock[0].words and 'left out' in clock[0].words


def test_wall_clock_holds_what_was_measured(maker, analysis):
    rows = timing.latency_rows(analysis, maker.timings()['latency'])
    assert [r.batch for r in rows[:4]] == [1, 8, 64, 512]  # by number, not by name
    assert rows[3][:4] == ('dense', 1e7, 512, pytest.approx(0.4 + 0.012 * 512))
    assert rows[3].images_per_second == pytest.approx(512_000 / rows[3].median_ms)
    assert rows[3].accuracy_pp == analysis.arms['dense'].mean


def test_rho_in_time_stands_beside_the_leverages_where_it_was_measured(maker, analysis):
    measured = maker.timings()
    assert not timing.rho_rows(analysis, measured['latency'])
    assert set(timing.tables(analysis, measured)) == {'cells.csv', 'latency.csv'}
    arm = 'standard_h8'
    times = measured['latency']['arms'][arm]['batches']['8']
    times |= {'rest_ms': 0.25, 'rho_time': 0.4, 'rho_time_low': -0.01, 'rho_time_high': 0.5}
    (row,) = timing.rho_rows(analysis, measured['latency'])
    known = analysis.arms[arm]
    assert row == (arm, 8, times['median_ms'], 0.25, 0.4, -0.01, 0.5, *row[7:])
    assert row[7:] == (known.rho_place, known.rho_executed) and row.rho_place > 0
    document = timing.document(analysis, measured, ())
    (section,) = [s for s in document.sections if s.anchor == 'rho']
    assert section.blocks[1].rows[0][3:7] == ['0.25', '40.00', '−1.00', '50.00']
    head, line = timing.tables(analysis, measured)['rho_in_time.csv'].splitlines()
    assert head.split(',')[4] == 'rho_time' and line.split(',')[:2] == [arm, '8']


@pytest.mark.parametrize('names', [[f'series_{i}' for i in range(20)], ['x' * 300, 'y'], []])
def test_the_legend_stays_in_the_picture(names):
    lines = legend.legend_lines([legend.short(n) for n in names])
    assert sum(map(len, lines)) == len(names)
    for line in lines:
        assert sum(42 + legend.LETTER * len(name) for name in line) <= legend.WIDTH
    looks = [legend.look(i) for i in range(32)]
    assert len(set(looks)) == 32


def test_a_line_joins_single_blocks_that_differ_in_width():
    def arm(name, **changes):
        model = {'name': 'conv', 'args': {'widths': [8, 16], 'depth': 1}, 'twin': 'same_width'}
        return SimpleNamespace(name=name, config={'model': {**model, 'moe': {}} | changes})

    arms = [
        arm('dense'),
        arm('wide', args={'widths': [16, 32], 'depth': 1}),
        arm('active', twin='same_active_flops'),
        arm('ensemble', twin='ensemble'),
        arm('deep', args={'widths': [8, 16], 'depth': 2}),
        arm('drops', twin='same_drops'),
        arm('half', dtype='bfloat16'),
    ]
    lines = cost_figure._lines(None, arms)
    assert [[a.name for a in line] for line in lines] == [
        ['dense', 'wide', 'active'],
        ['ensemble'],
        ['deep'],
        ['drops'],
        ['half'],
    ]


def test_the_time_of_a_cell_is_that_of_one_trained_at_one_go():
    """One that was continued, or diverged, has no `trained_flops`; its seconds are a part."""
    whole = {'seconds': 90.0, 'trained_flops': 3}
    cells = {0: whole, 1: {'seconds': 5.0, 'trained_flops': None}, 2: {'seconds': 6.0}}
    _, count, mean, least, most, *_ = timing._cell('k1', cells)
    assert count == '3' and least == most and '90' in least and '90' in mean
    (cost,) = cost_figure.times(SimpleNamespace(arms={'k1': None}), {'cells': {'k1': cells}})
    assert cost.of_arm == {'k1': 90.0}
