"""The command line of `python -m moe_vision.pod`, checked before jax is imported."""

import argparse
import dataclasses
from typing import NoReturn

from moe_vision.common.errors import UserError, nearest
from moe_vision.config import check as config_lib
from moe_vision.config import rules, source
from moe_vision.config.schema import Config
from moe_vision.pod.topology import Topology
from moe_vision.pod.topology import parse as parse_slice

_FLAGS = ('--config', '--topology', '--slices', '--json')


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f'{message}.')


@dataclasses.dataclass(frozen=True)
class Request:
    """What is asked, checked."""

    config: Config
    topology: Topology
    json: bool


def parse(arguments: list[str], description: str) -> Request:
    """Checks the command line, the config and the topology's name.

    Raises:
      UserError, DataError: the first thing that is wrong, in one line.
    """
    common, opened, others = source.take_overrides(arguments)
    parser = _Parser(prog='python -m moe_vision.pod', description=description, allow_abbrev=False,
                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--config', metavar='FILE', help='a file of configs/')
    parser.add_argument('--topology', metavar='CHIP:SHAPE', help='such as v5e:16x16 or v4:8x8x4')
    parser.add_argument('--slices', type=int, default=1, help='so many of it, over the network '
                        'of a data centre')
    parser.add_argument('--json', action='store_true', help='print JSON')
    given, unknown = parser.parse_known_args(others)
    if unknown:
        name = unknown[0].partition('=')[0]
        if not name.startswith('-'):
            raise UserError(f"unexpected argument '{name}'; flags are written --name=value.")
        near = nearest(name, _FLAGS) or source.nearest_key(name.lstrip('-'))
        raise UserError(f"unknown flag '{name}'.{near} Allowed: {', '.join(_FLAGS)}, --config.KEY.")
    if not given.config:
        raise UserError('--config is missing; give a file, such as '
                        '--config=configs/imagenet_k2.py.')
    if not given.topology:
        raise UserError('--topology is missing; name a slice, such as --topology=v5e:16x16.')
    if given.slices < 1:
        raise UserError(f'--slices is {given.slices}; allowed: 1 or more.')
    topology = dataclasses.replace(parse_slice(given.topology), slices=given.slices)
    config = config_lib.check(source.load(given.config, common, opened))
    rules.check_data(config, reads=False)
    return Request(config, topology, given.json)
