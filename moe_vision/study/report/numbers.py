"""Summarises values: the finite ones, their mean, mean ± sd, or a mean with its interval."""

import math
from collections.abc import Callable, Iterable
from statistics import fmean, stdev
from typing import Any

from moe_vision.common.json_values import number
from moe_vision.report.formats import NONE, interval, pp, share
from moe_vision.study.analysis.statistics import Estimate


def finite(values: Iterable[Any]) -> list[float]:
    """The values that are finite numbers, in order."""
    return [known for value in values if math.isfinite(known := number(value))]


def mean(values: Iterable[Any]) -> float:
    """The mean of the values that are finite numbers; NaN if there are none."""
    known = finite(values)
    return fmean(known) if known else math.nan


def spread(values: Iterable[Any], form: Callable[[float], str] | None = None) -> str:
    """Mean ± sd of the finite numbers, `97.31 ± 0.42`; without sd if there is only one."""
    known = finite(values)
    form = form or (lambda value: pp(value, sign=False))
    if not known:
        return NONE
    return form(fmean(known)) + (f' ± {form(stdev(known))}' if len(known) > 1 else '')


def estimate(value: Estimate) -> str:
    """`+0.42 (95 %: −0.10 to +0.94)`, or only the mean if no interval is defined."""
    between = interval(value.low, value.high)
    if not value.n or between == NONE:
        return pp(value.mean) if value.n else NONE
    return f'{pp(value.mean)} ({share(value.level, 5)}: {between})'
