"""Formats numbers and names for the report of a run and that of a study.

A number that is not defined is an en dash.
"""

import math
from collections.abc import Sequence

NONE = '–'
MINUS = '−'


def percent(value: float, digits: int = 1) -> str:
    """A share with a fixed number of decimals: 0.123 is `12.3 %`."""
    return f'{100 * value:.{digits}f} %' if math.isfinite(value) else NONE


def share(value: float, digits: int = 3) -> str:
    """A share with `digits` significant digits: 0.5 is `50 %`, 0.3821 is `38.2 %`."""
    return f'{100 * value:.{digits}g} %' if math.isfinite(value) else NONE


def pp(value: float, *, sign: bool = True) -> str:
    """Percentage points with two decimals, `+0.42`; or more if two would show a zero."""
    if not math.isfinite(value):
        return NONE
    digits = 2
    if value and abs(value) < 0.005:
        digits = min(1 - math.floor(math.log10(abs(value))), 9)
    shown = f'{value:{"+" if sign else ""}.{digits}f}'
    if float(shown) == 0:
        return f'{0:.2f}'
    return shown.replace('-', MINUS)


def interval(low: float, high: float) -> str:
    """An interval of percentage points, `−0.10 to +0.74`."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return NONE
    return f'{pp(low)} to {pp(high)}'


def p_value(value: float) -> str:
    """A probability with two significant digits, or `<0.0001`."""
    if not math.isfinite(value):
        return NONE
    if value < 1e-4:
        return '<0.0001'
    return f'{value:.2g}' if value < 0.095 else f'{value:.2f}'


def times(value: float) -> str:
    """A ratio, `1.25×`."""
    return f'{value:.2f}×' if value < 10 else f'{value:,.0f}×' if math.isfinite(value) else NONE


def significant(value: float, digits: int = 3) -> str:
    """A number with `digits` significant digits and commas between thousands."""
    return f'{value:,.{digits}g}' if math.isfinite(value) else NONE


def signed(value: float, digits: int = 3) -> str:
    """Like `significant`, with a real minus sign for negative numbers."""
    return significant(value, digits).replace('-', MINUS)


def count(value: float) -> str:
    """A count: without decimals if it is whole, else with one."""
    if not math.isfinite(value):
        return NONE
    return f'{value:,.0f}' if abs(value - round(value)) < 1e-6 else f'{value:,.1f}'


def size(value: float) -> str:
    """A large number in a few characters: 1,234 / 56.7 k / 8.90 M / 1.23 G / 4.5 T."""
    if not math.isfinite(value):
        return NONE
    for least, factor, unit in (
        (1e12, 1e12, 'T'),
        (1e9, 1e9, 'G'),
        (1e6, 1e6, 'M'),
        (1e4, 1e3, 'k'),
    ):
        if abs(value) >= least:
            scaled = value / factor
            return f'{scaled:.{2 if abs(scaled) < 10 else 1}f} {unit}'
    return count(value)


def tick(value: float) -> str:
    """A number on an axis, as short as it can be: 800, 2.5 k, 1.2 M."""
    for factor, unit in ((1e9, 'G'), (1e6, 'M'), (1e3, 'k')):
        if abs(value) >= factor:
            return f'{value / factor:.3g} {unit}'
    return f'{value:.3g}'


def several(number: int, one: str) -> str:
    """`1 seed`, `8 seeds`."""
    return f'{number} {one}{"" if number == 1 else "s"}'


def all_of(items: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    if len(items) < 2:
        return ''.join(items)
    return f'{", ".join(items[:-1])} and {items[-1]}'


def tail(name: str, length: int = 16) -> str:
    """The end of a long name, which is where the names of layers differ."""
    return name if len(name) <= length else '…' + name[1 - length :]


def head(name: str, length: int = 40) -> str:
    """The beginning of a long name, which is where the names of classes differ."""
    return name if len(name) <= length else name[: length - 1] + '…'


def name_of(names: Sequence[str], index: int) -> str:
    """A class's name, or its number."""
    return names[index] if 0 <= index < len(names) else str(index)


def apart(names: Sequence[str]) -> dict[str, str]:
    """Paths without the parts that all of them share at either end.

    >>> apart(['encoder/block_1/moe', 'encoder/block_3/moe'])
    {'encoder/block_1/moe': 'block_1', 'encoder/block_3/moe': 'block_3'}
    """
    parts = [name.split('/') for name in names]
    shortest = min(map(len, parts), default=0)
    start, end = 0, 0
    while start < shortest - 1 and len({p[start] for p in parts}) == 1:
        start += 1
    while start + end < shortest - 1 and len({p[-1 - end] for p in parts}) == 1:
        end += 1
    return {n: '/'.join(p[start : len(p) - end]) for n, p in zip(names, parts, strict=True)}
