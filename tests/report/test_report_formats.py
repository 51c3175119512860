"""Numbers and names are formatted as computed by hand."""

import math

import pytest

from moe_vision.report import formats


@pytest.mark.parametrize(
    'value, text',
    [
        (0.4249, '+0.42'),
        (-0.1, '−0.10'),
        (0.0, '0.00'),
        (0.00123, '+0.0012'),
        (-1e-12, '0.00'),
        (math.nan, '–'),
    ],
)
def test_percentage_points_show_two_decimals_or_what_is_left(value, text):
    assert formats.pp(value) == text


@pytest.mark.parametrize(
    'value, text',
    [
        (0.00001, '<0.0001'),
        (0.0123, '0.012'),
        (0.094, '0.094'),
        (0.5, '0.50'),
        (math.nan, '–'),
    ],
)
def test_small_p_have_a_bound(value, text):
    assert formats.p_value(value) == text


def test_shares():
    assert formats.percent(0.12345) == '12.3 %' and formats.percent(0.12345, 2) == '12.35 %'
    assert formats.share(0.5) == '50 %' and formats.share(0.9875, 5) == '98.75 %'
    assert formats.percent(math.inf) == formats.share(math.nan) == '–'


def test_a_real_minus_only_where_it_is_asked_for():
    assert formats.significant(-0.1234) == '-0.123' and formats.signed(-0.1234) == '−0.123'


def test_lists_and_numbers_of_things():
    assert [formats.all_of(list('abc')[:n]) for n in range(4)] == ['', 'a', 'a and b', 'a, b and c']
    assert formats.several(1, 'seed') == '1 seed' and formats.several(0, 'seed') == '0 seeds'


@pytest.mark.parametrize(
    'value, text',
    [
        (123, '123'),
        (12_345, '12.3 k'),
        (3.21e6, '3.21 M'),
        (9.87e11, '987.0 G'),
        (float('nan'), '–'),
    ],
)
def test_sizes_in_a_few_characters(value, text):
    assert formats.size(value) == text


def test_names_lose_what_they_share():
    assert list(formats.apart(['a/1/m', 'a/2/m']).values()) == ['1', '2']
    assert list(formats.apart(['a/m', 'a/m/x', 'b']).values()) == ['a/m', 'a/m/x', 'b']
    assert formats.apart(['only/one']) == {'only/one': 'one'}
    assert formats.apart([]) == {}
