"""Turns nested plain dictionaries into typed dataclasses, with errors that a person can act on.

The annotations of a dataclass say what is allowed: no key may be unknown, and every value has the
annotated type. An int is allowed where a float is wanted. A bool is never a number, and a float is
never an int, not even 3.0.
"""

import dataclasses
import math
import re
import types
import typing
from collections.abc import Mapping
from typing import Any

from moe_vision.common.errors import UserError, nearest

_NAMES = {int: 'an int', float: 'a number', bool: 'True or False', str: 'a string'}


def flatten(cls: Any, prefix: str = '') -> dict[str, Any]:
    """The annotation of every leaf of nested dataclasses: `{'train.epochs': float, ...}`."""
    leaves: dict[str, Any] = {}
    for name, kind in typing.get_type_hints(cls).items():
        if dataclasses.is_dataclass(kind):
            leaves |= flatten(kind, f'{prefix}{name}.')
        else:
            leaves[prefix + name] = kind
    return leaves


def is_open(kind: Any) -> bool:
    """Whether values of this annotation hold names that it does not list: dictionaries."""
    inner = typing.get_args(kind)
    of_dictionaries = typing.get_origin(kind) is tuple and dataclasses.is_dataclass(inner[0])
    return kind is Any or typing.get_origin(kind) is dict or of_dictionaries


def build(
    cls: Any, given: Mapping[str, Any], where: str, what: str = 'key', complete: bool = False
) -> Any:
    """An instance of the dataclass `cls` from a dictionary.

    Args:
      cls: a dataclass. A field that is a dataclass itself takes a dictionary.
      given: the values by name.
      where: dotted path of `given` in the config, for messages; '' for the whole config.
      what: what one entry is called in messages.
      complete: every field must be given; otherwise those with a default may be absent.

    Raises:
      UserError: a key is unknown or missing, or a value has the wrong type.
    """
    kinds = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    at = f'{where}.' if where else ''
    if not isinstance(given, Mapping):
        raise UserError(f'{where} is {given!r}; it must hold the keys {", ".join(fields)}.')
    for name in given:
        if name not in fields:
            allowed = ', '.join(sorted(fields)) or 'none'
            hint = nearest(name, fields)
            raise UserError(f"unknown {what}: '{at}{name}'.{hint} Allowed: {allowed}.")
    for name, field in fields.items():
        needed = complete or field.default is field.default_factory is dataclasses.MISSING
        if name not in given and needed:
            raise UserError(f"{what} '{at}{name}' is missing; it must be {describe(kinds[name])}.")
    values = {name: convert(given[name], kinds[name], at + name, complete) for name in given}
    try:
        return cls(**values)
    except UserError as e:  # the dataclass checks its values; it knows the field, not the path
        own = str(e).split(' ', 1)[0] in fields
        raise UserError(f'{at}{e}' if own else f'{where}: {e}') from e


def convert(value: Any, kind: Any, where: str, complete: bool = False) -> Any:
    """`value` converted to the annotation `kind`.

    Args:
      complete: as in `build`, where `kind` is a dataclass.

    Raises:
      UserError: the value is of another type, not among the literals, or not a number.
    """
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType) and all(
        typing.get_origin(k) is typing.Literal for k in inner
    ):
        origin, inner = typing.Literal, tuple(v for k in inner for v in typing.get_args(k))
    if dataclasses.is_dataclass(kind):
        return build(kind, value, where, complete=complete)
    if kind is Any:
        return value
    if origin is typing.Literal:
        if any(value == v and type(value) is type(v) for v in inner):
            return value
        allowed = ', '.join(str(v) for v in inner)
        hint = nearest(str(value), [str(v) for v in inner])
        raise UserError(f"{where} is '{value}'.{hint} Allowed: {allowed}.")
    if origin in (typing.Union, types.UnionType):
        return _first_that_fits(value, kind, inner, where)
    if origin is tuple and inner:
        items = list(value) if isinstance(value, tuple | list) else [value]
        if len(items) == 1 and isinstance(items[0], str):
            # from the command line: '1,2,inf' and 'one,two' are no Python literals
            texts = items[0].strip('()[]').split(',')
            if inner[0] is float:
                items = [_number(text) for text in texts]
            elif inner[0] is str and all(re.fullmatch(r'[\w.:-]+', text) for text in texts):
                items = list(texts)
        repeated = len(inner) == 2 and inner[1] is Ellipsis
        if not repeated and len(items) != len(inner):
            raise UserError(f'{where} is {value!r}; it must be {describe(kind)}.')
        if not isinstance(value, tuple | list) and items == [value]:
            try:
                return (convert(value, inner[0], where),)
            except UserError as e:
                raise UserError(f'{where} is {value!r}; it must be {describe(kind)}.') from e
        each = [inner[0]] * len(items) if repeated else inner
        return tuple(
            convert(
                v, k, f'{where}[{n - 1}]' if dataclasses.is_dataclass(k) else f'item {n} of {where}'
            )
            for n, (v, k) in enumerate(zip(items, each, strict=True), 1)
        )
    if origin is dict and isinstance(value, Mapping):
        if odd := [name for name in value if not isinstance(name, str)]:
            raise UserError(
                f"{where} has the key {odd[0]!r}; its keys are strings, such as '{odd[0]}'."
            )
        return {name: convert(v, inner[1], f'{where}.{name}') for name, v in value.items()}
    if kind is float and value in ('inf', 'nan'):  # as JSON and the command line write them
        value = float(value)
    fits = {int: int, float: int | float, bool: bool, str: str}.get(kind, origin or kind)
    if not isinstance(value, fits) or (isinstance(value, bool) and kind in (int, float)):
        raise UserError(f'{where} is {value!r}; it must be {describe(kind)}.')
    if kind is int and not -(2**63) <= value < 2**63:
        raise UserError(f'{where} is {str(value)[:40]}...; it must be an int of 64 bits.')
    if kind is not float:
        return value
    try:
        number = float(typing.cast(float, value))
    except OverflowError as e:
        raise UserError(f'{where} is larger than any float; it must be a number.') from e
    if math.isnan(number):
        raise UserError(f'{where} is nan; it must be a number.')
    return number


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _first_that_fits(value: Any, kind: Any, choices: tuple[Any, ...], where: str) -> Any:
    for choice in choices:
        try:
            return convert(value, choice, where)
        except UserError:
            continue
    raise UserError(f'{where} is {value!r}; it must be {describe(kind)}.')


def describe(kind: Any) -> str:
    """The annotation in words: `int` is 'an int'."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        return 'one of ' + ', '.join(str(v) for v in inner)
    if origin in (typing.Union, types.UnionType):
        return ' or '.join('None' if k is type(None) else describe(k) for k in inner)
    if origin is tuple and len(inner) == 2 and inner[1] is Ellipsis:
        return f'a list, each item {describe(inner[0])}'
    if origin is tuple:
        return f'{len(inner)} values: ' + ', '.join(describe(k) for k in inner)
    if origin is dict:
        return f'a dictionary, each value {describe(inner[1])}'
    if dataclasses.is_dataclass(kind):
        return 'a dictionary'
    return _NAMES.get(kind, getattr(kind, '__name__', str(kind)))
