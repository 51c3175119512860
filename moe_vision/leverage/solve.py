"""Finds the integer at which a number, such as a leverage, comes closest to a target.

The number should rise or fall with the integer. Integers that are not allowed are skipped.
"""

import time
from collections.abc import Callable, Iterator

from moe_vision.common.errors import UserError

MOST = 2**22  # the largest value to try
SECONDS = 60.0  # processor time after which no larger value is tried
_REACH = 32  # how far from a wanted value to look for an allowed one
_CLOSE = 5e-5  # numbers this close are equal in the four decimals that are printed
_ENOUGH = 4  # this many values show whether the number changes, and in which direction


def solve(
    number: Callable[[int], float],
    allowed: Callable[[int], bool],
    target: float,
    key: str,
    name: str,
    clock: Callable[[], float] = time.process_time,
) -> int:
    """The allowed integer in 1..MOST whose `number` is nearest to `target`.

    Climbs until the target is passed, then narrows the interval around it. Both follow a line
    through the odds number / (1 - number), which are affine in a hidden width. Every third step
    ignores the line and multiplies or halves, so that the search also ends soon where the odds are
    not affine.

    Args:
      number: the share at an allowed integer; slow.
      allowed: whether an integer is allowed; quick.
      target: the wanted share, above 0 and below 1.
      key, name: names of the integer and of the number, for error messages.

    Raises:
      UserError: the target is out of reach, or the number does not change.
    """
    seen: dict[int, float] = {}
    start, low = clock(), next((n for n in range(1, 4 * _REACH) if allowed(n)), None)
    if low is None:
        raise UserError(f'--solve={key}: no value below {4 * _REACH} is allowed.')

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
                f'--solve={key}: {name} is still {seen[low]:.4f} at {low}, and larger '
                'values take too long; choose a --target_rho nearer to it than '
                f'{target:g}.'
            )
        crossed = (seen[low] - target) * (measure(above) - target) <= 0
        low, high = (low, above) if crossed else (above, None)
    best = min(seen, key=lambda n: abs(seen[n] - target))
    if high is None and abs(seen[best] - target) > _CLOSE:
        raise _out_of_reach(seen, target, key, name)
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
