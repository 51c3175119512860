"""The command as users meet it: a mistake is one line, and a whole study runs on real digits."""

import io
import json
import os
import subprocess
import sys

import jax
import pytest
import train_cases
from study_fakes import ROOT, finished_study, tables, write_study

from moe_vision.study.__main__ import main
from moe_vision.study.load import load
from moe_vision.study.run import cells
from moe_vision.study.run.runner import run
from moe_vision.training import run as run_lib


@pytest.fixture(scope='session')
def without_jax(tmp_path_factory) -> dict[str, str]:
    """An environment in which the slow imports raise."""
    folder = tmp_path_factory.mktemp('shadow')
    for name in ('jax', 'jaxlib', 'flax', 'grain', 'tensorflow_datasets', 'orbax'):
        (folder / f'{name}.py').write_text(f"raise RuntimeError('{name} was imported')\n")
    return {'PYTHONPATH': f'{folder}{os.pathsep}{ROOT}', 'PATH': '', 'HOME': str(folder)}


def command(environment, *args: str, cwd=ROOT) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, '-m', 'moe_vision.study', *args],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


def refused(capsys, *args: str) -> str:
    """The one line that the command answers with."""
    assert main(list(args)) == 2
    out, err = capsys.readouterr()
    assert out == '' and err.startswith('error: ') and err.count('\n') == 1, err
    return err


@pytest.mark.parametrize(
    'args, parts',
    [
        (['rnu'], ["command 'rnu'", "'run'", 'register']),
        ([], ['command']),
        (['run', '--workdir={W}'], ['--study is missing', 'configs/studies/']),
        (['run', '--study={S}'], ['--workdir is missing']),
        (['run', '--study={S}', '--wrokdir={W}'], ['--wrokdir', "'--workdir'"]),
        (['run', '--study={S}', '--workdir=gs://b/x'], ['gs://b/x', 'file system']),
        (['run', '--study=configs/studies/no.py', '--workdir={W}'], ['no.py', 'does not exist']),
        (['run', '--study={S}', '--workdir={W}', '--only=k9'], ["arm in --only 'k9'", 'dense']),
        (
            ['run', '--study={S}', '--workdir={W}', '--config.train.epochs=3'],
            ["'--config.train.epochs'", 'study file', 'dataset.data_dir'],
        ),
        (
            ['run', '--study={S}', '--workdir={W}', '--config.model.moe.router_args.noise=none'],
            ['router_args.noise', 'cannot be set'],
        ),
        (
            ['run', '--study={S}', '--workdir={W}', '--config.dataset.data_dri=x'],
            ['dataset.data_dri', 'dataset.data_dir'],
        ),
        (
            ['run', '--study={S}', '--workdir={W}', '--config.dataset.workers=many'],
            ["arm 'dense'", "dataset.workers is 'many'", 'an int'],
        ),
        (['report'], ['--workdir is missing']),
        (['report', '--workdir={W}'], ['preregistration.json', 'does not exist']),
        (['report', '--workdir={W}', '--study={S}'], ['report reads --workdir alone']),
        (['pack'], ['--workdir is missing']),
        (['pack', '--workdir={W}'], ['preregistration.json', 'does not exist']),
        (['pack', '--workdir={W}', '--study={S}'], ['pack reads --workdir alone']),
        (['pack', '--workdir={W}', '--list'], ['--list is set but is not read', 'pack']),
        (['report', '--workdir={W}', '--only=k1'], ['--only is set but is not read', 'report']),
        (['report', '--workdir={W}', '--process=0'], ['--process is set but is not read']),
        (
            ['run', '--study={S}', '--workdir={W}', '--list', '--processes=2'],
            ['--processes is set but is not read'],
        ),
        (
            ['run', '--study={S}', '--workdir={W}', '--processes=2'],
            ['--coordinator and --process missing', '--coordinator=HOST:PORT'],
        ),
        (['run', '--study={S}', '--workdir={W}', '--processes=two'], ['--processes', "'two'"]),
        (['run', '--study={S}', '--workdir=/proc/nowhere'], ['/proc/nowhere', 'cannot be written']),
    ],
)
def test_a_mistake_is_one_line(capsys, tmp_path, args, parts):
    study = write_study(tmp_path)
    error = refused(capsys, *[a.format(S=study, W=tmp_path / 'W') for a in args])
    for part in parts:
        assert part in error, error


def test_a_mistake_is_reported_within_three_seconds_without_jax(without_jax, tmp_path):
    study = write_study(tmp_path, ("'model.moe.k': 1}", "'model.moe.k': 99}"))
    start = os.times()
    done = command(without_jax, 'run', f'--study={study}', f'--workdir={tmp_path / "W"}')
    now = os.times()  # processor seconds, so that other processes do not count
    assert now.children_user + now.children_system - start.children_user - start.children_system < 3
    assert done.returncode == 2 and done.stdout == '' and done.stderr.count('\n') == 1
    assert done.stderr.startswith("error: arm 'k1': model.moe.k is 99"), done.stderr


def test_missing_data_are_reported_before_anything_is_trained(without_jax, tmp_path):
    study = write_study(
        tmp_path,
        ('configs/digits_k2.py', 'configs/fashion_mnist_k2.py'),
        ("'model.args.depth': 1,", "'model.args.depth': 1,"),
    )
    done = command(
        without_jax,
        'run',
        f'--study={study}',
        f'--workdir={tmp_path / "W"}',
        f'--config.dataset.data_dir={tmp_path}',
    )
    assert done.returncode == 2 and done.stderr.count('\n') == 1
    assert "arm 'dense'" in done.stderr and 'fashion_mnist' in done.stderr, done.stderr
    assert not (tmp_path / 'W' / 'preregistration.json').exists()


def test_registering_and_listing_need_no_jax(without_jax, tmp_path):
    study, workdir = write_study(tmp_path), tmp_path / 'W'
    listed = command(without_jax, 'run', f'--study={study}', f'--workdir={workdir}', '--list')
    assert listed.returncode == 0 and not workdir.exists(), listed.stderr
    assert listed.stdout.splitlines()[0] == 'dense seed 0: missing'
    assert len(listed.stdout.splitlines()) == 12
    done = command(without_jax, 'register', f'--study={study}', f'--workdir={workdir}')
    found = json.loads((workdir / 'preregistration.json').read_text())
    assert done.returncode == 0 and found['hash'][:16] in done.stdout
    assert [p.name for p in workdir.iterdir()] == ['preregistration.json']
    write_study(tmp_path, ('margin=0.3', 'margin=0.4'))
    again = command(without_jax, 'run', f'--study={study}', f'--workdir={workdir}', '--list')
    assert again.returncode == 2 and 'margin 0.3 -> 0.4' in again.stderr


def test_a_dry_run_shows_cells_and_flops_and_writes_nothing(capsys, tmp_path):
    study = write_study(tmp_path)
    assert (
        main(['run', f'--study={study}', f'--workdir={tmp_path / "W"}', '--dry_run', '--only=k1'])
        == 0
    )
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[:2] == ['k1', '3'] and lines[2].split()[0] == 'all'
    assert float(lines[1].split()[3]) == pytest.approx(3 * float(lines[1].split()[2]), rel=1e-3)
    assert '3 x forward' in lines[-2] and 'unknown: no cell' in lines[-1]
    assert not (tmp_path / 'W').exists()


def test_a_packed_study_is_listed_and_planned_without_jax(without_jax, tmp_path, capsys):
    workdir = tmp_path / 'W'
    workdir.mkdir()
    finished_study(workdir)
    flags = ['run', f'--study={workdir}/tiny.py', f'--workdir={workdir}']
    assert main([*flags, '--dry_run']) == 0
    planned = capsys.readouterr().out
    packing = command(without_jax, 'pack', f'--workdir={workdir}')
    assert packing.returncode == 0 and 'rows.jsonl holds 12 of 12 rows' in packing.stdout
    listed = command(without_jax, *flags, '--list')
    assert listed.stdout.splitlines() == [
        f'{arm} seed {seed}: done' for arm in ('dense', 'k1', 'k2', 'again') for seed in range(3)
    ]
    assert main([*flags, '--dry_run']) == 0 and capsys.readouterr().out == planned


REAL = (
    (
        "'model.moe.num_experts': 4,",
        "'model.moe.num_experts': 4, 'model.moe.placement': 'head',"
        " 'model.moe.group_size': 16, 'eval.every_steps': 2, 'checkpoint.every_steps': 2,",
    ),
    ("'model.args.widths': (8, 16)", "'model.args.widths': (8,)"),
    ("'k1': Arm('configs/digits_k2.py', {**SMALL, 'model.moe.k': 1}),", ''),
    ("'again': Arm('configs/digits_k2.py', SMALL, seed_offset=100)", ''),
    ("'k1': Comparison('k1', 'dense'),", ''),
    ("('dense', 'k1')", "('dense', 'k2')"),
    ("{'conv': ('k1', 'k2')}", "{'conv': ('k2',)}"),
    ("{'conv': ('k1',)}", "{'conv': ('k2',)}"),
    ('(0, 1, 2)', '(0, 1)'),
)


@pytest.fixture(scope='module')
def real(tmp_path_factory, data_dir):
    """(loaded, workdir) of a study that was run on digits."""
    folder = tmp_path_factory.mktemp('real')
    loaded = load(write_study(folder, *REAL), [f'--config.dataset.data_dir={data_dir}'])
    with pytest.MonkeyPatch.context() as patch:
        train_cases.share_setups(patch, cells)
        assert run(loaded, str(folder / 'W'), stream=io.StringIO()) == 4
        yield loaded, folder / 'W'


def test_a_study_of_digits(real):
    loaded, workdir = real
    found = {name: json.loads(text) for name, text in tables(workdir).items()}
    assert list(found) == [f'{a}/seed_{s}.json' for a in ('dense', 'k2') for s in (0, 1)]
    for name, row in found.items():
        assert row['status'] == 'done' and row['result']['steps'] == 4, name
        assert 0 <= row['result']['test_accuracy'] <= 1 and row['images'] == 360
        assert row['correct'] and [c['step'] for c in row['curve']] == [2, 4]
        assert row['device'] and row['versions']['jax'] == jax.__version__
    assert 'drop_rate' in found['k2/seed_0.json']['layers']['head']
    assert found['k2/seed_0.json']['mechanism']['specialisation']['head']


def test_a_study_that_was_stopped_ends_with_the_same_bytes(real, tmp_path, monkeypatch):
    """It is stopped in the second half of the second cell, then of the third."""
    loaded, workdir = real
    validate, calls = run_lib.Run.validate, []

    def stops(self, step, state):
        calls.append(step)
        if len(calls) in (4, 7):
            raise KeyboardInterrupt
        return validate(self, step, state)

    monkeypatch.setattr(run_lib.Run, 'validate', stops)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run(loaded, str(tmp_path), stream=io.StringIO())
    stream = io.StringIO()
    assert run(loaded, str(tmp_path), stream=stream) == 2
    assert 'k2 seed 0: continues' in stream.getvalue()
    assert tables(tmp_path) == tables(workdir)


def test_the_report_reads_the_workdir_alone(real, without_jax, tmp_path):
    """Committed files are enough: no runs, no study file, no jax."""
    import shutil

    for name in ('rows', 'timings'):
        shutil.copytree(real[1] / name, tmp_path / name)
    shutil.copy(real[1] / 'preregistration.json', tmp_path)
    done = command(without_jax, 'report', f'--workdir={tmp_path}')
    assert done.returncode == 0, done.stderr
    assert (tmp_path / 'report' / 'report.md').exists()
    before = {p: p.read_bytes() for p in (tmp_path / 'report').rglob('*') if p.is_file()}
    assert command(without_jax, 'pack', f'--workdir={tmp_path}').returncode == 0
    again = command(without_jax, 'report', f'--workdir={tmp_path}')
    assert again.returncode == 0 and before == {p: p.read_bytes() for p in before}
    assert (tmp_path / 'rows.jsonl').exists() and not (tmp_path / 'rows').exists()
