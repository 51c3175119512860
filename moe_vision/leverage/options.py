"""The command line of `python -m moe_vision.leverage`, checked before jax is imported."""

import argparse
import dataclasses
import math
import os
from collections.abc import Callable
from typing import Any, NoReturn

from moe_vision.common.errors import UserError, nearest
from moe_vision.config import check as config_lib
from moe_vision.config import rules, source
from moe_vision.config.schema import Config

RHOS = ('rho_place', 'rho_active', 'rho_executed')
_FLAGS = ('--config', '--sweep', '--solve', '--target_rho', '--rho', '--out', '--json')


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f'{message}.')


@dataclasses.dataclass(frozen=True)
class Request:
    """What is asked, checked. Every config is, too; jax is not imported yet."""

    files: tuple[str, ...]
    configs: dict[tuple[str, Any], Config]  # by file and swept value (None without a sweep)
    at: Callable[[str, int], Config]  # of a file and an int for --solve's key
    sweep: str  # the key, or ''
    solve: str  # the key, or ''
    target: float
    rho: str
    out: str
    json: bool


def parse(arguments: list[str], description: str) -> Request:
    """Checks the command line and every config it names.

    Raises:
      UserError, DataError: the first thing that is wrong, in one line.
    """
    common, opened, others = source.take_overrides(arguments)
    parser = _Parser(prog='python -m moe_vision.leverage', description=description,
                     allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--config', action='append', default=[], metavar='FILE[,FILE]',
                        help='files of configs/; may be given several times')
    parser.add_argument('--sweep', metavar='KEY=V,V', help='the leverages at these values of a '
                        'key; values that hold commas are parted by semicolons')
    parser.add_argument('--out', metavar='FOLDER', help='of sweep.csv and sweep.svg (default: .)')
    parser.add_argument('--solve', metavar='KEY', help='the value of an int key that gives rho')
    parser.add_argument('--target_rho', metavar='RHO', help='the rho that --solve is to reach')
    parser.add_argument('--rho', metavar='NAME', help=f'{", ".join(RHOS)} (default: rho_place): '
                        'what --solve reaches and the picture of --sweep shows')
    parser.add_argument('--json', action='store_true', help='print JSON')
    given, unknown = parser.parse_known_args(others)
    if unknown:
        name = unknown[0].partition('=')[0]
        if not name.startswith('-'):
            raise UserError(f"unexpected argument '{name}'; flags are written --name=value.")
        near = nearest(name, _FLAGS) or source.nearest_key(name.lstrip('-'))
        raise UserError(f"unknown flag '{name}'.{near} Allowed: {', '.join(_FLAGS)}, --config.KEY.")
    files = tuple(dict.fromkeys(f for c in given.config for f in c.split(',') if f))
    if not files:
        raise UserError('--config is missing; give a file, such as --config=configs/digits_k2.py.')

    def load(file: str, key: str = '', value: Any = '') -> Any:
        more, inside, _ = source.take_overrides([f'--config.{key}={value}'] if key else [])
        return source.load(file, [*common, *more], {**opened, **inside})

    def checked(config: Any) -> Config:
        made = config_lib.check(config)
        rules.check_data(made, reads=False)
        return made

    def at(file: str, value: int) -> Config:
        with loaded[file].unlocked():
            loaded[file].update_from_flattened_dict({given.solve: value})
        return checked(loaded[file])

    key, values = _swept(given.sweep)
    target = _target(given)
    if given.rho and given.rho not in RHOS:
        raise UserError(f"--rho is '{given.rho}'.{nearest(given.rho, RHOS)} Allowed: "
                        f'{", ".join(RHOS)}.')
    for flag, reader in (('rho', key or given.solve), ('out', key)):
        if getattr(given, flag) is not None and not reader:
            raise UserError(f'--{flag} is set but is not read; it belongs to --sweep'
                            + (' or --solve.' if flag == 'rho' else '.'))
    configs = {(f, v): checked(load(f, key, v)) for f in files for v in values}
    for file in files if given.solve else ():
        _integer(given.solve, configs[file, None])
    loaded = {f: load(f) for f in files if given.solve}
    out = '.' if given.out is None else given.out
    if key and not _writable(out):
        raise UserError(f"--out is '{out}', which cannot be written; give a folder of your own.")
    return Request(files, configs, at, key, given.solve or '', target, given.rho or RHOS[0], out,
                   given.json)


def _writable(folder: str) -> bool:
    """Whether it is a folder to write in; made where there is none."""
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)


def _swept(text: str | None) -> tuple[str, list[Any]]:
    """Key and values of --sweep; no key and one value where it is not given."""
    if text is None:
        return '', [None]
    key, _, listed = text.partition('=')
    values = [v for v in listed.split(';' if ';' in listed else ',') if v]
    if not key or not values:
        raise UserError(f"--sweep is '{text}'; write a key and its values, such as "
                        '--sweep=model.moe.hidden=64,256,1024.')
    return key, list(dict.fromkeys(values))


def _target(given: argparse.Namespace) -> float:
    if given.solve is None and given.target_rho is not None:
        raise UserError('--target_rho is set but is not read: --solve=KEY is missing.')
    if given.solve is None:
        return math.nan
    if not given.solve:
        raise UserError("--solve is ''; name a key of an int, such as --solve=model.moe.hidden.")
    if given.sweep is not None:
        raise UserError('--sweep and --solve are both given; choose one.')
    if given.target_rho is None:
        raise UserError('--target_rho is missing; give the rho that --solve is to reach, such as '
                        '--target_rho=0.2.')
    value = source.literal(given.target_rho)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1:
        raise UserError(f"--target_rho is '{given.target_rho}'; it must be a number above 0 and "
                        'below 1.')
    return float(value)


def _integer(key: str, config: Config) -> None:
    """Raises UserError unless the key holds an int."""
    source.take_overrides([f'--config.{key}=1'])  # tells an unknown key
    value: Any = config
    for part in key.split('.'):
        if not hasattr(value, part):
            raise UserError(f"--solve is '{key}', which this config does not have."
                            f'{nearest(part, getattr(value, "__dict__", ()))}')
        value = getattr(value, part)
    if isinstance(value, bool) or not isinstance(value, int):
        raise UserError(f"--solve is '{key}', which holds {value!r}; it must be a key of an int, "
                        'such as model.moe.hidden.')
