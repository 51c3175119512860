"""The search for the integer that gives a share, on functions with known answers."""

import math

import pytest

from moe_vision.common.errors import UserError
from moe_vision.leverage.solve import MOST, SECONDS, solve


def search(share, target, allowed=lambda n: 1 <= n, clock=lambda: 0.0, **options):
    tried = []

    def counted(n):
        assert allowed(n)
        tried.append(n)
        return share(n)

    return solve(counted, allowed, target, 'a.key', 'rho', clock=clock, **options), tried


def width(n):  # a block of n channels beside a backbone of 1000
    return n, n + 1000


def curved(n):  # 3 n^2 + 40 n beside 10 n^2 + 5,000,000
    return 3 * n * n + 40 * n, 13 * n * n + 40 * n + 5_000_000


def crooked(n):  # no polynomial
    return math.isqrt(n) ** 3, math.isqrt(n) ** 3 + 100_000


@pytest.mark.parametrize('target, best', [(0.5, 1000), (0.2, 250), (0.001, 1), (0.99, 99000)])
@pytest.mark.parametrize('start', [0, 1, 250, 4096, MOST])
def test_a_width_is_found_in_few_steps(target, best, start):
    value, tried = search(width, target, start=start)
    assert value == best
    assert len(tried) <= 4 and len(set(tried)) == len(tried)


@pytest.mark.parametrize('share', [width, curved, crooked])
@pytest.mark.parametrize('target', [0.15, 0.18, 0.2])
@pytest.mark.parametrize('start', [0, 160])
@pytest.mark.parametrize('unit', [1, 24, 160])
def test_the_nearest_of_all_is_found(share, target, start, unit):
    def off(n):
        part, whole = share(n)
        return abs(part / whole - target)

    value, tried = search(share, target, start=start, unit=unit)
    assert value % unit == 0 and all(n % unit == 0 for n in tried)
    assert off(value) == min(off(n) for n in range(unit, 6000, unit))
    if share is not crooked:
        assert len(tried) <= 5


def test_only_allowed_values_are_tried_and_the_nearest_wins():
    value, _ = search(width, 0.5, allowed=lambda n: n >= 1 and n % 48 == 0)
    assert value == 1008  # 960 and 1008 lie around 1000
    value, _ = search(width, 0.489, allowed=lambda n: n >= 1 and n % 48 == 0)
    assert value == 960


def test_a_number_that_falls():
    value, _ = search(lambda n: (100, 100 + n), 0.25)
    assert value == 300


def test_a_curved_number_of_few_values():
    value, _ = search(lambda n: (n**3, 1000), 0.1, allowed=lambda n: 1 <= n <= 6)
    assert value == 5  # gives 0.125; 4 gives 0.064
    value, _ = search(lambda n: (n**3, 1000), 0.21604, allowed=lambda n: 1 <= n <= 6)
    assert value == 6  # the largest; equal to the target in four decimals


def test_the_error_of_a_target_above_all_gives_the_range():
    with pytest.raises(UserError) as error:
        search(width, 0.9999999)
    line = str(error.value)
    assert line.startswith('--target_rho is 1, but for a.key from 1 to ') and '\n' not in line
    assert 'rho lies between 0.0010 (at 1) and 0.9998' in line


def test_a_target_below_all_is_refused_without_climbing():
    tried = []
    with pytest.raises(UserError, match='rho is 0.0010 at the smallest a.key, 1, .* above that'):
        solve(lambda n: tried.append(n) or width(n), lambda n: True, 0.0001, 'a.key', 'rho')
    assert len(tried) == 3


def test_no_value_above_the_limit_is_tried():
    tried = []
    with pytest.raises(UserError):
        solve(lambda n: tried.append(n) or width(n), lambda n: True, 0.9999999, 'a.key', 'rho')
    assert max(tried) <= MOST


def test_a_key_that_changes_nothing_is_refused_early():
    tried = []
    with pytest.raises(UserError, match='--solve=a.key: it does not change rho, which is 0.2500'):
        solve(lambda n: tried.append(n) or (1, 4), lambda n: True, 0.5, 'a.key', 'rho')
    assert len(tried) == 3


def test_climbing_ends_with_the_time():
    now = [0.0]

    def slow(n):
        now[0] += SECONDS / 4
        return math.isqrt(n), math.isqrt(n) + 1000

    with pytest.raises(UserError, match='rho is still 0.[0-9]* at [0-9]*, and larger'):
        solve(slow, lambda n: True, 0.99, 'a.key', 'rho', clock=lambda: now[0])
    assert now[0] <= 3 * SECONDS


def test_nothing_allowed():
    with pytest.raises(UserError, match='no value below 128'):
        search(width, 0.5, allowed=lambda n: n > 10**6)


def test_a_plateau_hides_no_answer():
    """As with groups: padding is large where they are small, and constant from some size on."""

    def share(n):
        return 1000, 1000 + round(1310 * (1 - 1 / n)) if n < 16 else 2306

    value, _ = search(share, share(4)[0] / share(4)[1], start=64)
    assert value == 4
