"""The stage that tunes arms on validation, with a trainer that only writes files."""

import dataclasses
import json

import pytest
from study_fakes import FLOPS, fake_train_arm, finished_study, write_study

from moe_vision.common.errors import UserError
from moe_vision.study import registration, tuning
from moe_vision.study.__main__ import main
from moe_vision.study.load import load
from moe_vision.study.run import plan
from moe_vision.study.run.runner import run
from moe_vision.study.types import Tuning

TUNE = (
    "tune=Tuning({'train.learning_rate': (3e-3, 1e-2), 'train.weight_decay': (0.0, 1e-4)},\n"
    "            {'k1': ('again',), 'dense': ()}, seeds=(100, 101)),\n        margin=0.3,"
)


def study_file(folder, *changes):
    imports = 'Study, Trend', 'Study, Trend, Tuning'
    return write_study(folder, imports, ('margin=0.3,', TUNE), *changes)


@pytest.fixture(autouse=True)
def untraced(monkeypatch):
    """Counts the FLOPs of no network, which would be most of the time."""
    monkeypatch.setattr(plan, 'training_flops', lambda config: FLOPS)


@pytest.fixture
def loaded(tmp_path):
    return load(study_file(tmp_path), [f'--config.dataset.data_dir={tmp_path}'])


def scores(monkeypatch, best):
    """Makes the fake trainer's validation accuracy depend on the learning rate and the arm."""
    import study_fakes

    def number(config, step):
        rate, k = config.train.learning_rate, config.model.moe.k
        dense = config.model.twin != 'none'
        return 0.5 + 0.1 * (rate == best['dense' if dense else k]) + 1e-3 * (config.seed - 100)

    monkeypatch.setattr(study_fakes, '_number', number)


def finished(loaded, workdir, monkeypatch, best):
    scores(monkeypatch, best)
    run(tuning.stage(loaded), tuning.folder(str(workdir)), train_arm=fake_train_arm)
    return tuning.tuned(loaded, str(workdir))


def test_every_tuned_arm_gets_the_same_grid(loaded):
    stage = tuning.stage(loaded)
    assert len(stage.configs) == 2 * 4 and stage.study.seeds == (100, 101)
    grid = {
        arm: [
            (c.train.learning_rate, c.train.weight_decay)
            for name, c in stage.configs.items()
            if name.startswith(arm)
        ]
        for arm in ('k1', 'dense')
    }
    assert grid['k1'] == grid['dense'] == [(3e-3, 0.0), (3e-3, 1e-4), (1e-2, 0.0), (1e-2, 1e-4)]
    assert 'k1_learning_rate_0_003_weight_decay_0_0' in stage.configs
    assert stage.study.metric == 'validation_accuracy'


def test_the_best_point_becomes_part_of_the_arm_and_of_the_registration(
    loaded, tmp_path, monkeypatch
):
    after = finished(loaded, tmp_path, monkeypatch, {1: 1e-2, 'dense': 3e-3})
    rates = {name: config.train.learning_rate for name, config in after.configs.items()}
    assert rates['k1'] == rates['again'] == 1e-2  # `again` takes what k1 was tuned to
    assert rates['dense'] == 3e-3
    assert rates['k2'] == loaded.configs['k2'].train.learning_rate  # named nowhere: its own
    record, _ = registration.register(after, str(tmp_path))
    table = record['tuned']['arms']['k1']['scores']
    assert [s['validation_accuracy'] for s in table] == [50.05, 50.05, 60.05, 60.05]  # by hand
    assert record['tuned']['arms']['k1']['chosen'] == {  # the first of two equal points
        'train.learning_rate': 1e-2,
        'train.weight_decay': 0.0,
    }
    assert record['arms']['k1']['config']['train']['learning_rate'] == 1e-2
    assert record['tuned']['registration'] == registration.read(str(tmp_path / 'tuning'))[1]
    # Later the registration says what was chosen; the stage's rows are not needed again.
    again = tuning.tuned(loaded, str(tmp_path))
    assert again.configs == after.configs
    assert registration.register(again, str(tmp_path))[0] == record


def test_the_stage_takes_equal_cells_of_the_neighbours_of_its_study(tmp_path, monkeypatch):
    for name in ('first', 'second'):
        (tmp_path / name).mkdir()
    finished_study(tmp_path / 'first')  # seeds 0 to 2, with the learning rate of the config
    monkeypatch.setenv('FAKE_SECONDS', '0')
    data = [f'--config.dataset.data_dir={tmp_path}']
    own = load(str(tmp_path / 'first/tiny.py'), data).configs['dense'].train
    file = study_file(
        tmp_path / 'second',
        ("name='tiny'", "name='second', reads=('first',)"),
        ('seeds=(0, 1, 2)', 'seeds=(5, 6, 7)'),
        ('seeds=(100, 101)', 'seeds=(0, 1)'),
        ('(3e-3, 1e-2)', f'(3e-3, {own.learning_rate})'),
        ('(0.0, 1e-4)', f'(0.0, {own.weight_decay})'),
    )
    loaded, trained = load(file, data), []
    stage, where = tuning.stage(loaded), tuning.folder(str(tmp_path / 'second'))

    def train(configs, *rest):
        trained.extend(configs)
        fake_train_arm(configs, *rest)

    run(stage, where, train_arm=train)
    assert len(trained) == 2 * 3 * 2  # of two arms and four points, one point is there already
    assert not any(c.train == own for c in trained)
    assert tuning.choose(loaded, str(tmp_path / 'second'))['arms']['k1']['scores']


def test_the_common_point_is_the_best_of_all_tuned_arms(loaded, tmp_path, monkeypatch):
    after = finished(loaded, tmp_path, monkeypatch, {1: 1e-2, 'dense': 1e-2})
    assert after.tuned['common']['train.learning_rate'] == 1e-2


def test_a_study_is_not_registered_before_its_tuning_is_done(loaded, tmp_path, monkeypatch, capsys):
    file, flag = str(tmp_path / 'tiny.py'), f'--config.dataset.data_dir={tmp_path}'
    command = ['register', f'--study={file}', f'--workdir={tmp_path}/w', flag]
    assert main(command) == 2
    assert 'has not begun' in capsys.readouterr().err and not (tmp_path / 'w').exists()
    stage = tuning.stage(loaded)
    scores(monkeypatch, {1: 1e-2, 'dense': 3e-3})
    only = next(iter(stage.configs))
    run(stage, tuning.folder(f'{tmp_path}/w'), only=only, train_arm=fake_train_arm)
    assert main(command) == 2
    error = capsys.readouterr().err
    assert 'lacks 14 cells' in error and 'moe_vision.study tune' in error and error.count('\n') == 1
    assert main(['run', '--list', *command[1:]]) == 0
    listed = capsys.readouterr().out
    assert 'the tuning comes first' in listed and f'{only} seed 100: done' in listed


@pytest.mark.parametrize(
    'old, new, says',
    [
        ("{'k1': ('again',)", "{'k9': ('again',)", "unknown arm 'k9'"),
        ("{'k1': ('again',)", "{'k1': ('dense',)", "'dense' is named twice"),
        ('seeds=(100, 101)', 'seeds=(2, 101)', 'none that the study reports (0 to 2)'),
        ('seeds=(100, 101)', 'seeds=()', 'one or more'),
        ('seeds=(100, 101)', 'seeds=(-1, 101)', 'from 0 to'),
        ("'train.learning_rate': (3e-3, 1e-2)", "'train.learning_rate': ()", 'one value or more'),
        ('tune=Tuning(', 'tune=(lambda *a, **b: 3)(', 'it must be a moe_vision.study.types.Tuning'),
    ],
)
def test_a_wrong_stage_is_one_line(tmp_path, old, new, says):
    with pytest.raises(UserError) as e:
        load(study_file(tmp_path, (old, new)))
    assert says in str(e.value) and '\n' not in str(e.value)


@pytest.mark.parametrize(
    'key, first, second, name',
    [
        ('train.weight_decay', 1, -1, 'k1_weight_decay_1'),
        ('model.moe.placement', '1,2', '1_2', 'k1_placement_1_2'),
        ('model.args.widths', (8, 16), [8, 16], 'k1_widths_8_16'),
    ],
)
def test_two_points_that_would_be_one_arm_are_told(loaded, key, first, second, name):
    """Else one would take the place of the other, and the table would show its score twice."""
    tune = Tuning({key: (first, second)}, {'k1': ()}, seeds=(100, 101))
    study = dataclasses.replace(loaded.study, tune=tune)
    with pytest.raises(UserError) as e:
        tuning.stage(dataclasses.replace(loaded, study=study))
    told = f"points {{'{key}': {first!r}}} and {{'{key}': {second!r}}} would both be arm '{name}'"
    assert told in str(e.value) and '\n' not in str(e.value)


@pytest.mark.parametrize(
    'changes, says',
    [
        (
            {'model.moe.router': 'soft', 'model.moe.losses': {}, 'model.moe.router_args': {}},
            "arm 'again': model.moe.capacity_factor is set to 1.0 but is not read",
        ),
        ({'model.moe.capacity_factor': 2.0}, "arm 'again' takes model.moe.capacity_factor from"),
    ],
)
def test_what_follows_a_tuned_arm_must_fit_the_grid(loaded, changes, says):
    """This is told before the stage is trained."""
    study = loaded.study
    again = dataclasses.replace(
        study.arms['again'], overrides={**study.arms['again'].overrides, **changes}
    )
    grid = {'model.moe.capacity_factor': (1.0, 1.5)}
    study = dataclasses.replace(
        study,
        arms={**study.arms, 'again': again},
        tune=Tuning(grid, {'k1': ('again',)}, seeds=(100, 101)),
    )
    with pytest.raises(UserError) as e:
        tuning.stage(dataclasses.replace(loaded, study=study))
    assert says in str(e.value) and '\n' not in str(e.value)


def test_after_the_stage_the_study_itself_is_shown(loaded, tmp_path, monkeypatch, capsys):
    finished(loaded, tmp_path / 'w', monkeypatch, {1: 1e-2, 'dense': 3e-3})
    flags = [f'--study={tmp_path}/tiny.py', f'--config.dataset.data_dir={tmp_path}']
    assert main(['run', '--list', '--only=k2', f'--workdir={tmp_path}/w', *flags]) == 0
    told = capsys.readouterr().out
    assert told.splitlines() == [f'k2 seed {seed}: missing' for seed in (0, 1, 2)]
    assert main(['run', '--list', '--only=k2', f'--workdir={tmp_path}/new', *flags]) == 0
    assert 'the tuning comes first' in capsys.readouterr().out


def test_a_grid_of_a_key_that_does_not_exist(tmp_path, capsys):
    file = study_file(tmp_path, ("'train.learning_rate':", "'train.learningrate':"))
    assert main(['tune', f'--study={file}', f'--workdir={tmp_path}/w']) == 2
    assert "train.learning_rate'" in capsys.readouterr().err


def test_there_is_nothing_to_tune(tmp_path, capsys):
    assert main(['tune', f'--study={write_study(tmp_path)}', f'--workdir={tmp_path}/w']) == 2
    assert 'nothing to tune' in capsys.readouterr().err


def test_a_registration_with_another_choice_is_noticed(loaded, tmp_path, monkeypatch):
    finished(loaded, tmp_path, monkeypatch, {1: 1e-2, 'dense': 3e-3})
    registration.register(loaded, str(tmp_path))  # as if it had never been tuned
    with pytest.raises(UserError, match='use a new'):
        tuning.tuned(loaded, str(tmp_path))
    stored = json.loads((tmp_path / 'preregistration.json').read_text())
    assert 'tuned' not in stored['record']


@pytest.mark.parametrize(
    'point',
    [
        {'model.moe.router': 'stranger:Evil'},
        {'train.learning_rate': 1e-2, 'train.weight_decay': 0.5},  # not in the grid
        {'train.learning_rate': 1e-2},
        'text',
        None,
    ],
)
def test_a_registration_cannot_choose_what_the_grid_does_not_offer(
    loaded, tmp_path, monkeypatch, point
):
    """It is data: a name in it must not be imported, nor a key be set."""
    (tmp_path / 'stranger.py').write_text("raise RuntimeError('a stranger ran')\n")
    monkeypatch.syspath_prepend(tmp_path)
    after = finished(loaded, tmp_path, monkeypatch, {1: 1e-2, 'dense': 3e-3})
    record, _ = registration.register(after, str(tmp_path))
    record['tuned']['arms']['k1']['chosen'] = point
    (tmp_path / 'preregistration.json').write_text(
        json.dumps({'hash': registration.digest(record), 'record': record})
    )
    with pytest.raises(UserError, match="a point of this study's grid") as e:
        tuning.tuned(loaded, str(tmp_path))
    assert '\n' not in str(e.value)
