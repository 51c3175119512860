"""The command line of `python -m moe_vision.pod`, checked before jax is imported."""

import dataclasses
from collections.abc import Sequence

from moe_vision.common.errors import UserError
from moe_vision.config import check as config_lib
from moe_vision.config import rules, source
from moe_vision.config.command_line import OverridesParser
from moe_vision.config.schema import Config
from moe_vision.pod.topology import Topology
from moe_vision.pod.topology import parse as parse_slice


@dataclasses.dataclass(frozen=True)
class Request:
    """A checked command line, with its checked config."""

    config: Config
    topology: Topology
    json: bool


def parse(arguments: Sequence[str], description: str | None) -> Request:
    """Checks the command line, the config and the topology's name.

    Raises:
      UserError, DataError: the first mistake, in one line.
    """
    parser = OverridesParser('moe_vision.pod', description)
    parser.add_argument('--config', metavar='FILE', help='a config file')
    parser.add_argument(
        '--topology', metavar='CHIP:SHAPE', help='one slice, such as v5e:16x16 or v4:8x8x4'
    )
    parser.add_argument(
        '--slices',
        type=int,
        default=1,
        metavar='N',
        help="use N such slices, joined by the data centre's network (default: 1)",
    )
    parser.add_argument('--json', action='store_true', help='print JSON')
    args, common, opened = parser.parse_with_overrides(arguments)
    if not args.config:
        raise UserError(
            '--config is missing; give a file, such as --config=configs/imagenet_k2.py.'
        )
    if not args.topology:
        raise UserError('--topology is missing; name a slice, such as --topology=v5e:16x16.')
    if args.slices < 1:
        raise UserError(f'--slices is {args.slices}; allowed: 1 or more.')
    topology = dataclasses.replace(parse_slice(args.topology), slices=args.slices)
    config = config_lib.check(source.load(args.config, common, opened))
    rules.check_data(config, reads=False)
    return Request(config, topology, args.json)
