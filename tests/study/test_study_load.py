"""Study files are checked completely before anything slow is imported."""

import dataclasses
import os
import shutil
import subprocess
import sys

import pytest
from study_fakes import ROOT, write_study

from input_pipeline import DataError
from moe_vision.common.errors import UserError
from moe_vision.config import check as config_lib
from moe_vision.config import source
from moe_vision.study import packed
from moe_vision.study.load import load, matching, operational


def refused(folder, *changes, overrides=()) -> str:
    with pytest.raises(UserError) as e:
        load(write_study(folder, *changes), overrides)
    assert '\n' not in str(e.value)
    return str(e.value)


def test_an_arm_is_its_config_as_the_command_line_would_set_it(tmp_path):
    loaded = load(write_study(tmp_path))
    common, opened, _ = source.take_overrides(
        [
            '--config.model.args.widths=8,16',
            '--config.model.args.depth=1',
            '--config.model.moe.num_experts=4',
            '--config.train.batch_size=64',
            '--config.train.steps=4',
            '--config.train.warmup_steps=1',
            '--config.model.moe.k=1',
            '--config.seed=2',
        ]
    )
    by_hand = config_lib.check(source.load(f'{ROOT}/configs/digits_k2.py', common, opened))
    assert loaded.config('k1', 2) == by_hand
    assert loaded.config('again', 2) == dataclasses.replace(loaded.config('k2', 2), seed=102)
    assert list(loaded.configs) == ['dense', 'k1', 'k2', 'again']


def test_values_keep_their_types(tmp_path):
    """Also a string that looks like a number, and infinity."""
    study = load(
        write_study(
            tmp_path,
            (
                "'model.moe.k': 1}",
                "'model.moe.k': 1, 'model.moe.capacity_factor': float('inf'), "
                "'model.moe.router_args': {'noise': 'none', 'gate_scale': 2}, "
                "'model.moe.losses': {}, 'model.moe.placement': '0'}",
            ),
        )
    )
    moe = study.configs['k1'].model.moe
    assert (moe.capacity_factor, moe.router_args.gate_scale, moe.placement) == (
        float('inf'),
        2.0,
        '0',
    )


def test_a_study_file_takes_an_argument(tmp_path):
    file = write_study(
        tmp_path, ('def get_study():', 'def get_study(name):'), ("name='tiny'", 'name=name')
    )
    assert load(f'{file}:other').study.name == 'other'


def test_operational_keys_are_set_for_every_arm(tmp_path):
    loaded = load(
        write_study(tmp_path),
        [
            '--config.dataset.data_dir=/d',
            '--config.checkpoint.every_steps=7',
            '--config.log.every_steps=3',
        ],
    )
    for one in loaded.configs.values():
        assert (one.dataset.data_dir, one.checkpoint.every_steps, one.log.every_steps) == (
            '/d',
            7,
            3,
        )
    assert operational('checkpoint.keep') and operational('dataset.workers')
    assert not operational('dataset.name') and not operational('train.steps')


@pytest.mark.parametrize(
    'old, new, parts',
    [
        ("'model.moe.k': 1}", "'model.moe.kk': 1}", ["arm 'k1'", 'model.moe.kk', 'model.moe.k']),
        ("'model.moe.k': 1}", "'model.moe.k': 9}", ["arm 'k1'", 'model.moe.k is 9', '1 to 4']),
        ("'model.moe.k': 1}", "'model.moe.router_args.noize': 1}", ["arm 'k1'", "'noise'"]),
        (
            "Arm('configs/digits_k2.py', SMALL)",
            "Arm('configs/digits_k3.py', SMALL)",
            ["arm 'k2'", 'digits_k3.py', 'digits_k2.py'],
        ),
        ("'train.batch_size': 64", "'train.batch_size': 6400", ["arm 'dense'", '6400', 'images']),
        (
            "Comparison('k1', 'dense')",
            "Comparison('kk1', 'dense')",
            ["comparison 'k1'", "unknown arm 'kk1'", "'k1'"],
        ),
        ("Comparison('k1', 'dense')", "Comparison('k1', 'k1')", ["comparison 'k1'", 'itself']),
        ("'positive'", "'positiv'", ["comparison 'k2'", "'positive'", 'equivalent']),
        (', primary=True', '', ['hypotheses', 'primary=True']),
        ("('k2',)}, latency", "('k1',)}, latency", ["pattern 'gain'", "primary comparison 'k1'"]),
        ("'dense', 'k1'),", "'dens', 'k1'),", ['latency_arms', "'dens'", "'dense'"]),
        ("('k2',)}, latency", '()}, latency', ["pattern 'gain' has no members", 'k2']),
        (
            "'positive', primary",
            "'none', primary",
            ["pattern 'gain'", "'k2' has expected='none'", 'positive, negative, equivalent'],
        ),
        ("'positive', primary", "'inconclusive', primary", ["pattern 'gain'", "'inconclusive'"]),
        ("{'conv': ('k1', 'k2')}", "{'conv': ('k3',)}", ["figure 'by k'", "comparison 'k3'"]),
        ("{'conv': ('k1', 'k2')}", "{'conv': ('dense',)}", ["figure 'by k'", "comparison 'dense'"]),
        ("{'conv': ('k1',)}", "{'conv': ('k7',)}", ["figure 'over time'", "arm 'k7'"]),
        ("'traces'", "'trace'", ['figure', "'trace'", "'traces'"]),
        ('(0, 1, 2)', '(0, 1, 1)', ['seeds', 'different']),
        ('(0, 1, 2)', '(0,)', ['seeds', 'two or more']),
        ('(0, 1, 2)', "(0, '1')", ['seeds', 'an int']),
        ('(0, 1, 2)', '(0, 2**32)', ['seeds are (0, 4294967296)', 'from 0 to 4,294,967,295']),
        ('(0, 1, 2)', '(-1, 0)', ['seeds are (-1, 0)', 'from 0 to 4,294,967,295']),
        ('seed_offset=100', 'seed_offset=2', ["arm 'again'", 'seed_offset is 2', '3']),
        ('seed_offset=100', 'seed_offset=2**32 - 2', ["arm 'again'", 'past 4,294,967,295']),
        ('margin=0.3', 'margin=0', ['margin 0']),
        ('margin=0.3', 'margin=0.3, latency_batches=(1, 0)', ['latency_batches', '1 to 100,000']),
        ('margin=0.3', 'margin=0.3, latency_batches=(10**12,)', ['latency_batches', '100,000']),
        ('margin=0.3', "margin='wide'", ['margin', 'a number']),
        ("'k1': Arm(", "'k 1': Arm(", ["arm name 'k 1'", 'a-z']),
        (
            "'k2': Comparison('k2', 'dense', 'positive', primary=True)",
            "'k2': 3",
            ["'k2' is 3", 'Comparison'],
        ),
        (
            "**SMALL, 'model.twin'",
            "**SMALL, 'dataset.augment': 'none', 'model.twin'",
            ["comparison 'k1'", 'dataset.augment', "'pad_crop'", "'none'", 'same data set'],
        ),
        ('def get_study()', 'def get_studdy()', ['no get_study()', 'get_studdy']),
        ('return Study(', 'return dict(', ['returned a dict', 'Study']),
        ('def get_study():', 'def get_study():\n    1 / 0', ['line 8', 'ZeroDivisionError']),
        ('margin=0.3', 'margins=0.3', ["Study has no field 'margins'", "'margin'?", 'alpha']),
        ('seed_offset=', 'seed_ofset=', ["Arm has no field 'seed_ofset'", "'seed_offset'?"]),
        ('seeds=(0, 1, 2),', '', ['Study lacks seeds', 'give a value']),
        ("Comparison('k1', 'dense')", "Comparison('k1')", ['Comparison lacks baseline']),
        *(
            ('margin=0.3', f'margin=0.3, trends={{{trend}}}', parts)
            for trend, parts in (
                ("'t': Trend(('k1', 'k3'))", ["trend 't'", "comparison 'k3'", 'k1, k2']),
                ("'t': Trend(('k1',))", ["trend 't' combines k1;", 'two comparisons or more']),
                ("'t': Trend(('k1', 'k1'))", ["trend 't' combines k1, k1", 'each once']),
                ("'t': Trend(('k1', 'k2'), 'rho')", ["trend 't'", "x is 'rho'", 'rho_active']),
                ("'t': Trend(('k1', 'k2'), expected='up')", ["expected is 'up'", 'positive']),
                ("'k1': Trend(('k1', 'k2'))", ["'k1' names two", 'a name of its own']),
                ("'a b': Trend(('k1', 'k2'))", ["trend name 'a b'", 'a-z']),
                ("'t': 3", ["trends: 't' is 3", 'must be a Trend']),
            )
        ),
        *(
            ('margin=0.3', f"margin=0.3, family_differences={{'f': {difference}}}", parts)
            for difference, parts in (
                ("FamilyDifference((('k1', 'k3'),))", ["'f'", "unknown comparison 'k3'"]),
                ("FamilyDifference(('k1', 'k2'))", ["family_difference 'f'", 'pairs']),
                ("FamilyDifference((('k1', 'k1'),))", ['combines k1, k1', 'each once']),
                ('FamilyDifference(())', ["family_difference 'f' combines nothing"]),
                ("FamilyDifference((('k1', 'k2', 'k1'),))", ["family_difference 'f'", 'pairs']),
            )
        ),
    ],
)
def test_a_mistake_is_one_line(tmp_path, old, new, parts):
    error = refused(tmp_path, (old, new))
    for part in parts:
        assert part in error, error


def test_a_pattern_may_name_primary_trends_and_differences(tmp_path):
    members = (
        "margin=0.3, trends={'t': Trend(('k1', 'k2'), expected='positive', primary=True)}, "
        "family_differences={'f': FamilyDifference([['k1', 'k2']], 'equivalent', True)}"
    )
    study = load(
        write_study(tmp_path, ('margin=0.3', members), ("('k2',)}, lat", "('k2', 't', 'f')}, lat"))
    ).study
    assert study.patterns['gain'] == ('k2', 't', 'f')
    assert study.family_differences['f'].pairs == (('k1', 'k2'),)
    error = refused(
        tmp_path,
        ('margin=0.3', members.replace(', primary=True', '')),
        ("('k2',)}, l", "('t',)}, l"),
    )
    assert "pattern 'gain'" in error and "primary comparison 't'" in error


def test_a_study_on_validation_needs_validation_images(tmp_path):
    metric = 'margin=0.3', "margin=0.3, metric='validation_accuracy'"
    assert load(write_study(tmp_path, metric)).study.metric == 'validation_accuracy'
    k1 = "'model.moe.k': 1}", "'model.moe.k': 1, 'dataset.validation_fraction': 0.0}"
    error = refused(tmp_path, metric, k1)
    assert "arm 'k1'" in error and 'has no validation images' in error
    assert 'dataset.validation_fraction above 0' in error


def test_a_file_that_is_not_there():
    with pytest.raises(UserError, match=r"study file 'configs/studies/no.py' does not exist"):
        load('configs/studies/no.py')


@pytest.mark.parametrize('key', ['train.epochs', 'seed', 'dataset.name', 'dataset.cache'])
def test_what_was_registered_cannot_be_set_on_the_command_line(tmp_path, key):
    error = refused(tmp_path, overrides=[f'--config.{key}=1'])
    assert f"'--config.{key}'" in error and 'dataset.data_dir' in error and 'checkpoint.*' in error


def test_an_error_of_the_data_names_its_arm(tmp_path):
    error = refused(tmp_path, ("'model.moe.k': 1}", "'dataset.augment': 'pad'}"))
    assert "arm 'k1'" in error and 'pad_crop' in error
    assert not issubclass(UserError, DataError)


def test_patterns_choose_arms():
    arms = ['dense', 'k1', 'k2', 'soft_8']
    assert matching(arms, '') == arms
    assert matching(arms, 'soft*,k?') == ['k1', 'k2', 'soft_8']
    with pytest.raises(UserError, match="unknown arm in --only 'k3'.*'k2'|'k1'"):
        matching(arms, 'dense,k3')


def spent() -> float:
    """Processor seconds of processes started here, so that others do not count."""
    times = os.times()
    return times.children_user + times.children_system


def test_twenty_five_arms_take_less_than_three_seconds_and_no_jax(tmp_path):
    many = (
        "arms={f'a{i}': Arm('configs/digits_k2.py', {**SMALL, 'model.moe.hidden': 8 * i}) "
        'for i in range(1, 22)} | {'
    )
    file = write_study(tmp_path, ('arms={', many))
    start = spent()
    done = subprocess.run(
        [
            sys.executable,
            '-c',
            'import sys; from moe_vision.study import load, registration\n'
            f'loaded = load.load({file!r}); registration.register(loaded, {str(tmp_path)!r})\n'
            "assert len(loaded.configs) == 25 and not {'jax', 'flax', 'grain'} & set(sys.modules)",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert spent() - start < 3


def test_the_largest_seeds_have_rows_too(tmp_path):
    largest = 2**32 - 1
    changes = ('(0, 1, 2)', f'(0, {largest - 100})')
    loaded = load(write_study(tmp_path, changes))
    assert loaded.config('again', largest - 100).seed == largest
    line = packed._line(1, b'{"arm": "k1", "seed": %d, "half' % largest)
    assert line.cell == ('k1', largest)


def test_paths_of_a_study_expand_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    shutil.copy(ROOT / 'configs' / 'digits_k2.py', tmp_path / 'mine.py')
    write_study(tmp_path, ("'configs/digits_k2.py'", "'~/mine.py'"))
    monkeypatch.chdir(ROOT)
    assert load('~/tiny.py').study.name == 'tiny'
    monkeypatch.chdir(tmp_path)
    assert load('~/tiny.py').study.name == 'tiny'
