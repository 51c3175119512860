"""A set without a test split is scored on validation, and everything that a run leaves says so."""

import json

import pytest
import train_cases
from image_fakes import encoded, picture, rewrite

from input_pipeline.prepare import prepare
from moe_vision.common.errors import UserError
from moe_vision.config import rules
from moe_vision.study import row_of_run
from moe_vision.training import loop

TINY = {
    'dataset.name': 'image_folder',
    'dataset.image_size': 8,
    'dataset.validation_fraction': 0.25,
    'model.moe.placement': 'head',
    'model.args': {'widths': (8,), 'depth': 1},
    'model.moe.group_size': 8,
    'train.batch_size': 8,
    'train.steps': 3,
    'train.warmup_steps': 1,
    'train.mixup': 0.0,
    'eval.batch_size': 16,
    'eval.every_steps': 2,
}


def images(folder, splits, bad=()):
    for split, count in splits.items():
        for i in range(count):
            name = f'{split}/{"ab"[i % 2]}/{i:02d}.png'
            data = b'no image' if name in bad else encoded(picture(i, 12, 9), 'PNG')
            rewrite(folder / 'in' / name, data)
    prepare('image_folder', str(folder), str(folder / 'in'), overwrite=True)


def config(folder, **changes):
    return train_cases.make(
        str(folder), TINY | {k.replace('__', '.'): v for k, v in changes.items()}
    )


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """(folder, config) of a run on train/ alone; one of its training images is no image."""
    folder = tmp_path_factory.mktemp('data')
    images(folder, {'train': 32})
    made = config(folder)
    for number in range(32):  # one that falls into train, and into the first batch of the probe
        images(folder, {'train': 32}, {f'train/{"ab"[number % 2]}/{number:02d}.png'})
        try:
            rules.check_data(made, reads=True)
            break
        except Exception as e:
            assert 'validation (held out of train)' in str(e)
    loop.train(made, str(folder / 'run'), probe=True)
    return folder / 'run', made


def test_the_result_and_the_report_say_what_was_scored(run):
    folder, _ = run
    result = train_cases.result(folder)
    assert result['scored_split'] == 'validation' and result['test_accuracy_selected'] is None
    last = [r for r in train_cases.rows(folder) if r['split'] == 'validation'][-1]
    assert result['test_accuracy'] == last['accuracy']
    evaluation = json.loads((folder / 'evaluation.json').read_text())
    assert evaluation['split'] == 'validation' and evaluation['images'] == 8
    page = (folder / 'report.html').read_text()
    assert 'no test split: the run is scored on validation' in page


def test_a_row_of_a_study_says_so(run):
    folder, _ = run
    row = row_of_run.collect(str(folder), 'study', 'arm', 0, '')
    assert row['scored_split'] == 'validation' and row['images'] == 8
    assert 'scored_split' not in row['result'] and row['mechanism']['shuffle_drop'] is not None


def test_scoring_the_test_split_scores_validation(run, capsys):
    folder, made = run
    scores = loop.evaluate(made, str(folder))
    out = capsys.readouterr().out
    assert 'image_folder has no test split: scored on validation' in out
    assert scores['images'] == 8 and (folder / 'evaluation-validation.json').exists()
    with pytest.raises(Exception, match='of the 24 images of train .* 1 cannot be decoded'):
        rules.check_data(made, reads=True, split='train')
    rules.check_data(made, reads=True, split='test')


@pytest.mark.parametrize(
    ('splits', 'fraction', 'scored'),
    [
        ({'train': 16}, 0.25, ['validation']),
        ({'train': 16, 'Valid': 4}, 0.25, ['validation']),
        ({'train': 16, 'valid': 4}, 0.0, ['validation']),
        ({'train': 16, 'Testing': 4}, 0.0, ['test']),
        ({'train': 16, 'test': 4, 'dev': 2}, 0.0, ['validation', 'test']),
        ({'train': 16}, 0.0, None),
    ],
)
def test_what_a_run_scores(tmp_path, splits, fraction, scored):
    images(tmp_path, splits)
    made = config(tmp_path, dataset__validation_fraction=fraction)
    info = rules.input_pipeline.info(made.dataset)
    if scored:
        assert rules.check_to_train(made, info) == scored
        assert rules.to_score('test', info) == scored[-1]
    else:
        for check in (
            lambda: rules.check_to_train(made, info),
            lambda: rules.check_data(made, reads=True),
        ):
            with pytest.raises(UserError, match='neither test nor validation images to score'):
                check()
