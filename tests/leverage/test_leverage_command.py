"""`python -m moe_vision.leverage`: its output and its errors."""

import csv
import json
import os
import subprocess
import sys
from xml.etree import ElementTree

import pytest
from leverage_cases import ROOT, SMALL, WRONG, make

from moe_vision import leverage
from moe_vision.leverage import sweep, table
from moe_vision.leverage.__main__ import main

SETS = [f'--config.{k}={v}' for k, v in SMALL.items()]
CONFIG = '--config=configs/base.py'


@pytest.fixture(autouse=True)
def at_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def printed(capsys, *args):
    code = main([*args])
    out = capsys.readouterr()
    assert code == 0, out.err
    return out.out


def test_the_table(capsys):
    text = printed(capsys, CONFIG, *SETS)
    row = next(line for line in text.splitlines() if line.startswith('block_1 *')).split()
    # an expert has 147456 FLOPs; the block has 2 or 2.5 of that and 128 in the router; 4 or 2
    # experts' parameters
    assert row[2:6] == ['147k', '295k', '369k', '128']
    assert row[6:8] == ['18,752', '9,408']
    for part in (
        'configs/base.py: conv, 4 experts, k=2, at last_1, router top_k; digits, 8×8×1',
        'rho_place',
        'rho_active',
        'rho_executed',
        'same_width',
        'same_active_flops',
        'same_params',
        'groups of 16 tokens, 10 slots per expert',
    ):
        assert part in text, part


def test_the_first_line_says_what_each_layer_has():
    layers = "{'0': {'k': 1}, '1': {'num_experts': 6}}"
    config = make(model__moe__placement='every_1', model__moe__layers=layers)
    assert table.network(config).startswith('4, 6 experts, k=1, 2, at every_1')


def test_json_says_the_same_as_the_table(capsys):
    one, two = json.loads(printed(capsys, f'{CONFIG},configs/digits_dense.py', '--json'))
    assert (one['config'], two['config']) == ('configs/base.py', 'configs/digits_dense.py')
    assert one['cost'] == one['flops'] / one['flops_twin']
    assert one['twins']['same_width']['cost'] == pytest.approx(one['cost'])
    assert sum(b['flops'] for b in one['blocks']) == one['flops']
    assert two['rho_active'] == 0 and two['capacity'] == {}  # this config is a same_width twin
    assert two['twins']['same_width']['cost'] == 1
    dense = json.loads(printed(capsys, CONFIG, '--config.model.moe.placement=none', '--json'))[0]
    assert dense['rho_place'] == 0 and dense['twins'] == {}
    soft = json.loads(
        printed(
            capsys,
            CONFIG,
            *SETS,
            '--config.model.moe.router=soft',
            '--json',
            '--config.model.moe.losses={}',
            '--config.model.moe.router_args={}',
        )
    )
    assert soft[0]['capacity']['block_1']['effective_factor'] is None  # strict JSON has no NaN
    assert 'refused' in soft[0]['twins']['same_active_flops']


def test_a_sweep_over_several_configs(capsys, tmp_path):
    out = tmp_path / 'new' / 'folder'
    text = printed(
        capsys,
        CONFIG,
        '--config=configs/digits_k2.py',
        *SETS,
        f'--out={out}',
        '--sweep=model.moe.hidden=8,32',
    )
    rows = list(csv.DictReader((out / 'sweep.csv').open()))
    assert [(r['config'], r['value']) for r in rows] == [
        (c, v) for c in ('configs/base.py', 'configs/digits_k2.py') for v in ('8', '32')
    ]
    at = {r['value']: r for r in rows[:2]}
    conv = 2 * 2 * 16 * 9 * 16 * 8  # hidden width 8
    rest = int(at['8']['flops_twin']) - conv
    for value, times in (('8', 1), ('32', 4)):
        assert float(at[value]['rho_place']) == times * conv / (rest + times * conv)
        assert f'{float(at[value]["rho_place"]):.4f}' in text
    svg = ElementTree.parse(out / 'sweep.svg').getroot()
    words = ' '.join(svg.itertext())
    for part in ('configs/base.py', 'configs/digits_k2.py', 'model.moe.hidden', 'rho_place', '%'):
        assert part in words, part
    assert 'var(' not in (out / 'sweep.svg').read_text()


def test_no_cell_of_a_sweep_is_a_formula(tmp_path):
    row = {'config': '=1+1', 'key': '@x', 'value': '-0.5', 'rho_place': -0.5, 'flops': -3}
    sweep.write_csv(str(tmp_path / 'x.csv'), [row])
    written = (tmp_path / 'x.csv').read_text().splitlines()[1]
    assert written == "'=1+1,'@x,-0.5,-0.5,-3"


@pytest.mark.parametrize(
    'values, shown',
    [
        ('model.args.widths=8,16;16,32', ['(8, 16)', '(16, 32)']),
        ('model.args.widths=[8,16];[16,32]', ['[8, 16]', '[16, 32]']),
        ("model.moe.losses={};{'importance':0.1}", ['{}', "{'importance': 0.1}"]),
        ('model.moe.router=top_k;random', ['top_k', 'random']),
    ],
)
def test_a_sweep_over_names_lists_and_tables(values, shown, capsys, tmp_path):
    text = printed(
        capsys,
        CONFIG,
        *SETS,
        f'--out={tmp_path}',
        '--rho=rho_executed',
        f'--sweep={values}',
        *(
            ['--config.model.moe.losses={}', '--config.model.moe.router_args={}']
            if 'router' in values
            else []
        ),
    )
    assert all(f' {s} ' in text for s in shown)
    assert 'cost: FLOPs over those of the same_width twin' in text
    assert 'rho_executed' in (tmp_path / 'sweep.svg').read_text()
    assert len(list(csv.DictReader((tmp_path / 'sweep.csv').open()))) == 2


def test_solve_takes_only_widths_that_the_norm_allows(capsys):
    row = json.loads(
        printed(capsys, CONFIG, *SETS, '--solve=model.moe.hidden', '--json', '--target_rho=0.6')
    )[0]
    # 2 * 16 * 9 * 16 h FLOPs for each of two convolutions
    rest = row['flops_twin'] * (1 - row['rho_place'])
    best = min(range(8, 4096, 8), key=lambda h: abs(9216 * h / (9216 * h + rest) - 0.6))
    assert row['value'] == best and row['value'] % 8 == 0
    assert row['target_rho'] == 0.6


@pytest.mark.parametrize('multiple', [64, 100])
def test_solve_takes_multiples_alone_and_traces_few_values(multiple, capsys, monkeypatch):
    traced = []
    measure = leverage.measure
    monkeypatch.setattr(leverage, 'measure', lambda c, i: traced.append(c) or measure(c, i))
    row = json.loads(
        printed(
            capsys,
            CONFIG,
            *SETS,
            '--solve=model.moe.hidden',
            '--json',
            '--target_rho=0.97',
            f'--multiple_of={multiple}',
        )
    )[0]
    rest = row['flops_twin'] * (1 - row['rho_place'])
    step = 64 if multiple == 64 else 200  # a norm of 8 groups divides the width, too
    best = min(range(step, 9999, step), key=lambda h: abs(9216 * h / (9216 * h + rest) - 0.97))
    assert row['value'] == best and len(traced) <= 4


def test_solving_another_rho_for_another_key(capsys):
    text = printed(
        capsys, CONFIG, *SETS, '--solve=model.moe.k', '--target_rho=0.73', '--rho=rho_active'
    )
    # k experts of 147456 FLOPs beside 193984: 0.695 for k=3, 0.753 for k=4
    assert 'model.moe.k=4 gives rho_active' in text


def wrong(*args, env=None):
    begin = os.times()  # processor seconds do not count other processes
    done = subprocess.run(
        [sys.executable, '-m', 'moe_vision.leverage', *args],
        cwd=ROOT,
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    now = os.times()
    return done, (
        now.children_user + now.children_system - begin.children_user - begin.children_system
    )


@pytest.mark.parametrize('args, parts', WRONG)
def test_mistakes_are_one_line(args, parts, capsys):
    assert main(args) == 2
    out = capsys.readouterr()
    assert out.out == '' and out.err.count('\n') == 1 and out.err.startswith('error: ')
    for part in parts:
        assert part in out.err, out.err


def test_mistakes_are_reported_before_jax_is_imported(tmp_path):
    for name in ('jax', 'flax', 'matplotlib'):
        (tmp_path / f'{name}.py').write_text('raise SystemExit("imported")')
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    for args, part in (
        (
            ['--config=configs/base.py', '--solve=model.moe.hiden', '--target_rho=0.2'],
            'model.moe.hidden',
        ),
        (['--config=configs/base.py', '--sweep=model.moe.hidden=8,12'], '12'),
        (
            ['--config=configs/base.py', '--sweep=model.moe.k=1', '--out=configs/base.py/x'],
            'a folder of your own',
        ),
    ):
        done, seconds = wrong(*args, env={'PYTHONPATH': path})
        assert done.returncode == 2 and part in done.stderr, done.stderr
        assert done.stderr.count('\n') == 1 and seconds < 3


def test_an_unreachable_target_is_one_line(capsys):
    two = [*SETS, '--config.model.moe.num_experts=2']
    assert main([CONFIG, *two, '--solve=model.moe.k', '--target_rho=0.9', '--rho=rho_active']) == 2
    line = capsys.readouterr().err
    assert '--target_rho is 0.9, but for model.moe.k from 1 to 2 rho_active lies between' in line
    assert main([CONFIG, *two, '--solve=model.moe.k', '--target_rho=0.9']) == 2
    assert 'does not change rho_place' in capsys.readouterr().err
