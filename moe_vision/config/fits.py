"""Numbers that fit, for messages."""

import math
from collections.abc import Iterable


def divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


def fits(n: int, given: int) -> str:
    """The divisors of `n` closest to what was given, as 'what fits: 1, 2, 4'."""
    return near(divisors(n), given)


def near(sizes: Iterable[int], given: int) -> str:
    """Those of the sizes closest to what was given, in the same words."""
    closest = sorted(sorted(sizes, key=lambda d: abs(math.log(d / given)))[:8])
    return f'what fits: {", ".join(map(str, closest))}'
