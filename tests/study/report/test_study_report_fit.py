"""Underfit and other capacity factors stand in a report if the study asked for them."""

import pytest
import study_report_cases as cases

from moe_vision.study.analysis.summaries import summarise
from moe_vision.study.report import fit


@pytest.fixture
def analysis():
    """Two arms of two seeds; one was scored on training images, both differ in capacity factors."""
    maker = cases.Maker(2)
    maker.arm('dense', 90, 0.0, routed=False)
    maker.arm('k1', 90, 0.2)
    for seed, (train, validation) in enumerate([(0.80, 0.81), (0.86, 0.83)]):
        row = maker.rows['dense'][seed]
        row['curve'][-1]['accuracy'] = validation
        row['result'] |= {'train_accuracy': train}
        maker.rows['k1'][seed]['result']['accuracy_at_capacity'] = {
            'inf': 0.9,
            '2.0': 0.5 + 0.1 * seed,
            '10.0': 0.7,
        }
    made = maker.analysis()
    made.arms.update({name: summarise(name, maker.rows[name], (0.95, 0.9)) for name in made.arms})
    return made


def rows_of(section):
    return [
        [cell if isinstance(cell, str) else cell for cell in row] for row in section.blocks[1].rows
    ]


def test_the_gap_of_training_to_validation_is_paired_by_seed(analysis):
    underfit, capacity = fit.sections(analysis)
    # gaps -1 and 3: mean 1, sd 4 / sqrt(2)
    assert rows_of(underfit) == [['dense', '83.00 ± 4.24', '82.00 ± 1.41', '1.00 ± 2.83']]
    assert capacity.blocks[1].head == ('arm', 'as configured', '2.0', '10.0', 'inf', 'unbounded')
    (row,) = rows_of(capacity)
    assert row[0] == 'k1' and row[2:5] == ['55.00 ± 7.07', '70.00 ± 0.00', '90.00 ± 0.00']
    (text,) = fit.tables(analysis).values()
    lines = text.splitlines()
    assert lines[:2] == ['arm,seed,quantity,value', 'dense,0,train_pp,80']
    assert 'dense,1,train_less_validation_pp,3' in lines
    assert 'k1,1,test_pp_at_capacity_2.0,60' in lines and len(lines) == 1 + 4 + 6


def test_nothing_is_shown_that_was_not_asked_for():
    analysis = cases.full().analysis()
    assert not list(fit.sections(analysis)) and not fit.tables(analysis)


@pytest.mark.parametrize('value', [None, 'x', [], {'a': 'b'}, {'1.25': 7.0}, {'1.25': 1e308}])
def test_what_is_no_share_is_left_out(value):
    maker = cases.Maker(2)
    maker.arm('k1', 90, 0.2)
    for row in maker.rows['k1'].values():
        row['result'] |= {'accuracy_at_capacity': value, 'train_accuracy': value}
    analysis = maker.analysis()
    analysis.arms['k1'] = summarise('k1', maker.rows['k1'], (0.95, 0.9))
    assert not fit.tables(analysis)
    for section in fit.sections(analysis):
        assert all('nan' not in str(cell) for row in rows_of(section) for cell in row)
