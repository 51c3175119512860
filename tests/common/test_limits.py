"""The limits at which a run is warned about, against numbers by hand."""

import math

import pytest

from moe_vision.common import limits
from moe_vision.run_folder import record
from moe_vision.training import warnings


@pytest.mark.parametrize(
    'effective, dead, experts, criteria',
    [
        (4.0, 0, 8, []),
        (3.99, 0, 8, ['effective']),
        (8.0, 1, 8, ['dead']),
        (1.0, 7, 8, ['effective', 'dead']),
        (2.5, 0, 5, []),
        (1.0, 0, 1, []),
        (math.nan, 8, 8, ['dead']),  # no choice at all
        (math.nan, math.nan, 8, []),  # not known
        (1.5, 0, 0, []),
    ],
)
def test_collapse_has_two_criteria(effective, dead, experts, criteria):
    assert list(limits.why_collapsed(effective, dead, experts)) == criteria
    load = [0.0] * experts
    layers = {'a': {'effective_experts': effective, 'dead_experts': dead, 'load': load}}
    assert record.collapsed(layers) == bool(criteria)


def test_a_load_is_never_rounded_up_to_the_limit():
    assert '(the equivalent of 3.99)' in limits.why_collapsed(3.9999, 0, 8)['effective']


@pytest.mark.parametrize(
    'right, images, lost',
    [
        ([0, 3], [58, 58], [0]),  # 3 of 58 is 5.2 %
        ([2, 5], [58, 100], [0]),
        ([0, 1], [0, 1], []),
        ([], [], []),
    ],
)
def test_a_class_is_lost_below_five_per_cent(right, images, lost):
    assert limits.unrecognised(right, images) == lost


def test_a_constant_answer_is_right_as_often_as_its_class_comes():
    assert limits.majority([1, 6, 3]) == (1, 0.6)
    assert math.isnan(limits.majority([0, 0])[1])


def test_the_end_of_a_run_warns_of_classes(caplog):
    scores = {'confusion': [[9, 1, 0], [0, 10, 0], [4, 6, 0]]}
    told = warnings.check_classes(scores, ('a', 'b', 'c'), 'test')
    assert (
        told
        == caplog.messages
        == ['1 of 3 classes is (nearly) never recognised on the test set: ‘c’ (0 of 10 right).']
    )


def test_of_many_lost_classes_some_are_named():
    _, told = limits.about_classes([9] + [0] * 8, [9] + [1] * 8, [], 'test')
    assert told.startswith('8 of 9 classes are') and told.endswith('right) and 3 more.')
