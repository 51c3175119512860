"""Defines the error for users' mistakes, the hint for a misspelt name, and checks of arguments."""

import dataclasses
import difflib
import math
from collections.abc import Iterable
from typing import Any


class UserError(Exception):
    """A mistake that the user can fix. One line: what was given, what is allowed, what to do."""


class NotWritten(UserError):
    """Work was done but could not be written: one line saying what is lost, and what to do."""


def nearest(name: str, allowed: Iterable[str]) -> str:
    """` Did you mean 'x'?` for the closest allowed name, or the empty string."""
    matches = difflib.get_close_matches(str(name), list(allowed), n=1, cutoff=0.5)
    return f" Did you mean '{matches[0]}'?" if matches else ''


def unknown(kind: str, name: str, allowed: Iterable[str]) -> UserError:
    """The error for a name that is not in a table."""
    allowed = sorted(allowed)
    hint = nearest(name, allowed)
    return UserError(f"unknown {kind} '{name}'.{hint} Allowed: {', '.join(allowed)}.")


def positive(args: Any, *names: str) -> None:
    """Raises UserError unless these fields are above 0 and finite. A tuple must hold such numbers
    only, and at least one."""
    for name in names:
        value = getattr(args, name)
        items = value if isinstance(value, tuple) else (value,)
        if not items or not all(v > 0 for v in items):
            raise UserError(f'{name} is {value}; it must be positive.')
        if math.inf in items:
            raise UserError(f'{name} is {value}; it must be finite.')


def at_most(args: Any, most: int, *names: str) -> None:
    """Raises UserError unless these fields, or the sums of lists, are at most this large."""
    for name in names:
        value = getattr(args, name)
        if (sum(value) if isinstance(value, tuple) else value) > most:
            raise UserError(
                f'{name} is {str(value)[:40]}; it must be at most {most}'
                + (' in all.' if isinstance(value, tuple) else '.')
            )


def below_one(args: Any, *names: str) -> None:
    """Raises UserError unless these fields lie in [0, 1)."""
    for name in names:
        if not 0 <= getattr(args, name) < 1:
            raise UserError(f'{name} is {getattr(args, name)}; allowed: 0 <= {name} < 1.')


def unread(args: Any, name: str, read: bool, because: str) -> None:
    """Raises UserError if a field that nothing reads differs from its default."""
    default = next(f.default for f in dataclasses.fields(args) if f.name == name)
    if not read and getattr(args, name) != default:
        raise UserError(f'{name} is set to {getattr(args, name)} but is not read: {because}.')
