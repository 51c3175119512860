"""Every config line of docs/methods.md is right: it is read, checked and traced at reduced size."""

import json
import re
import shlex

import pytest

import input_pipeline
from benchmarks import methods
from moe_vision import leverage
from moe_vision.check import shapes
from moe_vision.common.paths import ROOT
from moe_vision.config import registry

HEAD, ROWS = methods.table()
LINES = methods.lines()


def test_the_table_is_whole_and_sorted():
    names = [row[0] for row in ROWS]
    assert names == sorted(names, key=str.casefold)
    assert all(len(row) == len(HEAD) and row[0] and row[1] and row[3] for row in ROWS)
    assert {name for name, _ in LINES} == set(names)  # each has a config line


@pytest.mark.parametrize('kind, table', [('router', registry.ROUTERS), ('loss', registry.LOSSES)])
def test_every_entry_of_the_tables_stands_in_a_config_line(kind, table):
    text = '\n'.join(line for _, line in LINES)
    written = 'router={}( |$)' if kind == 'router' else "losses=.*'{}':"
    missing = [n for n in table if not re.search(written.format(n), text, re.MULTILINE)]
    assert set(missing) <= {'top_k'}  # the default


SMALL = "--config.model.args={{'widths': (8, 32), 'depth': {}}}"  # quick to trace; lines come later


@pytest.mark.tables
@pytest.mark.parametrize('name, line', LINES, ids=[name.split(':')[0] for name, _ in LINES])
def test_a_line_is_read_checked_and_traced(name, line):
    args = shlex.split(line)
    assert all(a.startswith('--config.') for a in args)
    assert methods.config_of(methods.baseline(args)).model.moe.router == 'top_k'
    depth = 2 if any('placement' in a for a in args) else 1
    config = methods.config_of([SMALL.format(depth), *args])
    info = input_pipeline.info(config.dataset)
    images = leverage.trace_images(config, leverage.tokens_per_image(config, info))
    shapes.network(config.model, info.image_shape, info.num_classes, images)


def test_measured_times_are_those_of_the_benchmark():
    """One ratio for each config line, in their order."""
    path = ROOT / 'benchmarks' / 'results' / 'cpu-1-core.json'
    measured = json.loads(path.read_text())['suites']['methods']['rows']
    ratios = {row['case']: f'{row["ratios"]["top-k"]:.2f}' for row in measured}
    cells = {row[0]: row[HEAD.index('measured')] for row in ROWS}
    assert any(cells.values())
    for name, cell in cells.items():
        own = sum(method == name for method, _ in LINES)
        cases = [name, *(f'{name} ({i})' for i in range(2, own + 1))]
        assert cell in ('', '; '.join(ratios.get(case, '-') for case in cases))
