"""Packing changes no row: the lines of one file read the same as the files of the cells."""

import itertools
import json
import os
import shutil
from pathlib import Path

import pytest
from study_fakes import finished_study, tables

from moe_vision.common import files
from moe_vision.common.errors import UserError
from moe_vision.study import __main__ as study_command
from moe_vision.study import packed, rows, stopwatch
from moe_vision.study.run import plan
from moe_vision.study.run.claims import Claims
from moe_vision.study.run.pack import pack

CELLS = [(a, s) for a in ('dense', 'k1', 'k2', 'again') for s in (0, 1, 2)]


@pytest.fixture(scope='module')
def study(tmp_path_factory):
    """(workdir with the files of all cells, record, hash)."""
    folder = tmp_path_factory.mktemp('study')
    return folder, *finished_study(folder)[1:]


@pytest.fixture
def workdir(study, tmp_path):
    for name in ('rows', 'timings'):
        shutil.copytree(study[0] / name, tmp_path / name)
    shutil.copy(study[0] / 'preregistration.json', tmp_path)
    return tmp_path


def read(study, workdir):
    return rows.read(str(workdir), *study[1:])


def lines(workdir, kind='rows') -> list[bytes]:
    return (workdir / f'{kind}.jsonl').read_bytes().splitlines()


def change(workdir, cell, **values):
    file = packed.cell_path(str(workdir), 'rows', cell)
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def replace(workdir, number, line: bytes, kind='rows'):
    found = lines(workdir, kind)
    found[number - 1 : number] = [line]
    (workdir / f'{kind}.jsonl').write_bytes(b'\n'.join(found) + b'\n')


def test_a_packed_study_reads_the_same(study, workdir):
    before, timings = read(study, workdir), stopwatch.timings(str(workdir))
    pack(str(workdir))
    assert sorted(p.name for p in workdir.iterdir()) == [
        'claims',
        'preregistration.json',
        'rows.jsonl',
        'timings.jsonl',
    ]
    assert json.dumps(read(study, workdir)) == json.dumps(before)
    assert json.dumps(stopwatch.timings(str(workdir))) == json.dumps(timings)
    for arm, seed in CELLS:
        assert rows.usable(str(workdir), study[1], arm, seed) == before[0][arm][seed]


def test_a_line_is_a_cell_in_the_order_of_the_registration(workdir):
    one_row = json.loads((workdir / 'rows' / 'k1' / 'seed_2.json').read_text())
    pack(str(workdir))
    for kind in ('rows', 'timings'):
        found = [json.loads(line) for line in lines(workdir, kind)]
        assert [(v['arm'], v['seed']) for v in found] == CELLS
    assert lines(workdir)[5] == json.dumps(one_row, separators=(',', ':')).encode()
    assert lines(workdir, 'timings')[5] == b'{"arm":"k1","seed":2,"seconds":1.0}'


def test_values_are_kept_exactly(study, workdir):
    values = {
        'a': 0.1 + 0.2,
        'b': 5e-324,
        'c': -0.0,
        'd': 2**60,
        'e': None,
        'f': float('nan'),
        'line\u2028break': 1,
        'test_accuracy': 'none',
    }
    change(workdir, ('k1', 1), result=values, device='Größe')
    change(workdir, ('k2', 0), status='diverged', error='not finite', preregistration='f' * 64)
    before = json.dumps(read(study, workdir))
    pack(str(workdir))
    assert len(lines(workdir)) == 12 and json.dumps(read(study, workdir)) == before
    pack(str(workdir))  # packing again changes no line
    assert json.loads(lines(workdir)[4])['status'] == 'done'  # the reader says that it diverged


def test_packing_again_changes_nothing(workdir):
    printed = pack(str(workdir))
    assert printed == [f'{workdir}/{k}.jsonl holds 12 of 12 {k}' for k in ('timings', 'rows')]
    before = [(f.read_bytes(), f.stat().st_ino) for f in sorted(workdir.glob('*.jsonl'))]
    assert pack(str(workdir)) == printed
    assert [(f.read_bytes(), f.stat().st_ino) for f in sorted(workdir.glob('*.jsonl'))] == before


def test_cells_that_come_later_are_merged(study, workdir):
    pack(str(workdir))
    whole = lines(workdir)
    (workdir / 'rows.jsonl').write_bytes(b'\n'.join(whole[:3] + whole[5:]))  # no last line break
    assert read(study, workdir)[1] == ['k1: no row for seeds 0, 1.']
    for kind in ('rows', 'timings'):
        shutil.copytree(study[0] / kind / 'k1', workdir / kind / 'k1')
    assert read(study, workdir)[1] == []
    pack(str(workdir))
    assert lines(workdir) == whole and not (workdir / 'rows').exists()


class Killed(BaseException):
    """Raised where the process is killed."""


@pytest.mark.parametrize('after', [False, True], ids=['before', 'after'])
def test_a_kill_at_any_moment_loses_nothing(study, workdir, monkeypatch, tmp_path_factory, after):
    """It is killed before or after each step that changes something on disk, one after another."""
    (workdir / 'rows.jsonl').write_text('{"arm": "k1"}\n')  # a line that will be set aside
    before = json.dumps(stopwatch.timings(str(workdir))), json.dumps(read(study, workdir)[0])
    for last in itertools.count(1):
        copy = tmp_path_factory.mktemp('copy') / 'W'
        shutil.copytree(workdir, copy)
        steps = []

        def killed(call, steps=steps, last=last):
            def step(*args, **kwargs):
                steps.append(1)
                if len(steps) == last and not after:
                    raise Killed
                result = call(*args, **kwargs)
                if len(steps) == last:
                    raise Killed
                return result

            return step

        with monkeypatch.context() as patch:
            for owner, name in (
                (Path, 'write_bytes'),
                (Path, 'replace'),
                (Path, 'rmdir'),
                (Path, 'unlink'),
                (os, 'fsync'),
            ):
                patch.setattr(owner, name, killed(getattr(owner, name)))
            try:
                rows.pack(str(copy), study[1])
                break
            except Killed:
                pass
        assert json.dumps(stopwatch.timings(str(copy))) == before[0]
        assert json.dumps(read(study, copy)[0]) == before[1]
        pack(str(copy))
        assert json.dumps(read(study, copy)[0]) == before[1] and not (copy / 'rows').exists()
        assert [f.read_text() for f in copy.glob('rows.jsonl.set_aside_*')] == ['{"arm": "k1"}\n']
    assert last > 2 * 12


@pytest.mark.parametrize(
    'damage, message',
    [
        (lambda line: line[: len(line) // 2], 'half-written or damaged, not JSON'),
        (lambda line: line[:100] + b'\xff' + line[101:], 'half-written or damaged, not JSON'),
        (lambda line: b'<<<<<<< HEAD', 'half-written or damaged, not JSON'),
        (lambda line: b'[' * 100_000, 'half-written or damaged, not JSON'),
        (lambda line: b'1' * 10_000, 'half-written or damaged, not JSON'),
        (lambda line: b'[1]', 'it is not an object'),
        (lambda line: b'{}', 'it lacks arm, seed'),
        (lambda line: line.replace(b'"images":360', b'"images":0'), 'images is not a whole number'),
        (lambda line: line.replace(b'"run_seed":1', b'"run_seed":7'), "its run's seed is 7, not 1"),
        (lambda line: line.replace(b'"steps":4', b'"steps":9'), 'train.steps 4 -> 9'),
        (lambda line: line.replace(b'"arm":"k1"', b'"arm":"k\\ud800"'), 'half of a surrogate pair'),
        (lambda line: line.replace(b'"seed":1', b'"seed":NaN', 1), 'it names no cell'),
        (lambda line: line.replace(b'"seed":1', b'"seed":1e999', 1), 'it names no cell'),
        (lambda line: line.replace(b'"seed":1', b'"seed":9', 1), 'seed 9 is not one of the study'),
    ],
)
def test_a_damaged_line_is_named_and_left_out(study, workdir, damage, message):
    pack(str(workdir))
    whole, damaged = lines(workdir), damage(lines(workdir)[4])
    assert damaged != whole[4]
    replace(workdir, 5, damaged)
    found, problems = read(study, workdir)
    assert [(a, s) for a in found for s in found[a]] == CELLS[:4] + CELLS[5:]
    assert problems[0].startswith('rows.jsonl line 5: ') and message in problems[0]
    assert problems[0].endswith('; it is left out.')
    assert problems[1:] == ['k1: no row for seed 1.']
    assert rows.usable(str(workdir), study[1], 'k1', 1) is None
    '\n'.join(problems).encode()  # can be written, whatever the line held

    printed = pack(str(workdir))
    assert (
        printed[-1] == f'lines that cannot be used or repeat a cell are kept in '
        f'{workdir}/rows.jsonl.set_aside_1'
    )
    assert (workdir / 'rows.jsonl.set_aside_1').read_bytes() == damaged + b'\n'
    assert lines(workdir) == whole[:4] + whole[5:]
    replace(workdir, 5, b'true')
    pack(str(workdir))
    assert (workdir / 'rows.jsonl.set_aside_2').read_bytes() == b'true\n'


def test_lines_are_set_aside_beside_what_is_no_file(study, workdir):
    """A pipe would keep `pack` waiting for ever."""
    pack(str(workdir))
    replace(workdir, 5, b'true')
    os.mkfifo(workdir / 'rows.jsonl.set_aside_1')
    (workdir / 'rows.jsonl.set_aside_2').mkdir()
    pack(str(workdir))
    assert (workdir / 'rows.jsonl.set_aside_3').read_bytes() == b'true\n'


def test_the_first_of_two_lines_of_a_cell_counts(study, workdir):
    pack(str(workdir))
    first = lines(workdir)[4]
    other = first.replace(b'"correct":"AA=="', b'"correct":"BB=="')
    assert other != first
    replace(workdir, 5, first + b'\n' + other + b'\n' + first)
    found, problems = read(study, workdir)
    assert found['k1'][1]['correct'] == 'AA=='
    assert problems == [
        f'rows.jsonl line {n}: k1 seed 1 is already on line 5; it is left out.' for n in (6, 7)
    ]
    assert rows.usable(str(workdir), study[1], 'k1', 1)['correct'] == 'AA=='
    pack(str(workdir))
    assert lines(workdir)[4] == first
    assert (workdir / 'rows.jsonl.set_aside_1').read_bytes() == other + b'\n'


def test_the_file_of_a_cell_takes_precedence_over_its_line(study, workdir):
    pack(str(workdir))
    line = lines(workdir)[4]
    shutil.copytree(study[0] / 'rows' / 'k1', workdir / 'rows' / 'k1')
    assert read(study, workdir)[1] == []  # the same row twice, as after a kill
    change(workdir, ('k1', 1), correct='BB==')
    found, problems = read(study, workdir)
    assert found['k1'][1]['correct'] == 'BB=='
    assert rows.usable(str(workdir), study[1], 'k1', 1)['correct'] == 'BB=='
    assert problems == [
        'rows.jsonl line 5: rows/k1/seed_1.json differs and takes precedence; it is left out.'
    ]
    pack(str(workdir))
    assert b'"correct":"BB=="' in lines(workdir)[4] and len(lines(workdir)) == 12
    assert (workdir / 'rows.jsonl.set_aside_1').read_bytes() == line + b'\n'


def test_the_line_counts_if_the_file_is_damaged(study, workdir):
    pack(str(workdir))
    file = packed.cell_path(str(workdir), 'rows', ('k1', 1))
    file.parent.mkdir(parents=True)
    file.write_text('{')
    assert rows.usable(str(workdir), study[1], 'k1', 1)
    found, problems = read(study, workdir)
    assert list(found['k1']) == [0, 1, 2] and len(problems) == 1
    pack(str(workdir))
    assert file.read_text() == '{' and len(lines(workdir)) == 12


def test_files_that_are_no_row_stay_where_they_are(study, workdir):
    change(workdir, ('k1', 1), seed=2)
    (workdir / 'rows' / 'k2' / 'seed_0.json').unlink()
    (workdir / 'rows' / 'k2' / 'seed_0.json').mkdir()
    others = ('rows/k1/seed_7.json', 'rows/k1/seed_0.json.set_aside_1', 'rows/k11/seed_0.json')
    for name in others:
        (workdir / name).parent.mkdir(exist_ok=True)
        (workdir / name).write_text('{}')
    (workdir / 'timings' / 'k1' / 'seed_0.json').write_text('[]')
    problems = read(study, workdir)[1]
    assert pack(str(workdir))[-1].endswith('rows.jsonl holds 10 of 12 rows')
    assert all((workdir / name).read_text() == '{}' for name in others)
    assert (workdir / 'rows' / 'k1' / 'seed_1.json').exists()
    assert (workdir / 'timings' / 'k1' / 'seed_0.json').read_text() == '[]'
    assert read(study, workdir)[1] == problems


def test_a_seed_of_another_type_is_not_lost(study, workdir):
    """1.0 counts as 1 in a file, so also in a line."""
    change(workdir, ('k1', 1), seed=1.0)
    pack(str(workdir))
    assert list(read(study, workdir)[0]['k1']) == [0, 1, 2]
    assert rows.usable(str(workdir), study[1], 'k1', 1)


def test_problems_are_in_the_same_order(study, workdir):
    """The order is alphabetical by arm and seed, as that of the files."""
    for cell in CELLS[5:]:
        change(workdir, cell, status='diverged', error=f'of {cell}', preregistration='f' * 64)
    problems = read(study, workdir)[1]
    assert [p.partition(':')[0] for p in problems[::2]] == [
        f'{a} seed {s}' for a, s in [*CELLS[9:], *CELLS[5:9]]
    ]
    pack(str(workdir))
    assert read(study, workdir)[1] == problems


def test_timings_are_read_leniently(workdir):
    pack(str(workdir))
    for number, line in enumerate((b'{', b'\xff', b'[1]', b'{"arm":"k1","seed":"0"}'), 4):
        replace(workdir, number, line, 'timings')
    found = stopwatch.timings(str(workdir))
    assert [(a, s) for a in found for s in found[a]] == [
        *(('again', s) for s in range(3)),
        *(('dense', s) for s in range(3)),
        ('k2', 1),
        ('k2', 2),
    ]
    pack(str(workdir))
    assert len((workdir / 'timings.jsonl.set_aside_1').read_bytes().splitlines()) == 4


def test_a_line_is_parsed_once_however_often_cells_are_looked_up(study, workdir, monkeypatch):
    pack(str(workdir))
    parsed = []
    load = packed.load
    monkeypatch.setattr(packed, 'load', lambda data: parsed.append(data) or load(data))
    os.utime(workdir / 'rows.jsonl', (1, 1))
    for _ in range(3):
        states = plan.states(str(workdir), study[1], study[1]['arms'], Claims(str(workdir)))
        assert set(states.values()) == {'done'} and list(states) == CELLS
    assert len(parsed) == 12
    replace(workdir, 5, b'{}')
    assert list(plan.states(str(workdir), study[1], ['k1'], Claims(str(workdir))).values()) == [
        'done',
        'missing',
        'done',
    ]


@pytest.mark.parametrize(
    'line, state',
    [
        (lambda line: line[: len(line) // 2], 'unusable'),
        (lambda line: b'', 'missing'),
        (lambda line: line.replace(b'"steps":4', b'"steps":9'), 'unusable'),
    ],
)
def test_the_state_of_a_cell_whose_line_is_damaged(study, workdir, line, state):
    pack(str(workdir))
    replace(workdir, 5, line(lines(workdir)[4]))
    states = plan.states(str(workdir), study[1], ['k1'], Claims(str(workdir)))
    assert list(states.values()) == ['done', state, 'done']
    kept = rows.set_aside(str(workdir), 'k1', 1)
    assert kept == (f'{workdir}/rows.jsonl, line 5' if state == 'unusable' else None)


def test_nobody_packs_while_others_work(workdir):
    before = tables(workdir)
    with Claims(str(workdir)) as others:
        others.take(('k1', 1))
        with pytest.raises(UserError, match=f'process {os.getpid()} on .* works on k1 seed 1'):
            pack(str(workdir))
        others.release(('k1', 1))
        others.take(('.pack', 0))
        with pytest.raises(UserError, match='another process packs'):
            pack(str(workdir))
    assert tables(workdir) == before and not (workdir / 'rows.jsonl').exists()
    pack(str(workdir))
    assert tables(workdir) == {}


def test_no_room_is_one_line_and_loses_nothing(study, workdir, monkeypatch, capsys):
    def full(path, data):
        raise OSError(28, 'No space left on device')

    before = tables(workdir)
    monkeypatch.setattr(files, 'write', full)
    assert study_command.main(['pack', f'--workdir={workdir}']) == 2
    error = capsys.readouterr().err
    assert error.count('\n') == 1 and 'No space left' in error and 'nothing is lost' in error
    assert tables(workdir) == before


def test_a_packed_file_that_cannot_be_read_is_one_line(study, workdir, capsys):
    (workdir / 'rows.jsonl').mkdir()
    for command in ('pack', 'report'):
        assert study_command.main([command, f'--workdir={workdir}']) == 2
        error = capsys.readouterr().err
        assert error.count('\n') == 1 and "rows.jsonl' cannot be read: it is a directory" in error


def test_the_command_packs_every_study_below_a_folder(study, workdir, tmp_path_factory, capsys):
    root = tmp_path_factory.mktemp('root')
    for name in ('a', 'b'):
        shutil.copytree(workdir, root / 'set' / name)
    (root / 'set' / 'without').mkdir()
    shutil.copy(workdir / 'preregistration.json', root / 'set' / 'without')
    for _ in range(2):  # the second time they are packed already
        assert study_command.main(['pack', f'--workdir={root}']) == 0
        assert capsys.readouterr().out.splitlines() == [
            f'{root}/set/{name}/{k}.jsonl holds 12 of 12 {k}'
            for name in ('a', 'b')
            for k in ('timings', 'rows')
        ]
    assert [p.name for p in (root / 'set' / 'without').iterdir()] == ['preregistration.json']
    assert not (root / 'set' / 'a' / 'timings').exists()
