"""What is read as data imports nothing: hostile folders, each command, each field that names code.

`evil.py` leaves a mark when it is imported. It stands where Python finds it, as any file below the
working directory does.
"""

import contextlib
import json
import shutil
import sys
import typing
from pathlib import Path

import pytest
from study_fakes import fake_train_arm, write_study

import input_pipeline
import main
import moe_vision
from configs import base
from input_pipeline import storage
from moe_vision.common.errors import UserError
from moe_vision.config import check as config_lib
from moe_vision.config import schema, trust, typed
from moe_vision.predict import __main__ as predict
from moe_vision.study import __main__ as study_command
from moe_vision.study import registration, row_of_run, rows
from moe_vision.study.load import load

NAMES = (
    'model.name',
    'model.moe.router',
    'model.moe.expert',
    'train.optimizer',
    'dataset.name',
    'model.moe.losses',
    'log.trackers',
)
TEXTS = sorted(
    k
    for k, kind in typed.flatten(schema.Config).items()
    if kind is str or typing.get_origin(kind) is typing.Literal
)


def with_name(values: dict, key: str, name: str) -> dict:
    """A config's plain values whose `key` holds `name`."""
    values = json.loads(json.dumps(values))
    *parents, last = key.split('.')
    holder = values
    for parent in parents:
        holder = holder.setdefault(parent, {})
    holder[last] = name
    if key == 'model.moe.losses':
        holder[last] = {name: 0.1}
    if key == 'log.trackers':
        holder[last] = [name]
    if key == 'model.moe.router':
        holder |= {'router_args': {}, 'losses': {}}  # those set suit another router
    return values


@pytest.fixture
def evil(tmp_path, monkeypatch):
    """(its name, whether it was imported); `evil` stands in a folder that holds a run."""
    mark = tmp_path / 'mark'
    (tmp_path / 'stranger').mkdir()
    (tmp_path / 'stranger' / 'evil.py').write_text(
        f'open({str(mark)!r}, "w").close()\n'
        'from moe_vision.config.registry import TopKArgs\n'
        'from moe_vision.routing.routers.top_k import TopK\n'
        'class R(TopK):\n'
        '    Args = TopKArgs\n'
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield 'stranger.evil:R', mark.exists
    for name in ('stranger', 'stranger.evil'):
        sys.modules.pop(name, None)


@pytest.fixture
def run(tmp_path):
    """Makes the folder of a run whose config names this code under this key."""

    def make(key, name, folder=tmp_path / 'run'):
        folder.mkdir(exist_ok=True)
        values = with_name(base.get_config().to_dict(), key, name)
        (folder / 'config.json').write_text(json.dumps({'config': values}))
        return str(folder)

    return make


def from_main(mode):
    def command(workdir, *args):
        flags = [f'--mode={mode}', f'--workdir={workdir}', *args]
        main.FLAGS.unparse_flags()
        return main.main(['main.py', *flags])

    return command


def from_file(workdir, *args):
    main.FLAGS.unparse_flags()
    return main.main(['main.py', f'--config=configs/workdir.py:{workdir}', '--mode=summary', *args])


COMMANDS = {
    'predict': lambda workdir, *args: predict.main([f'--workdir={workdir}', *args, 'image.png']),
    'eval': from_main('eval'),
    'summary': from_main('summary'),
    'config of a run': from_file,
}


@pytest.fixture(autouse=True)
def flags():
    yield
    for name in ('trust', 'workdir', 'config', 'mode'):
        main.FLAGS[name].unparse()
    trust._trusted.clear()


@pytest.mark.parametrize('key', NAMES)
@pytest.mark.parametrize('command', COMMANDS)
def test_a_command_refuses_code_that_a_run_names(command, key, run, evil, capsys):
    name, imported = evil
    assert COMMANDS[command](run(key, name)) == 2
    told = capsys.readouterr().err
    assert told.count('\n') == 1 and f'{key}' in told and name in told
    assert '--trust=stranger.evil' in told and not imported()


@pytest.mark.parametrize('key', sorted({*TEXTS, *NAMES}))
def test_whatever_the_key_a_run_names_no_code(key, run, evil):
    name, imported = evil
    with pytest.raises(UserError, match='stranger.evil:R'):
        moe_vision.load(run(key, name))
    assert not imported()


@pytest.mark.parametrize('key', ['model.moe.router_args', 'model.args', 'train.optimizer_args'])
def test_arguments_of_methods_name_no_code(key, run, evil):
    name, imported = evil
    workdir = run(f'{key}.deep', [{'er': [name]}])
    with pytest.raises(UserError, match='stranger.evil:R'):
        moe_vision.load(workdir)
    assert not imported()


def test_a_module_that_the_user_trusts_is_imported(run, evil, capsys):
    name, imported = evil
    workdir = run('model.moe.router', name)
    assert COMMANDS['summary'](workdir, '--trust=my.own,stranger.evil') == 0
    assert imported()


def test_trust_is_of_one_module_and_of_one_call(run, evil):
    name, imported = evil
    workdir = run('model.moe.router', name)
    for trusted in ('stranger', 'stranger.evil.R', 'evil'):
        with pytest.raises(UserError, match='may not import code'):
            config_lib.load(workdir, (trusted,))
    assert not imported()
    assert config_lib.load(workdir, ('stranger.evil',)).model.moe.router == name
    with pytest.raises(UserError, match='may not import code'):
        config_lib.load(workdir)


@pytest.mark.parametrize('module', ['run.evil', 'linked.evil', 'link_to_run'])
def test_code_inside_the_folder_is_not_even_trusted(module, run, evil, tmp_path):
    """Its own file, one in a package of another name that links there, and a linked file."""
    _, imported = evil
    workdir = run('model.moe.router', f'{module}:R')
    shutil.copy(tmp_path / 'stranger' / 'evil.py', f'{workdir}/evil.py')
    (tmp_path / 'linked').symlink_to(workdir)
    (tmp_path / 'link_to_run.py').symlink_to(f'{workdir}/evil.py')
    with pytest.raises(UserError, match='lies inside that folder'):
        config_lib.load(workdir, (module,))
    assert not imported()


def test_a_package_inside_the_folder_is_not_imported_on_the_way(run, evil, tmp_path):
    """Importing run.package.module runs run/package/__init__.py first."""
    _, imported = evil
    workdir = run('model.moe.router', 'run.package.module:R')
    (tmp_path / 'run' / 'package').mkdir()
    shutil.copy(tmp_path / 'stranger' / 'evil.py', f'{workdir}/package/__init__.py')
    with pytest.raises(UserError, match='lies inside that folder'):
        config_lib.load(workdir, ('run.package.module',))
    assert not imported()


@pytest.mark.parametrize('flag', ['os:system', 'a b', '../x', 'a..b'])
def test_what_is_no_module_cannot_be_trusted(flag):
    with pytest.raises(UserError, match='--trust'):
        trust.allow(flag)


@pytest.mark.parametrize('name', ['evil:R:S', ' evil:R', 'evil:R\n', '.evil:R', 'evil.:R', 'evil:'])
def test_odd_spellings_of_a_name_import_nothing(name, run, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / 'evil.py').write_text('raise SystemExit("was imported")')
    for key in NAMES:
        with pytest.raises((UserError, input_pipeline.DataError)):
            config_lib.check(settings_of(run(key, name)))


def settings_of(workdir):
    from configs import workdir as file

    return file.get_config(workdir)


@pytest.fixture(scope='module')
def study(tmp_path_factory):
    """The folder of a small study with all its rows."""
    folder = tmp_path_factory.mktemp('study')
    loaded = load(write_study(folder), [f'--config.dataset.data_dir={folder}'])
    record, digest = registration.register(loaded, str(folder))
    for arm in loaded.configs:
        runs = [str(folder / 'runs' / arm / f'seed_{s}') for s in loaded.study.seeds]
        fake_train_arm(
            [loaded.config(arm, s) for s in loaded.study.seeds],
            runs,
            'one_by_one',
            False,
            lambda i, error: None,
        )
        for seed, made in zip(loaded.study.seeds, runs, strict=True):
            row = row_of_run.collect(made, 'tiny', arm, seed, digest)
            rows.write(str(folder), row, {'seconds': 1.0, 'flops': 10})
    return folder


def hostile_study(study, to, key, name, where):
    """A copy in which the record of arm k1, or all its rows, name this code."""
    shutil.copytree(study, to)
    registered = json.loads((to / 'preregistration.json').read_text())
    arm = registered['record']['arms']['k1']
    changed = with_name(arm['config'], key, name)
    if args := {'model.moe.router': ('model', 'moe'), 'model.name': ('model',)}.get(key):
        holder = changed
        for part in args:
            holder = holder[part]
        holder['router_args' if args[-1] == 'moe' else 'args'] = {'new_key': 1}
    if where == 'record':
        arm['config'] = changed
        registered['hash'] = registration.digest(registered['record'])
        (to / 'preregistration.json').write_text(json.dumps(registered))
    for file in (to / 'rows' / 'k1').glob('*.json'):
        row = json.loads(file.read_text())
        row['config'] = changed if where == 'rows' else json.loads(json.dumps(arm['config']))
        if where == 'record':  # one key less: its default must be looked up somewhere
            row['config']['model']['moe']['router_args'] = {}
        file.write_text(json.dumps(row))


@pytest.mark.parametrize('where', ['record', 'rows'])
@pytest.mark.parametrize('key', NAMES)
def test_reports_and_lists_of_a_study_import_nothing(key, where, study, evil, tmp_path, capsys):
    name, imported = evil
    folder = tmp_path / 'copy'
    hostile_study(study, folder, key, name, where)
    file, data = f'--study={study}/tiny.py', f'--config.dataset.data_dir={study}'
    study_command.main(['report', f'--workdir={folder}'])
    for arguments in (['--list'], ['--dry_run'], []):
        if arguments or where == 'record':  # then training is refused: registered otherwise
            code = study_command.main(['run', file, data, f'--workdir={folder}', *arguments])
            assert code == (2 if where == 'record' else 0)
    assert not imported()
    told = capsys.readouterr().err
    assert 'k1' in told and 'Traceback' not in told


def test_a_folder_of_data_names_no_class(tmp_path, evil):
    """tfds would import the classes that features.json names, also in JSON inside of a text."""
    name, imported = evil
    config = input_pipeline.DatasetConfig(
        name='digits',
        data_dir=str(tmp_path),
        validation_fraction=0.1,
        image_size=0,
        augment='none',
        workers=0,
        cache=False,
        train_images=0,
        resident=False,
        randaugment_layers=0,
        randaugment_magnitude=9.0,
    )
    input_pipeline.require(config)
    file = next(Path(tmp_path).glob('digits/*/features.json'))
    good = json.loads(file.read_text())
    inner = good['featuresDict']['features']
    evil_class = {'pythonClassName': 'stranger.evil.R', 'image': {}}
    core = 'tensorflow_datasets.core.features.'
    in_text = {'json': json.dumps({'feature': {'type': 'stranger.evil.R', 'content': {}}})}
    sequence = {'pythonClassName': f'{core}sequence_feature.Sequence', 'jsonFeature': in_text}
    for change in (
        {'pythonClassName': 'stranger.evil.R'},
        {'python_class_name': 'stranger.evil.R'},
        {'type': 'stranger.evil.R', 'content': {}},
        {'featuresDict': {'features': inner | {'image': inner['image'] | evil_class}}},
        {'featuresDict': {'features': inner | {'extra': evil_class}}},
        {'featuresDict': {'features': inner | {'extra': sequence}}},
        {
            'type': f'{core}features_dict.FeaturesDict',
            'proto_cls': 'tensorflow_datasets.FeaturesDict',
            'content': json.dumps({'features': {'image': evil_class}}),
        },
    ):
        file.write_text(json.dumps(good | change))
        with contextlib.suppress(input_pipeline.DataError):
            input_pipeline.require(config)
            assert storage.records(file.parent, 'train')[0]
        assert not imported()
