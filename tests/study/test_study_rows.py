"""A row holds what its run's folder says; rows that cannot be trusted are named, never deleted."""

import dataclasses
import json
import shutil

import pytest
from study_fakes import fake_train_arm, finished_study

from moe_vision.common.errors import UserError
from moe_vision.study import row_of_run, rows, stopwatch


@pytest.fixture(scope='module')
def study(tmp_path_factory):
    """(workdir with all rows, loaded, record, hash); tests copy what they change."""
    folder = tmp_path_factory.mktemp('study')
    return folder, *finished_study(folder)


@pytest.fixture
def workdir(study, tmp_path):
    shutil.copytree(study[0] / 'rows', tmp_path / 'rows')
    return tmp_path


def read(study, workdir):
    return rows.read(str(workdir), study[2], study[3])


def change(workdir, cell, **values):
    file = workdir / 'rows' / cell
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_whole_rows_are_read_in_the_order_of_the_study(study, workdir):
    found, problems = read(study, workdir)
    assert problems == []
    assert list(found) == ['dense', 'k1', 'k2', 'again']
    assert all(list(seeds) == [0, 1, 2] for seeds in found.values())


def test_a_row_says_what_the_folder_says(study):
    folder, loaded, record, digest = study
    run = folder / 'runs' / 'again' / 'seed_1'
    row = row_of_run.collect(str(run), 'tiny', 'again', 1, digest)
    assert (row['arm'], row['seed'], row['run_seed'], row['status'], row['error']) == (
        'again',
        1,
        101,
        'done',
        '',
    )
    assert row['config'] == record['arms']['again']['config']
    assert (row['preregistration'], row['study']) == (digest, 'tiny')
    assert (row['git_commit'], row['device'], row['versions']) == ('abc', 'fake', {'jax': '0'})
    assert (row['num_classes'], row['images'], row['correct']) == (10, 360, 'AA==')
    assert row['validation_images'] == 143
    result = json.loads((run / 'result.json').read_text())
    assert row['result'] == {'test_accuracy': result['test_accuracy'], 'flops': 10}
    assert row['layers'] == {'head': {'drop_rate': 0.1}}
    assert [c['step'] for c in row['curve']] == [1, 2, 3, 4]
    assert set(row['curve'][0]) == {'step', 'epoch', 'accuracy', 'loss', 'layers'}
    assert row['mechanism'] is None
    text = json.dumps(row)
    assert str(folder) not in text and 'timing' not in text and 'per_second' not in text


def test_the_curve_keeps_what_shows_collapse(study, tmp_path):
    run = study[0] / 'runs' / 'k1' / 'seed_0'
    kept = {
        'effective_experts': 2.0,
        'dead_experts': 1,
        'drop_rate': 0.1,
        'orphan_rate': 0.2,
        'gate_entropy': 0.3,
        'temperature': 1.0,
        'max_over_mean': 2.5,
    }
    for name in ('config.json', 'result.json', 'evaluation.json'):
        (tmp_path / name).write_text((run / name).read_text())
    (tmp_path / 'metrics').mkdir()
    row = {
        'step': 3,
        'epoch': 0.5,
        'split': 'validation',
        'accuracy': 0.5,
        'loss': 1.0,
        'layers': {'head': kept | {'load': [1, 0]}},
        'accuracy_unbounded': 0.6,
    }
    (tmp_path / 'metrics' / 'until-000000003.jsonl').write_text(
        json.dumps(row) + '\n' + json.dumps(row | {'split': 'train'}) + '\n'
    )
    (tmp_path / 'mechanism.json').write_text('{"shuffle_drop": 0.25}')
    found = row_of_run.collect(str(tmp_path), 'tiny', 'k1', 0, 'h')
    assert found['curve'] == [
        {'step': 3, 'epoch': 0.5, 'accuracy': 0.5, 'loss': 1.0, 'layers': {'head': kept}}
    ]
    assert found['mechanism'] == {'shuffle_drop': 0.25}


DAMAGES = {
    'byte': b'{"a": "\xff"}',
    'half': b'{"config": {',
    'list': b'[]',
    'null': b'null',
    'empty': b'{}',
    'deep': b'[' * 10_000 + b']' * 10_000,
}


@pytest.mark.parametrize('data', DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize(
    'name', ['config.json', 'result.json', 'evaluation.json', 'mechanism.json']
)
def test_a_damaged_file_of_a_run_is_an_error_of_one_line(study, tmp_path, name, data):
    """Only a mechanism that is not there is left out."""
    run = tmp_path / 'run'
    shutil.copytree(study[0] / 'runs' / 'k1' / 'seed_0', run)
    (run / name).write_bytes(data)
    if (
        name == 'mechanism.json'
        and data in (b'null', b'{}')
        or (name == 'result.json' and data == b'{}')
    ):
        row_of_run.collect(str(run), 'tiny', 'k1', 0, 'h')
        return
    with pytest.raises(UserError, match='is damaged .* run again|could not be used') as e:
        row_of_run.collect(str(run), 'tiny', 'k1', 0, 'h')
    assert '\n' not in str(e.value)


def test_a_damaged_line_of_metrics_costs_a_point_of_the_curve(study, tmp_path, caplog):
    run = tmp_path / 'run'
    shutil.copytree(study[0] / 'runs' / 'k1' / 'seed_0', run)
    (run / 'metrics' / 'until-000000002.jsonl').write_bytes(b'{"step": 2, "\xff')
    row = row_of_run.collect(str(run), 'tiny', 'k1', 0, 'h')
    assert [c['step'] for c in row['curve']] == [1, 3, 4]
    assert 'until-000000002.jsonl, line 1: not JSON' in caplog.text


def test_a_diverged_run_has_the_preflights_costs_alone(study):
    run = study[0] / 'runs' / 'k1' / 'seed_0'
    row = row_of_run.collect(
        str(run), 'tiny', 'k1', 0, 'h', 'loss is not finite at step 4; try less.'
    )
    assert (row['status'], row['error']) == ('diverged', 'loss is not finite at step 4')
    assert row['result']['flops'] == 10 and 'test_accuracy' not in row['result']
    assert (row['correct'], row['layers'], len(row['curve'])) == ('', {}, 4)


@pytest.mark.parametrize(
    'text, message',
    [
        ('', 'half-written or damaged, not JSON'),
        ('{"arm": "k1", "se', 'half-written or damaged'),
        ('[1]', 'half-written or damaged'),
        ('[' * 100_000, 'half-written or damaged'),
        ('{"arm": "k1"}', 'it lacks seed'),
    ],
)
def test_a_half_written_row_is_named_and_left_alone(study, workdir, text, message):
    file = workdir / 'rows' / 'k1' / 'seed_1.json'
    file.write_text(text)
    found, problems = read(study, workdir)
    assert list(found['k1']) == [0, 2]
    assert problems[0].startswith('rows/k1/seed_1.json: ') and message in problems[0]
    assert problems[1:] == ['k1: no row for seed 1.'] and file.read_text() == text


@pytest.mark.parametrize(
    'values, message',
    [
        ({'seed': 2}, "it says arm 'k1' seed 2"),
        ({'arm': 'k2'}, "it says arm 'k2' seed 1"),
        ({'run_seed': 7}, "its run's seed is 7, not 1"),
        ({'status': 'fine'}, "status is 'fine'"),
        ({'config': {}}, 'its config is not the arm'),
        ({'config': 3}, 'its config is not the arm'),
        ({'arm': ['k\n1']}, "it says arm ['k\\n1'] seed 1"),
    ],
)
def test_a_row_of_something_else_is_named_and_left_out(study, workdir, values, message):
    change(workdir, 'k1/seed_1.json', **values)
    found, problems = read(study, workdir)
    assert list(found['k1']) == [0, 2] and message in problems[0], problems


HUGE = 10**400


@pytest.mark.parametrize(
    'key, values, kind',
    [
        ('versions', [None, 'jax', ['jax'], {'jax': 1}], 'an object of lines of text'),
        ('git_commit', [1, ['abc'], {}, 'a\nb'], 'a line of text or null'),
        ('device', [None, 3, ['cpu'], 'a\nb'], 'a line of text'),
        ('error', [None, 3, 'a\nb'], 'a line of text'),
        ('preregistration', [None, 3], 'a line of text'),
        ('correct', [None, 3, ['AA==']], 'a line of text'),
        ('images', [None, 0, -1, 2.5, '360', True, HUGE], 'a whole number, 1 or more'),
        ('validation_images', [None, 0, '360', HUGE], 'a whole number, 1 or more'),
        ('num_classes', [None, 1, 0, '10', 10.5, HUGE], 'a whole number, 2 or more'),
        (
            'result',
            [
                *(None, [], {'flops': '10'}, {'flops': [1]}, {'flops': HUGE}),
                *({'accuracy_at_capacity': v} for v in (None, 1, [], {'1.25': '1'}, {'a': 1})),
                {'accuracy_at_capacity': {str(n): 1 for n in range(33)}},
                {'flops': {'1.25': 1}},
            ],
            'an object of numbers',
        ),
        ('layers', [None, [], {'head': 1}, {'head': {'load': [HUGE]}}], 'an object of objects'),
        (
            'curve',
            [
                None,
                {},
                [1],
                [{}],
                [{'step': 1, 'epoch': 1, 'accuracy': '1', 'loss': 1, 'layers': {}}],
                [{'step': 1, 'epoch': 1, 'accuracy': 1, 'loss': 1, 'layers': []}],
                [{'step': 1, 'epoch': 1, 'accuracy': 1, 'loss': 1, 'layers': {'head': {'x': 'y'}}}],
            ],
            'a list of points with the numbers step, epoch, accuracy, loss and layers',
        ),
        ('mechanism', [1, [], 'none', {'ablation': {'head': [HUGE]}}], 'an object or null'),
    ],
)
def test_a_field_of_another_kind_is_one_line(study, workdir, key, values, kind):
    for value in values:
        change(workdir, 'k1/seed_1.json', **{key: value})
        found, problems = read(study, workdir)
        assert list(found['k1']) == [0, 2]
        assert problems == [
            'rows/k1/seed_1.json: half-written or damaged, its '
            f'{key} is not {kind}; it is left out.',
            'k1: no row for seed 1.',
        ]
        assert rows.usable(str(workdir), study[2], 'k1', 1) is None


def test_numbers_that_are_not_finite_and_no_commit_are_fine(study, workdir):
    row = json.loads((workdir / 'rows/k1/seed_1.json').read_text())
    row['curve'][-1] |= {'loss': None, 'accuracy': float('nan')}
    change(
        workdir,
        'k1/seed_1.json',
        curve=row['curve'],
        git_commit=None,
        versions={},
        result=row['result']
        | {
            'effective_experts': None,
            'collapsed': True,
            'train_accuracy': None,
            'accuracy_at_capacity': {'1.25': 0.5, 'inf': None, '1e-05': 0.1},
        },
    )
    assert list(read(study, workdir)[0]['k1']) == [0, 1, 2]


@pytest.mark.parametrize(
    'name', ['seed_01.json', 'seed_\u0661.json', 'seed_-1.json', 'seed_1.json.bak', 'Seed_1.json']
)
def test_a_file_of_another_name_is_no_row(study, workdir, name):
    file = workdir / 'rows' / 'k1' / 'seed_1.json'
    file.with_name(name).write_bytes(file.read_bytes())
    found, problems = read(study, workdir)
    assert problems == [f'rows/k1/{name}: not the name of a row, seed_NUMBER.json; it is left out.']
    assert list(found['k1']) == [0, 1, 2]


def test_a_row_of_another_config_is_named_by_the_leaf(study, workdir):
    row = json.loads((workdir / 'rows/k1/seed_1.json').read_text())
    row['config']['train']['steps'] = 9
    change(workdir, 'k1/seed_1.json', config=row['config'])
    assert 'train.steps 4 -> 9' in read(study, workdir)[1][0]


def test_rows_of_no_arm_and_of_no_seed_are_named(study, workdir):
    (workdir / 'rows' / 'k11').mkdir()
    (workdir / 'rows' / 'k11' / 'seed_0.json').write_text('{}')
    (workdir / 'rows' / 'k1' / 'seed_9.json').write_text('{}')
    (workdir / 'rows' / 'k1' / 'notes.txt').write_text('')
    found, problems = read(study, workdir)
    assert 'k11' not in found and len(problems) == 3
    assert "unknown arm 'k11'" in problems[2] and "'k1'" in problems[2]
    assert 'seed 9 is not one of the study (seeds 0, 1, 2)' in problems[1]
    assert 'not the name of a row' in problems[0]


def test_a_row_of_another_registration_is_kept_and_named(study, workdir):
    change(workdir, 'k2/seed_0.json', preregistration='f' * 64)
    found, problems = read(study, workdir)
    assert 0 in found['k2'] and len(problems) == 1
    assert problems[0].startswith(
        'k2 seed 0: registered under another hash (ffffffffffffffff, not ' + study[3][:16]
    )


def test_rows_of_another_commit_are_named(study, workdir):
    change(workdir, 'k2/seed_0.json', git_commit='def')
    change(workdir, 'k1/seed_2.json', git_commit='def')
    found, problems = read(study, workdir)
    assert sum(map(len, found.values())) == 12
    assert problems == [
        'made by another commit of the code (def, most rows by abc): k1 seed 2, k2 seed 0.'
    ]


def test_code_that_was_never_committed_is_noted(study, workdir):
    change(workdir, 'k2/seed_0.json', git_commit='abc+changes')
    assert read(study, workdir)[1] == [
        'made by another commit of the code (abc+changes, most rows by abc): k2 seed 0.',
        '1 row made by code with uncommitted changes.',
    ]


@pytest.mark.parametrize('accuracy', [None, float('nan'), 1.5, '0.9', HUGE, [1]])
def test_an_accuracy_that_is_no_number_counts_as_a_failure(study, workdir, accuracy):
    change(workdir, 'k1/seed_1.json', result={'test_accuracy': accuracy})
    found, problems = read(study, workdir)
    assert found['k1'][1]['status'] == 'diverged'
    assert len(problems) == 1 and problems[0].startswith('k1 seed 1: diverged (test_accuracy is')


def test_missing_cells_are_listed_by_arm(study, workdir):
    for name in ('k1/seed_0', 'k1/seed_2', 'again/seed_1'):
        (workdir / 'rows' / f'{name}.json').unlink()
    found, problems = read(study, workdir)
    assert problems == ['k1: no row for seeds 0, 2.', 'again: no row for seed 1.']
    assert list(found['k1']) == [1]


def test_setting_aside_loses_nothing(workdir):
    file = workdir / 'rows' / 'k1' / 'seed_1.json'
    for text in ('one', 'two'):
        file.write_text(text)
        rows.set_aside(str(workdir), 'k1', 1)
    kept = sorted(file.parent.glob('*.set_aside_*'))
    assert [k.read_text() for k in kept] == ['one', 'two'] and not file.exists()
    assert rows.set_aside(str(workdir), 'k1', 1) is None


def test_a_row_is_usable_or_not(study, workdir):
    assert rows.usable(str(workdir), study[2], 'k1', 1)['seed'] == 1
    (workdir / 'rows' / 'k1' / 'seed_1.json').write_text('{')
    assert rows.usable(str(workdir), study[2], 'k1', 1) is None
    (workdir / 'rows' / 'k1' / 'seed_1.json').unlink()
    assert rows.usable(str(workdir), study[2], 'k1', 1) is None


def test_timings_are_read_leniently(study, tmp_path):
    assert stopwatch.timings(str(study[0]))['k1'][2] == {'seconds': 1.0}
    folder = tmp_path / 'timings' / 'k1'
    folder.mkdir(parents=True)
    (folder / 'seed_0.json').write_text('{')
    (folder / 'seed_1.json').write_text('[]')
    assert stopwatch.timings(str(tmp_path)) == {} and stopwatch.latency(str(tmp_path)) is None


def test_a_config_of_the_run_is_not_the_arms_when_it_differs(study, tmp_path):
    """`read` checks what `collect` wrote: it leaves out a run of another config."""
    _, loaded, record, digest = study
    other = loaded.config('k1', 0)
    other = dataclasses.replace(other, train=dataclasses.replace(other.train, steps=5))
    run = str(tmp_path / 'run')
    fake_train_arm([other], [run], 'one_by_one', False, lambda i, error: None)
    rows.write(str(tmp_path), row_of_run.collect(run, 'tiny', 'k1', 0, digest), {})
    assert rows.usable(str(tmp_path), record, 'k1', 0) is None


def test_a_row_that_could_not_be_read_again_is_not_made(study, tmp_path):
    """Else its cell would be trained again and again."""
    run = tmp_path / 'run'
    shutil.copytree(study[0] / 'runs' / 'k1' / 'seed_0', run)
    result = json.loads((run / 'result.json').read_text())
    many = {str(n): 0.5 for n in range(1, 40)}
    (run / 'result.json').write_text(json.dumps(result | {'accuracy_at_capacity': many}))
    with pytest.raises(UserError, match='could not be used: its result is not'):
        row_of_run.collect(str(run), 'tiny', 'k1', 0, 'h')
