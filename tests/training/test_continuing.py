"""A folder belongs to one run: which keys may change when it goes on, and who may train there.

Nothing is trained here: a folder looks begun once it holds a config and the name of a checkpoint.
"""

import dataclasses
import json
import logging
import os
import re
import shutil
import subprocess
import sys

import pytest

from configs import base
from input_pipeline import DatasetInfo
from moe_vision.common import claims
from moe_vision.common.errors import UserError
from moe_vision.config import check as config_lib
from moe_vision.config import compare, registry, schema
from moe_vision.run_folder.record import versions
from moe_vision.training import continuing

INFO = DatasetInfo('digits', 10, (8, 8, 1), {'train': 1280}, (), 'd' * 64)
CONFIG = config_lib.check(base.get_config())  # 30 epochs of 10 steps
DONE = 120  # steps


def begin(folder, config=CONFIG, done=DONE, **record) -> None:
    """Makes a folder as a run leaves it that has done some steps."""
    values = config if isinstance(config, dict) else config_lib.to_dict(config)
    told = {'config': values, 'dataset': {'digest': INFO.digest}} | record
    folder.mkdir(exist_ok=True)
    (folder / 'config.json').write_text(json.dumps(told))
    (folder / 'checkpoints' / 'latest' / str(done)).mkdir(parents=True)


def put(config, key: str, value):
    """The config with a key set, whatever the rules say."""
    name, _, rest = key.partition('.')
    inner = put(getattr(config, name), rest, value) if rest else value
    return dataclasses.replace(config, **{name: inner})


def other(value):
    """A value of the same type, and a larger one if it is a number."""
    if dataclasses.is_dataclass(value):
        name, old = next(iter(vars(value).items()))
        return dataclasses.replace(value, **{name: old / 2 if type(old) is float else other(old)})
    if isinstance(value, dict):
        return value | {'z': 0.5}
    kinds = {bool: lambda: not value, str: lambda: f'{value}x', tuple: lambda: (*value, 2.0)}
    return kinds.get(type(value), lambda: value * 2 + 1)()


def told(folder, config, info=INFO) -> str:
    """The line of the error, which writes nothing."""
    before = sorted((p, p.stat().st_mtime_ns) for p in folder.rglob('*'))
    with pytest.raises(UserError) as e:
        continuing.check(str(folder), config, info)
    assert '\n' not in str(e.value)
    assert sorted((p, p.stat().st_mtime_ns) for p in folder.rglob('*')) == before
    return str(e.value)


FREELY = """
    dataset.data_dir dataset.workers dataset.cache dataset.resident
    model.remat train.skip_nonfinite
    eval.split eval.batch_size eval.every_epochs eval.every_steps eval.capacity_factors
    eval.train_images
    mesh.expert mesh.shard_optimizer
    checkpoint.every_epochs checkpoint.every_steps checkpoint.keep
    log.every_steps log.warn_drop_rate log.warn_max_over_mean log.trackers
""".split()


def test_every_key_says_whether_it_may_change():
    found = compare.changes()
    assert {key for key, change in found.items() if change == 'freely'} == set(FREELY)
    assert {key for key, change in found.items() if change == 'upward'} == {
        'train.epochs',
        'train.steps',
    }
    assert set(found.values()) == {'never', 'freely', 'upward'}
    assert list(found) == [key for key, _, _ in schema.keys(schema.Config())]


@pytest.mark.parametrize('name', ['metrics', 'events'])
def test_a_linked_folder_whose_files_would_be_deleted_is_refused(name, tmp_path):
    begin(tmp_path / 'w')
    (tmp_path / 'mine').mkdir()
    shutil.rmtree(tmp_path / 'w' / name, ignore_errors=True)
    (tmp_path / 'w' / name).symlink_to(tmp_path / 'mine')
    with pytest.raises(UserError, match=f"'{name}' in workdir .* is a link"):
        continuing.check(str(tmp_path / 'w'), CONFIG, INFO)


@pytest.mark.parametrize('key', compare.changes())
def test_a_changed_key_goes_on_or_is_refused_with_what_to_do(key, tmp_path):
    begin(tmp_path)
    (value,) = (v for k, v, _ in schema.keys(CONFIG) if k == key)
    config = put(CONFIG, key, 301 if key == 'train.steps' else other(value))
    if compare.changes()[key] == 'never':
        line = told(tmp_path, config)
        assert f'({key}' in line and '->' in line, line
        for part in (f"'{tmp_path}'", 'another --workdir', f'=configs/workdir.py:{tmp_path}.'):
            assert part in line
        assert 'eval.*' in line and 'dataset.workers' in line and 'train' not in line.split('(')[0]
    else:
        (difference,) = continuing.check(str(tmp_path), config, INFO)
        assert difference.startswith(f'{key} ')


def test_the_same_config_goes_on(tmp_path):
    assert continuing.check(str(tmp_path / 'new'), CONFIG, INFO) == []
    begin(tmp_path)
    assert continuing.check(str(tmp_path), CONFIG, INFO) == []


def test_several_changes_are_all_named(tmp_path):
    begin(tmp_path)
    config = put(put(CONFIG, 'seed', 1), 'train.learning_rate', 0.01)
    line = told(tmp_path, put(config, 'log.every_steps', 7))
    assert '(seed 0 -> 1; train.learning_rate 0.001 -> 0.01)' in line


@pytest.mark.parametrize(
    'losses', [{}, {'importance': 0.005}, {'importance': 0.005, 'load': 0.005, 'z': 0.1}]
)
def test_a_loss_that_is_left_out_is_a_change_also_at_its_default(losses, tmp_path):
    begin(tmp_path)
    assert 'model.moe.losses.' in told(tmp_path, put(CONFIG, 'model.moe.losses', losses))


def test_an_argument_of_a_transform_is_compared_with_its_default(tmp_path):
    frozen = {'freeze_router': registry.FreezeRouterArgs()}
    config = put(CONFIG, 'train.transforms', frozen)
    values = config_lib.to_dict(config)
    del values['train']['transforms']['freeze_router']['fraction']  # written before it was there
    begin(tmp_path, values)
    assert continuing.check(str(tmp_path), config, INFO) == []
    later = {'freeze_router': registry.FreezeRouterArgs(fraction=0.75)}
    line = told(tmp_path, put(CONFIG, 'train.transforms', later))
    assert '(train.transforms.freeze_router.fraction nothing -> 0.75)' in line
    assert 'train.transforms.freeze_router {' in told(tmp_path, CONFIG)


def test_a_run_from_before_there_were_transforms_had_none(tmp_path):
    values = config_lib.to_dict(CONFIG)
    del values['train']['transforms']
    begin(tmp_path, values)
    assert continuing.check(str(tmp_path), CONFIG, INFO) == []
    config = put(CONFIG, 'train.transforms', {'freeze_router': registry.FreezeRouterArgs()})
    assert 'train.transforms.freeze_router nothing -> ' in told(tmp_path, config)


@pytest.mark.parametrize('left', ['config', 'result.json', 'metrics/000-until-9.jsonl', 'best'])
def test_a_folder_is_free_until_a_run_leaves_something_of_value(left, tmp_path):
    """A start that ended before its first row, such as for want of memory, binds nobody."""
    (tmp_path / 'config.json').write_text(json.dumps({'config': config_lib.to_dict(CONFIG)}))
    if left == 'best':
        (tmp_path / 'checkpoints/latest/7').mkdir(parents=True)
    elif left != 'config':
        (tmp_path / left).parent.mkdir(exist_ok=True)
        (tmp_path / left).write_text('{}')
    config = put(CONFIG, 'seed', 1)
    if left == 'config':
        assert continuing.check(str(tmp_path), config, INFO) == []
    else:
        assert 'seed 0 -> 1' in told(tmp_path, config)


@pytest.mark.parametrize(
    'key, value, parts',
    [
        ('train.epochs', 29.9, ['train.epochs is 29.9', '299 steps', 'take 300', 'has done 120.']),
        ('train.epochs', 5.0, ['train.epochs is 5', '50 steps', 'take 300', 'done 120']),
        ('train.steps', 299, ['train.steps is 299', 'take 300', 'done 120']),
        ('train.steps', 1, ['train.steps is 1,', 'another --workdir']),
        ('train.epochs', 30.0, []),
        ('train.epochs', 60.0, []),
        ('train.steps', 300, []),
        ('train.steps', 10**6, []),
    ],
)
def test_a_run_gets_longer_and_never_shorter(key, value, parts, tmp_path):
    begin(tmp_path)
    config = put(CONFIG, key, value)
    if not parts:
        continuing.check(str(tmp_path), config, INFO)
        return
    line = told(tmp_path, config)
    assert all(part in line for part in parts), line


def test_a_run_that_has_done_more_than_its_config_says_is_not_shortened_again(tmp_path):
    """As an older version of the code has left it: 'continuing at step 36 of 9'."""
    begin(tmp_path, put(CONFIG, 'train.steps', 9), done=36)
    assert 'take 36' in told(tmp_path, put(CONFIG, 'train.steps', 9))
    continuing.check(str(tmp_path), put(CONFIG, 'train.steps', 36), INFO)


@pytest.mark.parametrize('key', compare.changes())
def test_a_key_that_was_not_there_yet_had_its_default(key, tmp_path):
    begin(tmp_path)
    record = json.loads((tmp_path / 'config.json').read_text())
    *parents, last = key.split('.')
    holder = record['config']
    for parent in parents:
        holder = holder[parent]
    del holder[last]
    (tmp_path / 'config.json').write_text(json.dumps(record))
    assert continuing.check(str(tmp_path), CONFIG, INFO) == []


@pytest.mark.parametrize('left_out', ['epochs', 'steps'])
def test_a_length_that_was_not_told_was_the_default(left_out, tmp_path):
    values = config_lib.to_dict(CONFIG)
    del values['train'][left_out]
    begin(tmp_path)
    (tmp_path / 'config.json').write_text(json.dumps({'config': values}))
    assert 'to take 300 steps' in told(tmp_path, put(CONFIG, 'train.epochs', 20.0))


def test_an_argument_or_a_section_that_was_not_there_yet_had_its_default(tmp_path):
    values = config_lib.to_dict(CONFIG)
    del values['mesh'], values['model']['moe']['router_args']['renormalize']
    begin(tmp_path, config=CONFIG)
    (tmp_path / 'config.json').write_text(json.dumps({'config': values}))
    assert continuing.check(str(tmp_path), CONFIG, INFO) == []
    args = dataclasses.replace(CONFIG.model.moe.router_args, renormalize=True)
    line = told(tmp_path, put(CONFIG, 'model.moe.router_args', args))
    assert 'model.moe.router_args.renormalize nothing -> True' in line


def test_what_this_code_does_not_know_is_named_and_does_not_hinder(tmp_path, caplog):
    values = config_lib.to_dict(CONFIG)
    values['train']['old_key'] = 3
    values['model']['moe']['router_args']['old_argument'] = 'x'
    begin(tmp_path)
    (tmp_path / 'config.json').write_text(json.dumps({'config': values}))
    with continuing.opened(str(tmp_path), CONFIG, INFO):
        pass
    (line,) = [r.getMessage() for r in caplog.records if 'does not know' in r.getMessage()]
    assert 'train.old_key, ' in line + ', ' and 'router_args.old_argument' in line


@pytest.mark.parametrize(
    'text', ['', 'null', '[]', '{"config": 3}', '{"config": {"train": {"steps": "x"}}}', '{"conf']
)
def test_a_damaged_config_does_not_hinder_unless_it_says_something_else(text, tmp_path, caplog):
    begin(tmp_path)
    (tmp_path / 'config.json').write_text(text)
    with continuing.opened(str(tmp_path), CONFIG, INFO):
        assert 'cannot be read' in caplog.text or '"config"' in text
    (tmp_path / 'config.json').unlink()
    assert continuing.check(str(tmp_path), CONFIG, INFO) == []


def test_other_data_are_refused_and_unknown_data_are_not(tmp_path):
    begin(tmp_path)
    line = told(tmp_path, CONFIG, dataclasses.replace(INFO, digest='e' * 64))
    assert f'{"d" * 16} -> {"e" * 16}' in line and f'--config.init_from={tmp_path}' in line
    continuing.check(str(tmp_path), CONFIG, dataclasses.replace(INFO, digest=''))


def test_scoring_names_what_differs_from_the_run(tmp_path):
    begin(tmp_path)
    config = put(put(CONFIG, 'eval.batch_size', 7), 'model.moe.eval_capacity_factor', 4.0)
    assert continuing.differences(str(tmp_path), config) == [
        'model.moe.eval_capacity_factor 2.0 -> 4.0'
    ]
    assert continuing.differences(str(tmp_path / 'none'), config) == []


def lock(folder, **owner) -> None:
    (folder / 'lock.json').write_text(json.dumps(owner))


def test_one_process_trains_in_a_folder(tmp_path):
    with continuing.opened(str(tmp_path), CONFIG, INFO) as held:
        assert held.holds('lock')
        with pytest.raises(UserError, match=f'^process {os.getpid()} on .* trains in workdir') as e:
            with continuing.opened(str(tmp_path), CONFIG, INFO):
                pytest.fail('it was opened twice')
        assert '\n' not in str(e.value) and 'another --workdir' in str(e.value)
        with pytest.raises(UserError, match=f'^{re.escape(str(e.value))}$'):
            continuing.check(str(tmp_path), CONFIG, INFO)
        continuing.require(held, str(tmp_path))
    assert list(tmp_path.iterdir()) == []
    with continuing.opened(str(tmp_path), CONFIG, INFO):
        pass


def test_a_refused_config_leaves_the_folder_unlocked(tmp_path):
    begin(tmp_path)
    for _ in range(2):
        with pytest.raises(UserError, match='seed 0 -> 1'):
            with continuing.opened(str(tmp_path), put(CONFIG, 'seed', 1), INFO):
                pass
    assert not (tmp_path / 'lock.json').exists()


def test_a_process_that_died_here_locks_nothing(tmp_path):
    done = subprocess.Popen([sys.executable, '-c', ''])
    done.wait()
    lock(tmp_path, pid=done.pid, started='1', host=claims._machine(), token='x')
    with continuing.opened(str(tmp_path), CONFIG, INFO) as held:
        assert held.holds('lock')


def test_a_run_that_was_taken_over_writes_nothing_more(tmp_path):
    with continuing.opened(str(tmp_path), CONFIG, INFO) as held:
        lock(tmp_path, pid=7, host='elsewhere here', token='x')
        with pytest.raises(UserError, match='process 7 on elsewhere has taken over'):
            continuing.require(held, str(tmp_path))
        (tmp_path / 'lock.json').unlink()
        continuing.require(held, str(tmp_path))  # a folder that vanished is told at the end


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(UserError, match='cannot be written: .*; make room'):
        with continuing.opened(str(tmp_path / 'file' / 'w'), CONFIG, INFO):
            pass


@pytest.mark.parametrize('record', [{}, {'versions': 3}, {'git_commit': None}])
def test_a_run_that_other_code_started_goes_on_and_says_so(record, tmp_path, caplog):
    code = {'versions': versions() | {'jax': '0.1'}, 'git_commit': 'abc'}
    begin(tmp_path, **(code if not record else record))
    with continuing.opened(str(tmp_path), CONFIG, INFO):
        pass
    said = [r.getMessage() for r in caplog.records if 'other code' in r.getMessage()]
    assert len(said) == (record != {'git_commit': None})
    if not record:
        assert "versions.jax '0.1' -> " in said[0] and "git_commit 'abc' -> " in said[0]


def test_the_allowed_changes_are_said_in_the_log(tmp_path, caplog):
    begin(tmp_path)
    with caplog.at_level(logging.WARNING):
        with continuing.opened(str(tmp_path), put(CONFIG, 'log.every_steps', 5), INFO):
            pass
    (line,) = [r.getMessage() for r in caplog.records]
    assert re.search('differs from the one .*: log.every_steps 20 -> 5$', line)
