"""Text stays text in a spreadsheet, and numbers stay numbers."""

import pytest

from moe_vision.common.csv_cells import shown


@pytest.mark.parametrize('text', ['=1+1', '+x', '-x', '--1', '@x', '\t=1', '\n=1', '-', '='])
def test_a_formula_is_text(text):
    assert shown(text) == f"'{text}"


@pytest.mark.parametrize('text', ['', 'x=1', 'k1', '-0.5', '+3', '-1e-07', "'=1", '1-2', '−1'])
def test_numbers_and_other_text_stay(text):
    assert shown(text) == text


def test_a_carriage_return_ends_no_row():
    assert shown('\r=1') == "' =1" and shown('x\r=1') == 'x =1'
