"""Finds the integer at which a share, such as a leverage, comes closest to a target.

A share is a part of a whole. Both are polynomials in a width or a number, of degree two at most, so
few measurements tell all other values. One more measurement says whether they do. If they do not,
a search follows that needs only that the share rises or falls with the integer. Integers that are
not allowed are skipped.
"""

import functools
import time
from collections.abc import Callable, Iterator
from fractions import Fraction

from moe_vision.common.errors import UserError

MOST = 2**22  # the largest value to try
SECONDS = 60.0  # processor time after which no larger value is tried
_REACH = 32  # how far from a wanted value to look for an allowed one, in units
_CLOSE = 5e-5  # numbers this close are equal in the four decimals that are printed
_SAME = 1e-8  # numbers this close are equal but for FLOPs per image that were rounded
_ENOUGH = 4  # this many values show whether the number changes, and in which direction
_TRIES = 5  # measurements after which polynomials are given up

Share = tuple[int, int]  # part, whole


def solve(
    measure: Callable[[int], Share],
    allowed: Callable[[int], bool],
    target: float,
    key: str,
    name: str,
    *,
    start: int = 1,
    unit: int = 1,
    clock: Callable[[], float] = time.process_time,
) -> int:
    """The allowed multiple of `unit` in 1..MOST whose share is nearest to `target`.

    Args:
      measure: part and whole at an allowed integer; slow.
      allowed: whether an integer is allowed; quick.
      target: the wanted share, above 0 and below 1.
      key, name: names of the integer and of the share, for error messages.
      start: where to measure first, if it is allowed.

    Raises:
      UserError: the target is out of reach, or the share does not change.
    """
    seen: dict[int, Share] = {}  # by integer, in units

    def number(n: int) -> float:
        if n not in seen:
            seen[n] = measure(n * unit)
        return seen[n][0] / seen[n][1]

    fits = functools.cache(lambda n: allowed(n * unit))
    search = functools.partial(
        _search, allowed=fits, target=target, key=key, name=name, unit=unit, clock=clock
    )
    found = _by_polynomials(number, seen, fits, target, search, start // unit)
    return unit * (search(number) if found is None else found)


def _by_polynomials(
    number: Callable[[int], float],
    seen: dict[int, Share],
    allowed: Callable[[int], bool],
    target: float,
    search: Callable[[Callable[[int], float]], int],
    start: int,
) -> int | None:
    """The answer, if polynomials through the newest values of `seen` predict another; else None.

    Raises:
      UserError: polynomials that predict rightly say that there is no answer.
    """
    first = start if start > 0 and allowed(start) else _smallest(allowed)
    second = first and (
        _nearest(2 * first, first, MOST, allowed) or _nearest(first // 2, 0, first, allowed)
    )
    if not first or not second:
        return None
    for n in (first, second):
        number(n)
    for _ in range(_TRIES):
        guess = _polynomials(list(seen.items())[-3:])
        try:
            asked = best = search(guess)
        except UserError:  # the smallest value and one far away say whether it is true
            far = next((n for n in _far(max(seen)) if n not in seen and allowed(n)), None)
            ends = [n for n in (_smallest(allowed), far) if n]
            if all(abs(number(n) - guess(n)) < _SAME for n in (*ends, *seen)):
                raise
            continue
        if best in seen:
            asked = _next_to(best, guess, target, allowed)
            if asked in seen:
                return best
        if not asked:
            return best
        expected = guess(asked)
        if abs(number(asked) - expected) < _SAME:
            return min((best, asked), key=lambda n: abs(guess(n) - target))
    return None


def _smallest(allowed: Callable[[int], bool]) -> int | None:
    return next((n for n in range(1, 4 * _REACH) if allowed(n)), None)


def _far(n: int) -> Iterator[int]:
    """Values above n, then below it, the most telling first."""
    for wanted in (8 * n, 2 * n, n // 2):
        yield from (m for m in _outward(wanted) if 0 < m <= MOST)


def _next_to(
    n: int, guess: Callable[[int], float], target: float, allowed: Callable[[int], bool]
) -> int:
    """The allowed neighbour of n on the target's side; 0 if there is none."""
    sides = (_nearest(n + 1, n, MOST, allowed), _nearest(n - 1, 0, n, allowed))
    towards = target - guess(n)
    return next((m for m in sides if m and (guess(m) - guess(n)) * towards > 0), 0)


def _polynomials(points: list[tuple[int, Share]]) -> Callable[[int], float]:
    """The share that polynomials through the points, one for parts and one for wholes, predict."""

    def at(n: int) -> float:
        part, whole = Fraction(0), Fraction(0)
        for x, (p, w) in points:
            weight = Fraction(1)
            for other, _ in points:
                if other != x:
                    weight *= Fraction(n - other, x - other)
            part, whole = part + weight * p, whole + weight * w
        return min(max(float(part / whole), 0.0), 1.0) if whole > 0 else 0.0

    return at


def _search(
    number: Callable[[int], float],
    allowed: Callable[[int], bool],
    target: float,
    key: str,
    name: str,
    unit: int,
    clock: Callable[[], float],
) -> int:
    """`solve` for any share that rises or falls, in units.

    Climbs until the target is passed, then narrows the interval around it. Both follow a line
    through the odds number / (1 - number), which are affine in a hidden width. Every third step
    ignores the line and multiplies or halves, so that the search also ends soon where the odds are
    not affine.
    """
    seen: dict[int, float] = {}
    start, low = clock(), _smallest(allowed)
    if low is None:
        raise UserError(f'--solve={key}: no value below {4 * _REACH * unit} is allowed.')

    def measure(n: int) -> float:
        seen[n] = number(n)
        return seen[n]

    high: int | None = None
    measure(low)
    while high is None and seen[low] != target:
        if len(seen) >= _ENOUGH and _away(list(seen.values()), target):
            break
        above = _above(seen, target, allowed)
        if above is None:
            break
        if clock() - start > SECONDS:
            raise UserError(
                f'--solve={key}: {name} is still {seen[low]:.4f} at {low * unit}, and larger '
                'values take too long; choose a --target_rho nearer to it than '
                f'{target:g}.'
            )
        crossed = (seen[low] - target) * (measure(above) - target) <= 0
        low, high = (low, above) if crossed else (above, None)
    best = min(seen, key=lambda n: abs(seen[n] - target))
    if high is None and abs(seen[best] - target) > _CLOSE:
        raise _out_of_reach({n * unit: x for n, x in seen.items()}, target, key, name)
    while high is not None and target not in (seen[low], seen[high]):
        middle = _between(low, high, seen, target, allowed)
        if middle is None:
            break
        crossed = (seen[low] - target) * (measure(middle) - target) <= 0
        low, high = (low, middle) if crossed else (middle, high)
    return min(seen, key=lambda n: abs(seen[n] - target))


def _out_of_reach(seen: dict[int, float], target: float, key: str, name: str) -> UserError:
    values = set(seen.values())
    if len(values) == 1:
        return UserError(
            f'--solve={key}: it does not change {name}, which is '
            f'{min(values):.4f} at {key} {", ".join(map(str, sorted(seen)))}; '
            'choose another key, or another --rho.'
        )
    if _away(list(seen.values()), target):
        first = seen[min(seen)]
        return UserError(
            f'--target_rho is {target:g}, but {name} is {first:.4f} at the smallest '
            f'{key}, {min(seen)}, and larger values move it away; choose a target '
            f'{"above" if first > target else "below"} that, or another key.'
        )
    least, most = min(seen, key=seen.__getitem__), max(seen, key=seen.__getitem__)
    return UserError(
        f'--target_rho is {target:g}, but for {key} from {min(seen)} to {max(seen)} '
        f'{name} lies between {seen[least]:.4f} (at {least}) and {seen[most]:.4f} '
        f'(at {most}); choose a target in this range, or another key.'
    )


def _away(numbers: list[float], target: float) -> bool:
    """Whether every number is at least as far from the target as the one before."""
    distances = [abs(x - target) for x in numbers]
    return len(numbers) > 1 and distances == sorted(distances)


def _above(seen: dict[int, float], target: float, allowed: Callable[[int], bool]) -> int | None:
    """The next larger value: where the line meets the target, but at most 16 times the last value;
    4 or 2 times the last value on every third step or where the line gives none."""
    before, low = [0, *seen][-2:]
    blind = [4 * low, 2 * low]
    line = _on_line(before, low, seen, target) if len(seen) > 1 and len(seen) % 3 else 0
    for wanted in [min(round(line), 16 * low), *blind] if line > low else blind:
        value = _nearest(max(wanted, low + 1), low, MOST + 1, allowed)
        if value is not None:
            return value
    return None


def _between(
    low: int, high: int, seen: dict[int, float], target: float, allowed: Callable[[int], bool]
) -> int | None:
    """The next value inside the interval: on the line, or its middle on every third step."""
    blind = len(seen) % 3 == 0
    wanted = (low + high) / 2 if blind else _on_line(low, high, seen, target)
    return _nearest(min(max(round(wanted), low + 1), high - 1), low, high, allowed)


def _on_line(a: int, b: int, seen: dict[int, float], target: float) -> float:
    """Where the line through the odds at a and b meets the odds of the target; 0 if it is flat."""
    odds_a, odds_b, wanted = (x / max(1 - x, 1e-12) for x in (seen[a], seen[b], target))
    return a + (b - a) * (wanted - odds_a) / (odds_b - odds_a) if odds_a != odds_b else 0.0


def _nearest(wanted: int, low: int, high: int, allowed: Callable[[int], bool]) -> int | None:
    """The allowed integer nearest to `wanted` strictly between `low` and `high`."""
    return next((n for n in _outward(wanted) if low < n < high and allowed(n)), None)


def _outward(n: int) -> Iterator[int]:
    """n and the integers up to _REACH away from it, nearest first."""
    yield n
    for d in range(1, _REACH + 1):
        yield n + d
        yield n - d
