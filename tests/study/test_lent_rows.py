"""A study reads rows of its neighbours where their arms are the same."""

import json

import pytest
from study_fakes import fake_train_arm, finished_study, write_study

from moe_vision.common.errors import UserError
from moe_vision.study import lent, registration, rows
from moe_vision.study.load import load
from moe_vision.study.run.runner import run


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    """A folder that holds a finished study in `first`, with the arms dense, k1, k2 and again."""
    folder = tmp_path_factory.mktemp('studies')
    (folder / 'first').mkdir()
    finished_study(folder / 'first')
    return folder


def second(place, folder, *changes):
    """A study of four seeds beside it: k1 with other values, k2 and dense the same."""
    own = place / folder
    own.mkdir()
    file = write_study(
        own,
        ("name='tiny'", "name='second', reads=('first',)"),
        ('seeds=(0, 1, 2)', 'seeds=(0, 1, 2, 3)'),
        ("{**SMALL, 'model.moe.k': 1}", "{**SMALL, 'model.moe.k': 1, 'train.learning_rate': 0.5}"),
        *changes,
    )
    return load(file, [f'--config.dataset.data_dir={place}']), str(own)


def test_equal_arms_lend_their_rows_and_the_report_says_whose_they_are(place):
    loaded, workdir = second(place, 'second')
    trained = []

    def train(configs, folders, mode, probe, done, begin=lambda number: True, stop=None):
        def note(number, error):
            trained.append((configs[number].model.moe.k, configs[number].seed))
            done(number, error)

        fake_train_arm(configs, folders, mode, probe, note, begin, stop)

    run(loaded, workdir, train_arm=train)
    # Only k1 differs; of the others only the new seed is missing (`again` has seeds + 100).
    assert sorted(trained) == [(1, 0), (1, 1), (1, 2), (1, 3), (2, 3), (2, 3), (2, 103)]
    record, digest = registration.read(workdir)
    found, notes = lent.read(workdir, record, digest)
    assert all(list(seeds) == [0, 1, 2, 3] for seeds in found.values())
    assert {s: row.get('lent_by') for s, row in found['k2'].items()} == {
        0: 'k2',
        1: 'k2',
        2: 'k2',
        3: None,
    }
    assert found['k2'][0]['study'] == 'tiny' and found['k2'][3]['study'] == 'second'
    assert not any('lent_by' in row for row in found['k1'].values())
    assert "k2: rows of study 'tiny' (arm k2, the same config) for seeds 0, 1, 2." in notes
    assert not any('no row' in note for note in notes)


def test_lent_rows_make_a_comparison_exploratory(place):
    from moe_vision.study.analysis import analyse

    loaded, workdir = second(place, 'third')
    record, digest = registration.register(loaded, workdir)
    analysis = analyse.analyse(record, digest, *lent.read(workdir, record, digest))
    assert any('another pre-registration' in flag for flag in analysis.gaps['k2'].flags)
    assert not analysis.gaps['k2'].confirms


def test_an_arm_of_another_name_or_seed_offset(place):
    loaded, workdir = second(
        place,
        'fourth',
        ("'k2': Arm(", "'two': Arm("),
        ("('k2', 'dense'", "('two', 'dense'"),
        ("'k2': Comparison", "'two': Comparison"),
        ("('k1', 'k2')", "('k1', 'two')"),
        ("{'gain': ('k2',)}", "{'gain': ('two',)}"),
        ('seed_offset=100', 'seed_offset=200'),
    )
    record, digest = registration.register(loaded, workdir)
    found, _ = lent.read(workdir, record, digest)
    assert found['two'][0]['lent_by'] == 'k2'
    assert found['again'] == {}


def test_a_neighbour_that_is_not_there_yet_lends_nothing(place, tmp_path):
    loaded, workdir = second(tmp_path, 'alone')
    record, digest = registration.register(loaded, workdir)
    found, notes = lent.read(workdir, record, digest)
    assert not any(found.values())
    told = f"reads: 'first' holds no study yet ({tmp_path}/first), so it lends nothing."
    assert told in notes


def test_a_neighbour_may_lie_further_away(place):
    (place / 'other').mkdir()
    loaded, workdir = second(place, 'other/fifth', ("('first',)", "('../first',)"))
    record, digest = registration.register(loaded, workdir)
    found, _ = lent.read(workdir, record, digest)
    assert found['k2'][0]['lent_by'] == 'k2' and list(found['dense']) == [0, 1, 2]


@pytest.mark.parametrize('name', ['/etc', 'first/', 'a/b/c', 'first/../../x', '..', '../', ''])
def test_a_neighbour_is_named_by_its_folder(tmp_path, name):
    (tmp_path / 'w').mkdir()
    file = write_study(tmp_path / 'w', ("name='tiny'", f"name='tiny', reads=('{name}',)"))
    with pytest.raises(UserError, match='the folder of a study as seen from'):
        load(file)


@pytest.mark.parametrize('theirs, lends', [('same', True), ('other', False), (None, True)])
def test_rows_of_other_images_are_not_lent(tmp_path, theirs, lends):
    """The digest of the images says which; rows of older versions have none."""
    (tmp_path / 'first').mkdir()
    finished_study(tmp_path / 'first')
    loaded, workdir = second(tmp_path, 'second')
    record, digest = registration.register(loaded, workdir)
    for file in (tmp_path / 'first/rows').glob('*/*.json'):
        row = json.loads(file.read_text())
        del row['data']
        file.write_text(json.dumps(row | ({'data': theirs} if theirs else {})))
    own = row | {'study': 'second', 'arm': 'k1', 'seed': 3, 'run_seed': 3, 'data': 'same'}
    own['config'] = record['arms']['k1']['config']
    rows.write(workdir, own, {'seconds': 1.0})
    found, notes = lent.read(workdir, record, digest)
    assert 3 in found['k1'] and list(found['k2']) == ([0, 1, 2] if lends else [])
    assert (lent.usable(workdir, record, 'k2', 0) is not None) == lends  # else it is trained here
    said = "k2: rows of 'first' are of other images (seeds 0, 1, 2)."
    assert (said in notes) == (not lends)


def test_pairs_of_two_sets_of_images_are_flagged(tmp_path):
    from moe_vision.study.analysis import analyse

    loaded, record, digest = finished_study(tmp_path)
    for arm, data in (('k2', 'a' * 64), ('dense', 'b' * 64)):
        for file in (tmp_path / 'rows' / arm).iterdir():
            file.write_text(json.dumps(json.loads(file.read_text()) | {'data': data}))
    analysis = analyse.analyse(record, digest, *rows.read(str(tmp_path), record, digest))
    told = 'digest of the images differs: aaaaaaaaaa and bbbbbbbbbb (seeds 0, 1, 2)'
    assert told in analysis.gaps['k2'].flags
