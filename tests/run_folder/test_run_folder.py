"""What a run writes to its folder, what can be done with it, and how a diverging run ends."""

import dataclasses
import json
import math
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
import train_cases

from moe_vision.common.errors import UserError
from moe_vision.run_folder import checkpoints
from moe_vision.training import loop
from moe_vision.training.evaluate import Evaluator

KEYS = """test_accuracy test_loss test_accuracy_unbounded test_accuracy_selected
best_validation_accuracy seed steps
params_total params_active rho_place rho_active rho_executed flops flops_executed
images_per_second drop_rate orphan_rate effective_experts dead_experts collapsed
scored_split""".split()
SMALL = {
    'model.moe.placement': 'head',
    'model.args': {'widths': (8,), 'depth': 1},
    'seed': 7,
    'train.mixup': 0.0,
    'checkpoint.every_steps': 6,
}


@pytest.fixture(scope='module')
def config(data_dir):
    return train_cases.make(data_dir, SMALL)


@pytest.fixture(scope='module')
def workdir(config, tmp_path_factory):
    folder = tmp_path_factory.mktemp('run')
    loop.train(config, str(folder), config_file='configs/mine.py', profile_steps=(3, 4))
    return folder


@pytest.fixture(scope='module')
def setup(config):
    return loop.Setup(config)


def strictly(text):
    """JSON without NaN and Infinity, which the standard does not know."""

    def refuse(name):
        raise ValueError(name)

    return json.loads(text, parse_constant=refuse)


def test_the_result_has_exactly_its_keys(workdir):
    result = strictly((workdir / 'result.json').read_text())
    assert list(result) == KEYS
    assert (result['seed'], result['steps']) == (7, 12)
    assert result['images_per_second'] > 0 and result['rho_place'] > 0
    validation = [r for r in train_cases.rows(workdir) if r['split'] == 'validation']
    assert result['best_validation_accuracy'] == max(r['accuracy'] for r in validation)
    assert train_cases.steps(workdir, 'best') == [
        next(r['step'] for r in validation if r['accuracy'] == result['best_validation_accuracy'])
    ]


def test_the_config_is_kept_whole_with_versions_and_data(config, workdir):
    record = strictly((workdir / 'config.json').read_text())
    assert set(record) == {
        'config',
        'config_file',
        'versions',
        'git_commit',
        'device',
        'dataset',
        'preflight',
    }
    from moe_vision.config import check as config_lib

    assert config_lib.load(str(workdir)) == config
    assert {'python', 'jax', 'flax', 'optax', 'orbax-checkpoint'} <= set(record['versions'])
    assert record['dataset']['split_sizes'] == {'train': 1293, 'validation': 144, 'test': 360}
    preflight = record['preflight']
    assert preflight['blocks'] and preflight['capacity']['head']['capacity'] == 10


def test_metric_rows_are_json_by_step(workdir):
    rows = [
        strictly(line)
        for path in sorted((workdir / 'metrics').iterdir())
        for line in path.read_text().splitlines()
    ]
    # every 3 steps, but none a step away from a validation, where a row always ends
    assert [(r['step'], r['split']) for r in rows] == [
        (4, 'train'),
        (4, 'validation'),
        (6, 'train'),
        (8, 'train'),
        (8, 'validation'),
        (12, 'train'),
        (12, 'validation'),
    ]
    for r in rows:
        assert {'loss', 'accuracy', 'epoch', 'layers'} <= set(r)
        assert math.isclose(sum(r['layers']['head']['load']), 1)
        if r['split'] == 'train':
            assert {'task_loss', 'losses', 'grad_norm', 'learning_rate', 'timing'} <= set(r)
    assert not list((workdir / 'metrics').glob('.*'))


def test_tensorboard_events_and_a_profile_and_the_report_are_there(workdir):
    *_, event = sorted((workdir / 'events').iterdir())
    assert event.name.startswith('events.out.tfevents') and event.stat().st_size > 1000
    assert b'validation/accuracy' in event.read_bytes()
    assert list((workdir / 'profile').rglob('*.xplane.pb'))
    assert '<html' in (workdir / 'report.html').read_text()
    evaluation = strictly((workdir / 'evaluation.json').read_text())
    assert evaluation['images'] == 360 and len(evaluation['samples']) == 24
    assert np.shape(evaluation['confusion']) == (10, 10)


@pytest.mark.parametrize('split, images', [('validation', 144), ('test', 360)])
def test_a_run_is_scored_on_any_split_as_it_was_while_training(
    config, workdir, split, images, capsys, caplog
):
    whole = (workdir / 'config.json').read_text()
    digest = train_cases.other_data(workdir)
    changed = dataclasses.replace(
        config,
        eval=dataclasses.replace(
            config.eval, split=split, batch_size=1, capacity_factors=(float('inf'),)
        ),
    )
    scores = loop.evaluate(changed, str(workdir))
    (workdir / 'config.json').write_text(whole)
    assert sum(f'{"0" * 16} -> {digest[:16]};' in r.getMessage() for r in caplog.records) == 1
    assert scores['images'] == images
    if split == 'test':
        want = train_cases.result(workdir)['test_accuracy']
    else:
        want = train_cases.rows(workdir)[-1]['accuracy']
    assert scores['accuracy'] == want
    written = strictly((workdir / f'evaluation-{split}.json').read_text())
    assert written['step'] == 12 and written['accuracy'] == want
    assert written['at_another_batch_size']['equal'] and len(written['capacity_sweep']) == 1
    out = capsys.readouterr().out
    assert f'{images} images, step 12' in out
    assert 'batch size 16 and 32: predictions are equal' in out
    free = scores['accuracy_unbounded']
    assert f'capacity factor inf (effective 2.00): accuracy {free:.4f}' in out


@pytest.mark.parametrize('fails', ['at_another_batch_size', 'sweep'])
def test_scores_are_kept_if_a_later_pass_fails(config, workdir, capsys, monkeypatch, fails):
    """Printed and in the file, which is there even if the process is killed meanwhile."""
    file = workdir / 'evaluation-test.json'
    file.unlink(missing_ok=True)
    before = []

    def fail(*args):
        before.append(strictly(file.read_text()))
        raise MemoryError

    monkeypatch.setattr(Evaluator, fails, fail)
    with pytest.raises(MemoryError):
        loop.evaluate(config, str(workdir))
    accuracy = train_cases.result(workdir)['test_accuracy']
    assert f'test accuracy {accuracy:.4f}' in capsys.readouterr().out
    written = strictly(file.read_text())
    assert before[0]['accuracy'] == written['accuracy'] == accuracy
    assert ('at_another_batch_size' in written) == (fails == 'sweep')


def test_scoring_needs_a_checkpoint_and_a_split_that_exists(config, data_dir, tmp_path):
    with pytest.raises(UserError, match='train there first'):
        loop.evaluate(config, str(tmp_path))
    none = train_cases.make(
        data_dir, SMALL | {'dataset.validation_fraction': 0.0, 'eval.split': 'validation'}
    )
    with pytest.raises(UserError, match="'validation', but digits has train, test"):
        loop.evaluate(none, str(tmp_path))


def test_a_run_without_a_validation_split(data_dir, workdir, tmp_path):
    """Continues a finished run, so that nothing is trained and only the end is done again."""
    shutil.copytree(workdir, tmp_path / 'run')
    none = train_cases.make(data_dir, SMALL | {'dataset.validation_fraction': 0.0})
    file = tmp_path / 'run' / 'config.json'
    record = json.loads(file.read_text())
    record['config']['dataset']['validation_fraction'] = 0.0  # as if it had been trained so
    file.write_text(json.dumps(record))
    (tmp_path / 'run' / 'result.json').unlink()
    loop.train(none, str(tmp_path / 'run'), profile_steps=(1, 2))  # these are over: a warning
    assert train_cases.result(tmp_path / 'run')['steps'] == 12


def test_a_loss_that_is_not_finite_ends_in_one_line(data_dir, tmp_path, jax_environment):
    flags = {
        'dataset.data_dir': data_dir,
        'model.moe.placement': 'head',
        'train.batch_size': 64,
        'model.args.widths': '8,',
        'model.args.depth': 1,
        'train.learning_rate': 1e30,
        'train.warmup_epochs': 0,
        'train.steps': 20,
        'log.every_steps': 4,
        'checkpoint.every_steps': 1,
        'eval.every_steps': 20,
    }
    done = subprocess.run(
        [
            sys.executable,
            'main.py',
            '--config=configs/digits_k2.py',
            f'--workdir={tmp_path}',
            *[f'--config.{k}={v}' for k, v in flags.items()],
        ],
        cwd=train_cases.ROOT,
        env=jax_environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2, done.stderr
    assert 'Traceback' not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith('error: ') and sum('error:' in x for x in done.stderr.splitlines()) == 1
    saved = train_cases.steps(tmp_path)[-1]
    assert f'is not finite at step {saved + 1}; the last finite checkpoint is step {saved}' in last
    for hint in ('train.learning_rate', 'train.clip_norm', '--workdir'):
        assert hint in last
    assert all(
        np.isfinite(x).all() for x in jax.tree.leaves(checkpoints.load_raw(str(tmp_path))['params'])
    )
    assert not (tmp_path / 'result.json').exists()
