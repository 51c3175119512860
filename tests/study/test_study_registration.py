"""A registration fixes a study before its first run, and later changes are refused."""

import hashlib
import json
import sys

import pytest
from study_fakes import write_study

from moe_vision.common.errors import UserError
from moe_vision.study import registration
from moe_vision.study.load import load


@pytest.fixture
def workdir(tmp_path):
    registration.register(load(write_study(tmp_path)), str(tmp_path / 'W'))
    return tmp_path / 'W'


def registered(workdir) -> dict:
    return json.loads((workdir / 'preregistration.json').read_text())


def commit(workdir, record) -> None:
    """As if this record had been registered by an earlier version of the code."""
    (workdir / 'preregistration.json').write_text(
        json.dumps({'hash': registration.digest(record), 'record': record})
    )


def without(record, path):
    out = holder = json.loads(json.dumps(record))
    *keys, last = path.split('.')
    for key in keys:
        holder = holder[key]
    holder.pop(last, None)
    return out


def again(tmp_path, *changes, overrides=()):
    return registration.register(
        load(write_study(tmp_path, *changes), overrides), str(tmp_path / 'W')
    )


def test_the_hash_is_of_the_canonical_json(workdir):
    found = registered(workdir)
    text = json.dumps(found['record'], sort_keys=True, separators=(',', ':'))
    assert found['hash'] == hashlib.sha256(text.encode()).hexdigest()
    assert (
        registration.digest({'b': [1, 2.5], 'a': 'x'})
        == hashlib.sha256(b'{"a":"x","b":[1,2.5]}').hexdigest()
    )
    assert [p.name for p in workdir.iterdir()] == ['preregistration.json']


def test_the_record_holds_what_changes_results_and_nothing_else(workdir):
    record = registered(workdir)['record']
    assert record['question'] == 'Is k = 1 enough?' and record['seeds'] == [0, 1, 2]
    assert record['comparisons']['k2'] == {
        'arm': 'k2',
        'baseline': 'dense',
        'expected': 'positive',
        'primary': True,
    }
    assert list(record['arms']) == ['dense', 'k1', 'k2', 'again']  # the study's order
    assert record['arms']['again']['seed_offset'] == 100
    config = record['arms']['k1']['config']
    assert config['model']['moe']['k'] == 1 and config['train']['batch_size'] == 64
    assert 'seed' not in config and 'checkpoint' not in config and 'log' not in config
    assert not {'data_dir', 'workers', 'cache', 'resident'} & set(config['dataset'])
    assert config['dataset']['name'] == 'digits'


def test_a_folder_of_studies_means_those_below_it(tmp_path, workdir):
    for name, has in (('B', 'rows'), ('A', 'rows.jsonl'), ('without', 'timings')):
        (tmp_path / 'set' / name / has).mkdir(parents=True)
        (tmp_path / 'set' / name / 'preregistration.json').write_text('')
    assert registration.folders(str(workdir)) == [str(workdir)]
    assert registration.folders(str(tmp_path)) == [str(tmp_path / 'set' / n) for n in 'AB']
    assert registration.folders(str(tmp_path / 'none')) == [str(tmp_path / 'none')]


def test_the_same_study_registers_again_wherever_its_data_lie(tmp_path, workdir):
    record, digest = again(
        tmp_path,
        overrides=['--config.dataset.data_dir=/other', '--config.checkpoint.every_steps=9'],
    )
    assert {'hash': digest, 'record': record} == registered(workdir)


@pytest.mark.parametrize(
    'old, new, leaf',
    [
        ("'train.steps': 4", "'train.steps': 5", 'arms.dense.config.train.steps 4 -> 5'),
        ("'model.moe.k': 1}", "'model.moe.k': 2}", 'arms.k1.config.model.moe.k 1 -> 2'),
        (
            "Comparison('k1', 'dense')",
            "Comparison('k1', 'dense', 'negative')",
            "comparisons.k1.expected 'none' -> 'negative'",
        ),
        ('(0, 1, 2)', '(0, 1, 2, 3)', 'seeds [0, 1, 2] -> [0, 1, 2, 3]'),
        ('(0, 1, 2)', '(0, 1, 3)', 'seeds.2 2 -> 3'),
        ('margin=0.3', 'margin=0.5', 'margin 0.3 -> 0.5'),
        ('margin=0.3', 'margin=0.3, alpha=0.1', 'alpha 0.05 -> 0.1'),
        (
            'margin=0.3',
            "margin=0.3, trends={'t': Trend(('k1', 'k2'))}",
            'trends.t nothing -> {comparisons, x, expected, primary}',
        ),
        (
            "'k1': Comparison('k1', 'dense'),",
            '',
            'comparisons.k1 {arm, baseline, expected, primary} -> nothing',
        ),
    ],
)
def test_a_changed_study_is_refused_with_its_first_difference(tmp_path, workdir, old, new, leaf):
    before = (workdir / 'preregistration.json').read_bytes()
    changes = [(old, new)]
    if 'Comparison' in old and not new:
        changes.append(("{'conv': ('k1', 'k2')}", "{'conv': ('k2',)}"))
    with pytest.raises(UserError) as e:
        again(tmp_path, *changes)
    assert leaf in str(e.value) and 'Restore the study file, or use a new --workdir' in str(e.value)
    assert (workdir / 'preregistration.json').read_bytes() == before


@pytest.mark.parametrize(
    'path',
    [
        'arms.k1.config.train.mixup',
        'arms.k2.config.model.moe.router_args.gate_scale',
        'arms.k2.config.train.optimizer_args.b1',
        'arms.dense.config.model.args.norm',
        'arms.k1.config.mesh',
        'stopping',
        'comparisons.k1.primary',
        'arms.dense.seed_offset',
        'trends',
        'family_differences',
    ],
)
def test_a_key_that_the_code_gained_changes_nothing_at_its_default(tmp_path, workdir, path):
    record = registered(workdir)['record']
    holder, *rest = record, *path.split('.')
    for key in rest[:-1]:
        holder = holder[key]
    before = holder.pop(rest[-1])
    commit(workdir, record)
    holder[rest[-1]] = before
    committed, digest = again(tmp_path)
    assert registration.digest(without(committed, path)) == digest
    if not path.split('.')[2:3] == ['config']:  # then it stands at its default for who reads it
        assert committed == record


def test_trends_and_family_differences_are_read_as_they_were_registered(tmp_path):
    changes = (
        'margin=0.3',
        "margin=0.3, trends={'t': Trend(('k1', 'k2'), 'rho_active', 'positive')}, "
        "family_differences={'f': FamilyDifference((('k2', 'k1'),), 'equivalent', True)}",
    )
    record, digest = again(tmp_path, changes)
    assert record['trends']['t'] == {
        'comparisons': ['k1', 'k2'],
        'x': 'rho_active',
        'expected': 'positive',
        'primary': False,
    }
    assert record['family_differences']['f']['pairs'] == [['k2', 'k1']]
    assert again(tmp_path, changes) == (record, digest)  # compared with what is registered
    del record['trends']['t']['primary']  # a default of code to come
    commit(tmp_path / 'W', record)
    assert again(tmp_path, changes)[0]['trends']['t']['primary'] is False


def test_a_key_that_the_code_gained_is_refused_at_another_value(tmp_path, workdir):
    record = registered(workdir)['record']
    del record['arms']['k1']['config']['train']['batch_size']
    commit(workdir, record)
    with pytest.raises(UserError, match='arms.k1.config.train.batch_size nothing -> 64'):
        again(tmp_path)


def test_a_key_that_the_code_lost_is_refused(tmp_path, workdir):
    record = registered(workdir)['record']
    record['arms']['k1']['config']['train']['warp'] = 9
    commit(workdir, record)
    with pytest.raises(UserError, match='arms.k1.config.train.warp 9 -> nothing'):
        again(tmp_path)


def test_a_record_that_was_changed_is_named(tmp_path, workdir):
    found = registered(workdir)
    old = found['hash'][:16]
    found['record']['margin'] = 5.0
    (workdir / 'preregistration.json').write_text(json.dumps(found))
    for read in (lambda: registration.read(str(workdir)), lambda: again(tmp_path)):
        with pytest.raises(UserError) as e:
            read()
        assert old in str(e.value) and 'was changed' in str(e.value)
        assert registration.digest(found['record'])[:16] in str(e.value)


@pytest.mark.parametrize('text', ['', '{"hash": "1', '[]', '{"hash": "1", "record": {}}'])
def test_a_damaged_file_is_named(workdir, text):
    (workdir / 'preregistration.json').write_text(text)
    with pytest.raises(UserError, match='preregistration.json.*version control'):
        registration.read(str(workdir))


def test_no_file_is_named(tmp_path):
    with pytest.raises(UserError, match="preregistration.json' does not exist.*--workdir"):
        registration.read(str(tmp_path))


def test_a_config_is_compared_leaf_by_leaf(workdir):
    record = registered(workdir)['record']
    k1, k2 = (record['arms'][a]['config'] for a in ('k1', 'k2'))
    assert registration.same_config(k1, json.loads(json.dumps(k1))) == ''
    assert registration.same_config(k1, k2) == 'model.moe.k 1 -> 2'
    older = json.loads(json.dumps(k1))
    del older['train']['cutmix']
    assert registration.same_config(k1, older) == ''
    assert 'jax' not in registration.__dict__ and registration.__name__ in sys.modules
