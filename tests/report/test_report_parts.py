"""The report's parts: command, imports, verdict, and the arithmetic of the pictures."""

import ast
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from moe_vision import report
from moe_vision.common import limits
from moe_vision.config import schema
from moe_vision.report import charts, health, markup, palette, read
from moe_vision.run_folder import record

PACKAGE = pathlib.Path(report.__file__).parent
ROOT = PACKAGE.parent.parent


def command(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, '-m', 'moe_vision.report', *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_command_writes_the_page(make, tmp_path):
    folder = make(rows=3, samples=1).save(tmp_path / 'run')
    done = command(f'--workdir={folder}')
    assert done.returncode == 0 and done.stdout.strip() == str(folder / 'report.html')
    assert (folder / 'report.html').read_text().startswith('<!doctype html>')


@pytest.mark.parametrize(
    'arguments, message',
    [
        ((), '--workdir'),
        (('--wrokdir=missing',), "Did you mean '--workdir'?"),
        (('--workdir=missing',), "'missing' is not a folder"),
        (('--workdir=.ci',), 'no run'),
        (('--workdir=.', '--nonsense'), '--nonsense'),
    ],
)
def test_command_errors_are_one_line_and_exit_code_2(arguments, message, tmp_path):
    arguments = tuple(a.replace('.ci', str(tmp_path)) for a in arguments)
    done = command(*arguments)
    assert done.returncode == 2 and done.stdout == ''
    assert done.stderr.startswith('error: ') and done.stderr.count('\n') == 1
    assert message in done.stderr


def test_importing_and_writing_needs_no_jax(make, tmp_path):
    folder = make(rows=2, samples=1).save(tmp_path / 'run')
    code = (
        f'import sys; from moe_vision import report; report.write({str(folder)!r}); '
        'print([m for m in sys.modules if m.split(".")[0] in '
        '("jax", "jaxlib", "flax", "tensorflow")'
        ' or m == "matplotlib.pyplot" or m.startswith("moe_vision.") '
        'and m != "moe_vision.config" and not m.startswith('
        '("moe_vision.report", "moe_vision.common", "moe_vision.leverage"))])'
    )
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == '[]', done.stderr


def test_report_imports_nothing_else_of_the_project_but_common():
    allowed = set(sys.stdlib_module_names) | {'matplotlib', 'numpy', 'etils'}
    for file in PACKAGE.rglob('*.py'):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [f'{node.module}.{a.name}' for a in node.names]
            for name in names:
                own = f'{name}.'.startswith(('moe_vision.report.', 'moe_vision.common.'))
                assert own or name.split('.')[0] in allowed, (file.name, name)


def judged(maker, tmp_path) -> health.Verdict:
    return health.judge(read.load(maker.save(tmp_path / 'run')))


def test_healthy_run_is_called_healthy(make, tmp_path):
    verdict = judged(make(), tmp_path)
    assert verdict.level == 'good' and not verdict.points


@pytest.mark.parametrize(
    'change, level, key, message',
    [
        (
            {'dead_experts': 2},
            'bad',
            'model.moe.losses',
            'head: 2 of its 8 experts are dead (below 1 % of an even load), on the test set',
        ),
        (
            {'dead_experts': 1, 'effective_experts': 6.1},
            'bad',
            'model.moe.losses',
            'head: 1 of its 8 experts is dead',
        ),
        (
            {'effective_experts': 3.1},
            'bad',
            'model.moe.router (now top_k)',
            'head: fewer than half of its 8 experts carry the load (the equivalent of 3.1)',
        ),
        ({'effective_experts': 3.999}, 'bad', 'model.moe.losses', '(the equivalent of 3.99)'),
        (
            {'drop_rate': 0.25},
            'warn',
            'model.moe.eval_capacity_factor (now 2.0)',
            'dropped for lack of room on the test set: head (25.0 %',
        ),
    ],
)
def test_trouble_names_layer_number_and_config_key(change, level, key, message, make, tmp_path):
    maker = make()
    maker.evaluation['layers']['head'].update(change)
    verdict = judged(maker, tmp_path)
    assert verdict.level == level and len(verdict.points) == 1
    assert key in verdict.points[0] and message in verdict.points[0]
    assert message.split(', on')[0] in verdict.line


@pytest.mark.parametrize('effective', [3.99, 4.0, 6.1, 8.0])
@pytest.mark.parametrize('dead', [0, 1, 5])
def test_the_page_and_the_result_mean_the_same_by_collapsed(effective, dead, make, tmp_path):
    maker = make()
    numbers = {'effective_experts': effective, 'dead_experts': dead}
    maker.evaluation['layers']['blocks_1'] |= numbers
    want = record.collapsed(maker.evaluation['layers'])
    assert want == (effective < 4 or dead > 0)
    verdict = judged(maker, tmp_path)
    assert (verdict.level == 'bad') == want
    assert verdict.line.startswith('Routing collapsed: blocks_1: ' if want else 'No collapse')


@pytest.mark.parametrize('asked, limit', [(None, 0.2), (0.1, 0.1), ('x', 0.2), (7, 0.2)])
def test_drops_beyond_the_limit_of_the_config_are_trouble(asked, limit, make, tmp_path):
    for drops, level in ((limit, 'good'), (limit + 0.01, 'warn')):
        maker = make()
        maker.config['config']['log'] = {'warn_drop_rate': asked}
        maker.evaluation['layers']['head']['drop_rate'] = drops
        assert judged(maker, tmp_path / level).level == level


def test_the_limit_of_drops_has_one_value():
    assert schema.Log().warn_drop_rate == limits.DROPS


def test_collapse_comes_first(make, tmp_path):
    maker = make()
    maker.evaluation['layers']['blocks_2']['effective_experts'] = 1.2
    verdict = judged(maker, tmp_path)
    assert verdict.level == 'bad'
    assert verdict.line == (
        'Routing collapsed: blocks_2: fewer than half of its 8 experts carry the load '
        '(the equivalent of 1.2), on the test set.'
    )


def test_the_results_word_on_collapse_counts(make, tmp_path):
    maker = make()
    maker.result |= {'collapsed': True, 'dead_experts': 3}
    maker.evaluation = {}
    for row in maker.rows:
        row['layers'] = {}
    verdict = judged(maker, tmp_path)
    assert verdict.level == 'bad' and '3 of its experts are dead' in verdict.line


def test_blind_routing_is_mentioned_but_no_alarm(make, tmp_path):
    maker = make()
    maker.evaluation['layers']['head']['mutual_information'] = 0.001
    verdict = judged(maker, tmp_path)
    assert verdict.level == 'good' and 'says next to nothing about the class' in verdict.points[0]


def test_dense_and_early_runs_are_not_judged(make, tmp_path):
    assert judged(make(layers=()), tmp_path / 'a').line.startswith('Dense run')
    early = make(layers=(), rows=0)
    early.evaluation, early.result = {}, {}
    verdict = judged(early, tmp_path / 'b')
    assert verdict.level == 'none' and verdict.line.startswith('Too early')


def test_verdict_uses_the_newest_numbers(make, tmp_path):
    maker = make(rows=12)
    maker.evaluation = {}
    maker.rows[-1]['layers']['head']['drop_rate'] = 0.5
    run = read.load(maker.save(tmp_path / 'run'))
    assert run.latest('head').where == 'in validation at step 120'
    (point,) = health.judge(run).points
    assert 'head (50.0 %' in point and 'model.moe.eval_capacity_factor (now 2.0)' in point


def test_before_the_first_evaluation_training_is_judged_and_says_so(make, tmp_path):
    maker = make(rows=3)
    maker.evaluation, maker.result = {}, {}
    maker.rows[-1]['layers']['head'] |= {'drop_rate': 0.5, 'dead_experts': 2}
    collapse, drops = judged(maker, tmp_path).points
    assert 'in training at step 30 (not evaluated yet)' in collapse
    assert 'model.moe.capacity_factor (now 1.25)' in drops


CONFUSIONS = {  # counts, and what is said of them
    'one never': ([[9, 1, 0], [0, 10, 0], [4, 6, 0]], ['‘class 2’ (0 of 10 right)']),
    'nearly never': ([[100, 0], [96, 4]], ['‘class 1’ (4 of 100 right)']),
    'just enough': ([[100, 0], [95, 5]], []),
    'no images of a class': ([[10, 0], [0, 0]], []),
    'constant': (
        [[6, 0], [4, 0]],
        ['60.0 % on the test set is not above', '‘class 1’ (0 of 4 right)'],
    ),
}


@pytest.mark.parametrize('layers', [(), ('head',)])
@pytest.mark.parametrize('name', CONFUSIONS)
def test_classes_that_are_never_recognised_are_named(name, layers, make, tmp_path):
    counts, told = CONFUSIONS[name]
    maker = make(classes=len(counts), layers=layers, samples=0)
    maker.evaluation['confusion'] = counts
    verdict = judged(maker, tmp_path)
    assert len(verdict.points) == len(told)
    for words, point in zip(told, verdict.points, strict=True):
        assert words in point
    assert (verdict.level == 'warn') == bool(told)


def test_rows_come_sorted_by_step(make, tmp_path):
    run = read.load(make(rows=60).save(tmp_path / 'run'))
    steps = [row['step'] for row in run.split('train')]
    assert steps == [10 * i for i in range(1, 61)]


def test_text_is_escaped_and_markup_is_not():
    inner = markup.tag('b', '<i> & "x"')
    assert inner == '<b>&lt;i&gt; &amp; &quot;x&quot;</b>'
    assert markup.tag('p', [inner, None, 3], title='">', hidden=True, id=None) == (
        f'<p title="&quot;&gt;" hidden>{inner}3</p>'
    )


def test_spread_keeps_order_distance_and_place():
    assert charts.spread([0.2, 0.5, 0.9], 0.1) == pytest.approx([0.2, 0.5, 0.9])
    places = charts.spread([0.5, 0.5, 0.52, 0.9], 0.1)
    assert np.diff(places).min() >= 0.1 - 1e-9 and places[3] == pytest.approx(0.9)
    assert charts.spread([0.0, 0.0], 0.1)[0] >= 0 and charts.spread([1.0, 1.0], 0.1)[1] <= 1


def test_thin_averages_runs_and_skips_gaps():
    x = np.arange(1000.0)
    shorter, mean = charts.thin(x, x, 10)
    np.testing.assert_allclose(shorter, mean)
    np.testing.assert_allclose(mean, 49.5 + 100 * np.arange(10))
    y = np.where(x < 150, np.nan, 1.0)
    assert np.isnan(charts.thin(x, y, 10)[1]).tolist() == [True] + [False] * 9
    assert np.nanmax(charts.thin(x, y, 10)[1]) == 1


def test_thirty_experts_have_thirty_colours():
    assert len({palette.expert(e) for e in range(30)}) == 30
