"""The command line of `python -m moe_vision.leverage`, checked before jax is imported."""

import argparse
import dataclasses
import math
import os
from collections.abc import Callable, Sequence
from typing import Any

from moe_vision.common.errors import UserError, nearest
from moe_vision.common.paths import expanded
from moe_vision.config import check as config_lib
from moe_vision.config import rules, source
from moe_vision.config.command_line import OverridesParser
from moe_vision.config.schema import Config
from moe_vision.leverage.solve import MOST

RHOS = ('rho_place', 'rho_active', 'rho_executed')


@dataclasses.dataclass(frozen=True)
class Request:
    """A checked command line, with its checked configs.

    Attributes:
      configs: config of each (file, swept value); the value is None without --sweep.
      config_at: the config of a file where the key of --solve has a given value.
      start: what that key holds in each file.
      sweep, solve: the key, or ''.
      target_rho: what --solve aims at; NaN without --solve.
      rho: one of RHOS.
      multiple_of: --solve tries multiples of this alone.
      out: folder for the files of --sweep.
      training: whether to trace a training step, too.
    """

    files: tuple[str, ...]
    configs: dict[tuple[str, Any], Config]
    config_at: Callable[[str, int], Config]
    start: dict[str, int]
    sweep: str
    solve: str
    target_rho: float
    rho: str
    multiple_of: int
    out: str
    json: bool
    training: bool


def parse(arguments: Sequence[str], description: str | None) -> Request:
    """Checks the command line and every config it names.

    Raises:
      UserError, DataError: the first mistake, in one line.
    """
    parser = OverridesParser('moe_vision.leverage', description)
    parser.add_argument(
        '--config',
        action='append',
        default=[],
        metavar='FILE[,FILE]',
        help='config files; may be given several times',
    )
    parser.add_argument(
        '--sweep',
        metavar='KEY=V,V',
        help='measure every config with each of '
        'these values of a key; separate values that hold commas by semicolons',
    )
    parser.add_argument(
        '--out',
        type=expanded,
        metavar='FOLDER',
        help='folder for sweep.csv and sweep.svg (default: the current folder)',
    )
    parser.add_argument(
        '--solve',
        metavar='KEY',
        help='find the value of this key, an int, at which rho comes nearest to --target_rho',
    )
    parser.add_argument('--target_rho', metavar='RHO', help='the value that --solve aims at')
    parser.add_argument(
        '--rho',
        metavar='NAME',
        help='which share is meant by --target_rho and shown by the '
        f'picture of --sweep: {", ".join(RHOS)} (default: rho_place)',
    )
    parser.add_argument(
        '--multiple_of',
        metavar='N',
        help='--solve tries multiples of N alone, such as widths that fit the hardware (default: '
        '1)',
    )
    parser.add_argument(
        '--training',
        action='store_true',
        help='also count a whole training step: forward and backward pass (takes longer)',
    )
    parser.add_argument('--json', action='store_true', help='print JSON')
    args, common, opened = parser.parse_with_overrides(arguments)
    files = tuple(dict.fromkeys(f for c in args.config for f in c.split(',') if f))
    if not files:
        raise UserError('--config is missing; give a file, such as --config=configs/digits_k2.py.')

    def load(file: str, key: str = '', value: Any = '') -> Any:
        more, inside, _ = source.take_overrides([f'--config.{key}={value}'] if key else [])
        return source.load(file, [*common, *more], {**opened, **inside})

    def checked(config: Any) -> Config:
        result = config_lib.check(config)
        rules.check_data(result, reads=False)
        return result

    def config_at(file: str, value: int) -> Config:
        with loaded[file].unlocked():
            loaded[file].update_from_flattened_dict({args.solve: value})
        return checked(loaded[file])

    key, values = _swept(args.sweep)
    target_rho = _target(args)
    if args.rho and args.rho not in RHOS:
        raise UserError(
            f"--rho is '{args.rho}'.{nearest(args.rho, RHOS)} Allowed: {', '.join(RHOS)}."
        )
    for flag, reader, owner in (
        ('rho', key or args.solve, '--sweep or --solve'),
        ('out', key, '--sweep'),
        ('multiple_of', args.solve, '--solve'),
    ):
        if getattr(args, flag) is not None and not reader:
            raise UserError(f'--{flag} is set but is not read; it belongs to {owner}.')
    if args.training and (key or args.solve):
        raise UserError('--training is set but is not read by --sweep and --solve; leave it out.')
    multiple_of = _multiple(args.multiple_of)
    configs = {(f, v): checked(load(f, key, v)) for f in files for v in values}
    start = {f: _int_at(args.solve, configs[f, None]) for f in files if args.solve}
    loaded = {f: load(f) for f in files if args.solve}
    out = '.' if args.out is None else args.out
    if key and not _writable(out):
        raise UserError(f"--out is '{out}', which cannot be written; give a folder of your own.")
    return Request(
        files,
        configs,
        config_at,
        start,
        key,
        args.solve or '',
        target_rho,
        args.rho or RHOS[0],
        multiple_of,
        out,
        args.json,
        args.training,
    )


def _writable(folder: str) -> bool:
    """Makes the folder where it does not exist; returns whether files can be written there."""
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)


def _swept(argument: str | None) -> tuple[str, list[Any]]:
    """The key and the values of --sweep; without it, no key and one value, None."""
    if argument is None:
        return '', [None]
    key, _, listed = argument.partition('=')
    values = [v for v in listed.split(';' if ';' in listed else ',') if v]
    if not key or not values:
        raise UserError(
            f"--sweep is '{argument}'; write a key and its values, such as "
            '--sweep=model.moe.hidden=64,256,1024.'
        )
    return key, list(dict.fromkeys(values))


def _target(args: argparse.Namespace) -> float:
    """The number of --target_rho; NaN where --solve is not given."""
    if args.solve is None and args.target_rho is not None:
        raise UserError('--target_rho is set but is not read: --solve=KEY is missing.')
    if args.solve is None:
        return math.nan
    if not args.solve:
        raise UserError(
            "--solve is ''; name a key that holds an int, such as --solve=model.moe.hidden."
        )
    if args.sweep is not None:
        raise UserError('--sweep and --solve are both given; choose one.')
    if args.target_rho is None:
        raise UserError(
            '--target_rho is missing; give the rho that --solve aims at, such as --target_rho=0.2.'
        )
    value = source.literal(args.target_rho)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1:
        raise UserError(
            f"--target_rho is '{args.target_rho}'; it must be a number above 0 and below 1."
        )
    return float(value)


def _multiple(argument: str | None) -> int:
    """The number of --multiple_of."""
    value = 1 if argument is None else source.literal(argument)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= MOST:
        raise UserError(
            f"--multiple_of is '{argument}'; it must be an int from 1 to {MOST}, such as 64."
        )
    return value


def _int_at(key: str, config: Config) -> int:
    """What the key holds. Raises UserError unless it is an int."""
    source.take_overrides([f'--config.{key}=1'])  # refuses an unknown key
    value: Any = config
    for part in key.split('.'):
        if not hasattr(value, part):
            raise UserError(
                f"--solve is '{key}', which this config does not have."
                f'{nearest(part, getattr(value, "__dict__", ()))}'
            )
        value = getattr(value, part)
    if isinstance(value, bool) or not isinstance(value, int):
        raise UserError(
            f"--solve is '{key}', which holds {value!r}; name a key that holds an int, "
            'such as model.moe.hidden.'
        )
    return value
