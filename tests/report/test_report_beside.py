"""Two runs side by side: the gap, its error over images, and what cannot be compared."""

import base64
import math
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from report_page import Parsed

from moe_vision import report
from moe_vision.common.errors import UserError
from moe_vision.report import beside, read

ROOT = pathlib.Path(report.__file__).parents[2]


def bits(right):
    return base64.b64encode(np.packbits(np.array(right, bool)).tobytes()).decode()


def pair(make, tmp_path, change=lambda a, b: None):
    """The two runs of `make`, after a change to both, as they are read."""
    a, b = make(rows=6, samples=2), make(rows=6, samples=2, layers=(), seed=1)
    b.evaluation['images'] = a.evaluation['images'] = 10
    a.evaluation['confusion'] = b.evaluation['confusion'] = np.eye(10).tolist()
    a.evaluation['correct'] = bits([1, 1, 1, 1, 1, 1, 1, 1, 0, 0])
    b.evaluation['correct'] = bits([1, 1, 1, 1, 1, 0, 0, 0, 1, 0])
    change(a, b)
    return [read.load(x.save(tmp_path / name)) for x, name in ((a, 'one'), (b, 'two'))]


def test_the_error_of_a_gap_counts_images_on_which_the_runs_differ(make, tmp_path):
    gap, error, only_a, only_b = beside.over_images(*pair(make, tmp_path))
    assert (only_a, only_b) == (3, 1) and gap == pytest.approx(20)
    # sqrt(3 + 1 - (3 - 1)^2 / 10) / 10
    assert error == pytest.approx(100 * math.sqrt(3.6) / 10)


def test_both_runs_with_their_gap_cost_classes_and_config(make, tmp_path):
    def change(a, b):
        a.result |= {'test_accuracy': 0.8, 'flops': 3e6}
        b.result |= {'test_accuracy': 0.6, 'flops': 2e6}
        b.config['config']['train']['epochs'] = 10

    pair(make, tmp_path, change)
    path = report.write(tmp_path / 'one', tmp_path / 'two')
    assert path == tmp_path / 'one' / 'report-beside-two.html'
    text = path.read_text()
    words = Parsed(text).text()
    for expected in (
        'A: digits · one — B: digits · two',
        '+20.00',
        'only A is right on 3 images, only B on 1',
        '1.50×',
        'Validation accuracy',
        'Effective experts in validation',
        'train.epochs',
        'No collapse',
        'Dense run',
        'class 3',
    ):
        assert expected in words, expected
    assert 'Validation accuracy: A from' in text and '; B from ' in text


UNEQUAL = {
    'name': lambda a, b: b.config['dataset'].update(name='other'),
    'digest': lambda a, b: (
        a.config['dataset'].update(digest='1' * 64),
        b.config['dataset'].update(digest='2' * 64),
    ),
    'classes': lambda a, b: b.config['dataset'].update(class_names=['x'] * 10),
    'split': lambda a, b: b.evaluation.update(split='validation'),
    'images': lambda a, b: b.evaluation.update(images=9),
}


@pytest.mark.parametrize('why', UNEQUAL)
def test_runs_on_other_images_have_no_gap(why, make, tmp_path):
    pair(make, tmp_path, UNEQUAL[why])
    words = Parsed(report.write(tmp_path / 'one', tmp_path / 'two').read_text()).text()
    assert 'There is no gap, because' in words and 'Gap, A − B' not in words
    assert 'Accuracy by class is not compared' in words


@pytest.mark.parametrize('junk', [None, [], 'text', {}, -1, 10**400, '<script>', 'AAA'])
@pytest.mark.parametrize('which', [0, 1])
def test_junk_in_one_run_leaves_the_other(which, junk, make, tmp_path):
    def change(*makers):
        maker = makers[which]
        maker.evaluation = {key: junk for key in maker.evaluation}
        maker.result = {key: junk for key in maker.result}
        maker.config['config'] = junk
        maker.config['dataset'] = {key: junk for key in maker.config['dataset']}

    pair(make, tmp_path, change)
    text = report.write(tmp_path / 'one', tmp_path / 'two').read_text()
    assert '<script' not in text and 'Two runs side by side' in text


@pytest.mark.parametrize('name', ['', '..', 'missing', 'no run'])
def test_what_is_no_second_run_is_an_error_that_names_it(name, make, tmp_path):
    pair(make, tmp_path)
    (tmp_path / 'no run').mkdir()
    with pytest.raises(UserError) as e:
        report.write(tmp_path / 'one', tmp_path / 'one' / name)
    assert str(tmp_path / 'one' / name) in str(e.value) and '\n' not in str(e.value)
    assert not list((tmp_path / 'one').glob('*.html'))


def test_the_command_takes_both_folders(make, tmp_path):
    pair(make, tmp_path)
    done = subprocess.run(
        [sys.executable, '-m', 'moe_vision.report', '--workdir=one', '--beside=two/'],
        cwd=tmp_path,
        env={'PYTHONPATH': str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0 and done.stdout == 'one/report-beside-two.html\n', done.stderr
