"""The report's parts: command, imports, verdict, and the arithmetic of the pictures."""

import ast
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from moe_vision import report
from moe_vision.report import charts, health, markup, palette, read

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
        'and m != "moe_vision.config" '
        'and not m.startswith(("moe_vision.report", "moe_vision.common"))])'
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
    'change, key, message',
    [
        ({'dead_experts': 2}, 'model.moe.losses', 'head (2 of 8)'),
        ({'drop_rate': 0.25}, 'model.moe.capacity_factor (now 1.25)', 'head (25.0 %'),
        (
            {'effective_experts': 3.1},
            'model.moe.router (now top_k)',
            'head (equivalent to 3.1 of 8)',
        ),
    ],
)
def test_trouble_names_layer_number_and_config_key(change, key, message, make, tmp_path):
    maker = make()
    maker.evaluation['layers']['head'].update(change)
    verdict = judged(maker, tmp_path)
    assert verdict.level == 'warn' and len(verdict.points) == 1
    assert key in verdict.points[0] and message in verdict.points[0]


def test_drops_at_the_threshold_are_not_trouble(make, tmp_path):
    maker = make()
    maker.evaluation['layers']['head']['drop_rate'] = 0.10
    assert judged(maker, tmp_path).level == 'good'


def test_collapse_comes_first(make, tmp_path):
    maker = make()
    maker.evaluation['layers']['blocks_2']['effective_experts'] = 1.2
    verdict = judged(maker, tmp_path)
    assert verdict.level == 'bad'
    assert verdict.line == 'Routing collapsed: blocks_2 uses the equivalent of 1.2 of 8 experts.'


def test_the_results_word_on_collapse_counts(make, tmp_path):
    maker = make()
    maker.result['collapsed'] = True
    assert judged(maker, tmp_path).level == 'bad'


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
    assert run.latest('head')[1] == 'in validation at step 120'
    assert 'head (50.0 %' in health.judge(run).points[0]


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
