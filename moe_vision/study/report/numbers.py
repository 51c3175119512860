"""How numbers are written: in the text for people, in the tables' files for programs.

Accuracies and gaps are percentage points (pp); what is not defined is an en dash in the text and
an empty field in a file.
"""

import math
from collections.abc import Iterable, Sequence
from statistics import fmean, stdev
from typing import Any

from moe_vision.report import formats
from moe_vision.study.analysis.statistics import Estimate

NONE = '–'
MINUS = '−'


def pp(value: float, *, sign: bool = True) -> str:
    """Percentage points with two decimals, `+0.42`; more where two would show a zero."""
    if not math.isfinite(value):
        return NONE
    digits = 2
    if value and abs(value) < 0.005:
        digits = min(1 - math.floor(math.log10(abs(value))), 9)
    shown = f'{value:{"+" if sign else ""}.{digits}f}'
    if float(shown) == 0:
        return f'{0:.2f}'
    return shown.replace('-', MINUS)


def between(low: float, high: float) -> str:
    """An interval, `−0.10 to +0.74`."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return NONE
    return f'{pp(low)} to {pp(high)}'


def level(value: float) -> str:
    """A level of confidence, `98.75 %`."""
    return f'{100 * value:.5g} %' if math.isfinite(value) else NONE


def p_value(value: float) -> str:
    """Two digits that count, and a bound where it is tiny."""
    if not math.isfinite(value):
        return NONE
    if value < 1e-4:
        return '<0.0001'
    return f'{value:.2g}' if value < 0.095 else f'{value:.2f}'


def times(value: float) -> str:
    """A ratio, `1.25×`."""
    return f'{value:.2f}×' if value < 10 else f'{value:,.0f}×' if math.isfinite(value) else NONE


def plain(value: float, digits: int = 3) -> str:
    """A number with so many digits that count, as in the run's report, with a real minus."""
    return formats.significant(value, digits).replace('-', MINUS)


def spread(values: Iterable[float], form: Any = None) -> str:
    """Mean ± sd of what is finite, `97.31 ± 0.42`; the number alone where there is one."""
    known = finite(values)
    write = form or (lambda v: pp(v, sign=False))
    if not known:
        return NONE
    if len(known) == 1:
        return write(known[0])
    return f'{write(fmean(known))} ± {write(stdev(known))}'


def finite(values: Iterable[Any]) -> list[float]:
    """What is a finite number, in order."""
    return [float(v) for v in values if isinstance(v, int | float) and math.isfinite(v)]


def mean(values: Iterable[Any]) -> float:
    """Of what is finite; NaN of nothing."""
    known = finite(values)
    return fmean(known) if known else math.nan


def estimate(value: Estimate) -> str:
    """`+0.42 (95 %: −0.10 to +0.94)`, or the mean alone where no interval is defined."""
    interval = between(value.low, value.high)
    if not value.n or interval == NONE:
        return pp(value.mean) if value.n else NONE
    return f'{pp(value.mean)} ({level(value.level)}: {interval})'


def several(number: int, one: str, many: str = '') -> str:
    """`1 seed`, `8 seeds`."""
    return f'{number} {one if number == 1 else many or one + "s"}'


def listed(items: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    if len(items) < 2:
        return ''.join(items)
    return f'{", ".join(items[:-1])} and {items[-1]}'


def field(value: Any) -> str:
    """A value in a file: floats with ten digits, so that the last bits of a sum do not show."""
    if value is None or isinstance(value, float) and not math.isfinite(value):
        return ''
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, float):
        return format(value, '.10g')
    return str(value)
