"""The folder of a study is data: whatever stands in it is one line, or a row that is left out."""

import json
import os
import shutil

import pytest
from study_fakes import finished_study

from moe_vision.common.errors import UserError
from moe_vision.study import __main__ as study_command
from moe_vision.study import registration, rows, stopwatch
from moe_vision.study.analysis import analyse
from moe_vision.study.run import plan
from moe_vision.study.run.claims import Claims

HUGE = 10**400
ODD = {
    'nothing': b'',
    'half': b'{"arm": "k9", "seed": 1, "c',
    'null': b'null',
    'number': b'3',
    'list': b'[[]]',
    'depth': b'[' * 10_000 + b']' * 10_000,
    'less depth': b'[' * 200 + b']' * 200,
    'a key twice': b'{"a": 1, "a": 2}',
    'half a character': b'{"arm": "k1", "seed": "\\ud800"}',
    'no UTF-8': b'\xff\xfe',
    'NaN': b'NaN',
    'digits': b'9' * 10_000,
    'huge': b'9' * 400,
}
FILES = (
    'preregistration.json',
    'rows/k1/seed_1.json',
    'rows.jsonl',
    'timings/k1/seed_1.json',
    'timings.jsonl',
    'timings/latency.json',
)


COMBINED = {
    'trends': {'t': {'comparisons': ['k1', 'k2'], 'x': 'rho_place', 'expected': 'none'}},
    'family_differences': {'f': {'pairs': [['k1', 'k2']], 'primary': True}},
}


@pytest.fixture(scope='module')
def study(tmp_path_factory):
    """(workdir with all rows, record, hash)."""
    folder = tmp_path_factory.mktemp('study')
    record, digest = finished_study(folder)[1:]
    times = {'median_ms': 1.0, 'low_ms': 0.9, 'high_ms': 1.1, 'images_per_second': 1e3}
    stopwatch.write_latency(
        str(folder),
        {
            'device': 'cpu',
            'arms': {
                arm: {'flops': 10, 'batches': {'1': times, '8': times}} for arm in ('dense', 'k1')
            },
        },
    )
    return folder, record, digest


@pytest.fixture
def workdir(study, tmp_path):
    for name in ('rows', 'timings'):
        shutil.copytree(study[0] / name, tmp_path / name)
    shutil.copy(study[0] / 'preregistration.json', tmp_path)
    return tmp_path


def commands(study, workdir, capsys):
    """(exit code, lines of errors) of each command that reads the folder; never a traceback."""
    run = ['run', f'--study={study[0]}/tiny.py', f'--config.dataset.data_dir={study[0]}']
    for args in (['report'], [*run, '--list'], ['pack']):
        code = study_command.main([*args, f'--workdir={workdir}'])
        lines = capsys.readouterr().err.splitlines()
        assert [line for line in lines if not line.startswith(('note: ', 'error: '))] == []
        assert sum(line.startswith('error: ') for line in lines) == (code == 2)
        assert code in (0, 2)
        yield code, lines


@pytest.fixture
def no_report(monkeypatch):
    """Drawing takes a second; what is read stands before it."""
    from moe_vision.study import report

    monkeypatch.setattr(report, 'write', lambda *_: [])


@pytest.mark.tables
@pytest.mark.parametrize('file', FILES)
@pytest.mark.parametrize('kind', [*ODD, 'FIFO'])
def test_each_file_and_damage(study, workdir, capsys, no_report, file, kind):
    path = workdir / file
    path.unlink(missing_ok=True)
    os.mkfifo(path) if kind == 'FIFO' else path.write_bytes(ODD[kind])
    ended = list(commands(study, workdir, capsys))
    refuses = file == 'preregistration.json' or kind == 'FIFO' and file.endswith('.jsonl')
    if refuses:
        assert {code for code, _ in ended} <= ({2} if file[0] == 'p' else {0, 2})
        assert file in ended[0][1][0]
    else:
        assert [code for code, _ in ended] == [0, 0, 0]
        assert (file in ''.join(ended[0][1])) == (kind != 'nothing' or '.jsonl' not in file)


def odd_records(record):
    """(path, record): each part of a record, without arms' configs, replaced by what is odd."""

    def places(tree, path=()):
        yield path
        if path[:1] == ('arms',) and len(path) == 3:
            return
        if isinstance(tree, dict | list):
            for key in tree if isinstance(tree, dict) else range(len(tree)):
                yield from places(tree[key], (*path, key))

    odd = (
        None,
        3,
        -1,
        HUGE,
        1e308,
        0.5,
        True,
        'x',
        '../x',
        'a\nb',
        [],
        [[]],
        [None],
        [HUGE],
        {},
        {'x': None},
        {'0': 1},
        {'../x': {}},
        [0, 0],
        'nan',
    )
    for path in places(record):
        for value in odd:
            changed = json.loads(json.dumps(record))
            if path:
                holder = changed
                for key in path[:-1]:
                    holder = holder[key]
                holder[path[-1]] = value
            yield path, changed if path else value


@pytest.mark.parametrize('more', [{}, COMBINED], ids=['comparisons', 'with trends'])
def test_an_odd_record_is_one_line_or_a_study(study, workdir, more):
    """With a hash that fits: whoever wrote the record can write its hash."""
    refused = 0
    for path, record in odd_records(study[1] | more):
        if more and path[:1] and path[0] not in more:
            continue
        (workdir / 'preregistration.json').write_text(
            json.dumps({'hash': registration.digest(record), 'record': record})
        )
        try:
            found, digest = registration.read(str(workdir))
        except UserError as e:
            refused += 1
            assert 'preregistration.json' in str(e) and len(str(e)) < 700, path
            continue
        analyse.analyse(found, digest, *rows.read(str(workdir), found, digest))
        plan.states(str(workdir), found, found['arms'], Claims(str(workdir)))
    assert refused > (200 if more else 500)


@pytest.mark.parametrize(
    'path, value',
    [
        (('arms',), None),
        (('arms',), []),
        (('arms', 'k1'), None),
        (('arms', 'k1', 'config'), 3),
        (('seeds',), {}),
        (('seeds',), [0, HUGE]),
        (('seeds',), 0),
        (('comparisons', 'k1'), None),
        (('alpha',), HUGE),
        (('margin',), 'x'),
        (('figures',), {'x': 1}),
        (('hypotheses',), 'x'),
        (('patterns',), []),
        (('name',), None),
        (('latency_batches',), [None]),
    ],
)
def test_every_command_refuses_an_odd_record(study, workdir, capsys, path, value):
    record = json.loads(json.dumps(study[1]))
    holder = record
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = value
    (workdir / 'preregistration.json').write_text(
        json.dumps({'hash': registration.digest(record), 'record': record})
    )
    for code, lines in commands(study, workdir, capsys):
        assert code == 2 and len(lines) == 1 and 'preregistration.json' in lines[0]


def test_a_record_of_older_code_is_completed(study, workdir, capsys, no_report):
    """What the code has grown since stands at its default, for the analysis, too."""
    record = json.loads(json.dumps(study[1]))
    for holder, key in (
        (record, 'stopping'),
        (record, 'patterns'),
        (record, 'alpha'),
        (record['comparisons']['k1'], 'primary'),
        (record['arms']['k1'], 'seed_offset'),
    ):
        del holder[key]
    record |= {'patterns': {}}
    (workdir / 'preregistration.json').write_text(
        json.dumps({'hash': registration.digest(record), 'record': record})
    )
    found, _ = registration.read(str(workdir))
    assert found['alpha'] == 0.05 and found['comparisons']['k1']['primary'] is False
    assert list(commands(study, workdir, capsys))[0][0] == 0


@pytest.mark.parametrize(
    'key', ['seconds', 'compile_seconds', 'flops', 'trained_flops', 'images_per_second', 'device']
)
def test_odd_timings_are_named_and_left_out(workdir, key):
    file, told = workdir / 'timings/k1/seed_1.json', []
    for value in ([], {}, HUGE, -1, float('nan'), float('inf'), True, 'a\nb'):
        file.write_text(json.dumps({key: value}))
        told.clear()
        assert list(stopwatch.timings(str(workdir), told.append)['k1']) == [0, 2]
        assert told == [
            f'timings/k1/seed_1.json: its {key} is not what a timing has; it is left out.'
        ]
    file.write_text(json.dumps({'seconds': 1e99, 'trained_flops': 1e-99, 'flops': 1e99}))
    timings = stopwatch.timings(str(workdir))
    work = plan.Plan.from_states(plan.costs({'k1': None}, timings), {('k1', 1): 'missing'})
    assert 'k1' in plan.table(work, timings, {'devices': 1})  # no time that a clock can show


@pytest.mark.parametrize(
    'odd',
    [
        {'arms': None},
        {'arms': []},
        {'arms': {'k1': None}},
        {'arms': {'k1': {'batches': None}}},
        {'arms': {'k1': {'batches': {'x': {}}}}},
        {'arms': {'k1': {'batches': {'9' * 5000: {}}}}},
        {'arms': {'k1': {'batches': {'1': None}}}},
        {'arms': {'k1': {'batches': {'1': {'median_ms': HUGE}}}}},
        {'arms': {'k1': {'batches': {}, 'flops': []}}},
        *(
            {'arms': {'k1': {'batches': {'1': {'rho_time': v}}}}}
            for v in ('x', 1.5, HUGE, [], True)
        ),
        {'arms': {}, 'device': []},
        {'arms': {'k1': {'batches': {str(n): {} for n in range(1, 100)}}}},
    ],
)
def test_odd_latencies_are_named_and_left_out(workdir, odd):
    told = []
    assert stopwatch.latency(str(workdir), told.append)['device'] == 'cpu' and told == []
    (workdir / 'timings/latency.json').write_text(json.dumps(odd))
    assert stopwatch.latency(str(workdir), told.append) is None
    assert len(told) == 1 and told[0].startswith('timings/latency.json: damaged, it')


def test_a_claim_that_is_odd_json_or_a_fifo_is_only_old(workdir):
    claims = Claims(str(workdir))
    (workdir / 'claims').mkdir()
    path = workdir / 'claims/k1.seed_1.json'
    for data in ODD.values():
        path.write_bytes(data)
        assert claims.taken(('k1', 1)) and claims.owner(('k1', 1)) == ''
        os.utime(path, (0, 0))
        assert not claims.taken(('k1', 1))
    path.unlink()
    os.mkfifo(path)
    assert claims.owner(('k1', 1)) == ''
