"""Values from files that may be damaged."""

import math

import pytest

from moe_vision.common.json_values import number


@pytest.mark.parametrize('value', [None, True, 'x', [], math.nan, math.inf, 10**400])
def test_what_is_no_number_is_nan(value):
    assert math.isnan(number(value))


def test_numbers_become_floats():
    assert number(3) == 3.0 and isinstance(number(3), float) and number(-0.5) == -0.5
