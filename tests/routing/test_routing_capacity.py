"""Slots per expert against exact fractions."""

import math
from fractions import Fraction

import pytest

from moe_vision.routing.capacity import capacity, effective_factor


@pytest.mark.parametrize(
    'factor, k, tokens, experts, slots',
    [
        (1.1, 1, 100, 5, 22),  # floats: 1.1 * 100 / 5 = 22.000000000000004, so 23
        (1.1, 2, 50, 5, 22),
        (0.07, 1, 100, 1, 7),  # floats: 7.000000000000001
        (1.15, 1, 100, 5, 23),  # floats: 22.999999999999996, which rounds up right
        (1.25, 2, 8, 8, 3),  # 2.5
        (1.0, 2, 8, 4, 4),
        (0.01, 1, 8, 8, 1),  # at least one
        (4.0, 2, 8, 4, 8),  # 16, but never more than T
        (math.inf, 1, 13, 4, 13),
        (1e-7, 1, 10**7, 1, 1),  # written '1e-07'
    ],
)
def test_slots_by_hand(factor, k, tokens, experts, slots):
    assert capacity(factor, k, tokens, experts) == slots


def test_slots_equal_exact_arithmetic_everywhere():
    for hundredths in range(1, 260, 3):
        factor = hundredths / 100  # the float nearest to the decimal
        for k, tokens, experts in ((1, 100, 5), (2, 196, 8), (3, 7, 6), (1, 1, 4), (4, 49, 16)):
            exact = Fraction(hundredths, 100) * k * tokens / experts
            want = min(max(-(-exact.numerator // exact.denominator), 1), tokens)
            assert capacity(factor, k, tokens, experts) == want


@pytest.mark.parametrize(
    'factor, multiple, slots',
    [
        (1.0, 1, 5),
        (1.0, 4, 8),
        (1.0, 5, 5),
        (1.0, 16, 16),  # 10 * 1 / 2 = 5; 16 exceeds T = 10
        (math.inf, 4, 12),
    ],
)  # T = 10 rounded up
def test_multiple_rounds_up_last(factor, multiple, slots):
    assert capacity(factor, 1, 10, 2, multiple) == slots


@pytest.mark.parametrize('factor', [0, -1.0, math.nan, -math.inf])
def test_factor_must_be_positive(factor):
    with pytest.raises(ValueError, match='positive'):
        capacity(factor, 1, 8, 4)


def test_effective_factor():
    assert effective_factor(3, 2, 8, 8) == 1.5  # 3 * 8 / (2 * 8): rounding made 1.25 into this
    assert effective_factor(8, 2, 8, 4) == 2.0  # room for all is E / k
