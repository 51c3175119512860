"""Checks a method of your own: shapes, padding, groups, gradients, on small inputs.

    python -m moe_vision.contract --router=my.routers:Mine --args="{'temperature': 0.1}"
    python -m moe_vision.contract --loss=my.losses:l1
    python -m moe_vision.contract --expert=my.experts:Mine
    python -m moe_vision.contract --backbone=my.networks:Mine
    python -m moe_vision.contract --transform=my.transforms:Mine

Names of the tables in moe_vision/config/registry.py work too.
"""

import sys
from collections.abc import Mapping, Sequence

from moe_vision.common.command_line import Parser
from moe_vision.common.errors import UserError
from moe_vision.config import registry, source
from moe_vision.config.command_line import exit_code

_KINDS = {
    'router': registry.ROUTERS,
    'loss': registry.LOSSES,
    'expert': registry.EXPERTS,
    'backbone': registry.BACKBONES,
    'transform': registry.TRANSFORMS,
}


def main(arguments: Sequence[str]) -> int:
    """Runs the command; returns the exit code."""
    return exit_code(lambda: _run(arguments))


def _run(arguments: Sequence[str]) -> int:
    parser = Parser('moe_vision.contract', __doc__)
    for kind in _KINDS:
        parser.add_argument(f'--{kind}', metavar='NAME', help=f'check this {kind}')
    parser.add_argument('--args', metavar='DICT', help='its arguments; not of a loss')
    given = parser.parse(arguments)
    names = {kind: name for kind in _KINDS if (name := getattr(given, kind)) is not None}
    if len(names) != 1:
        flags = ', '.join(f'--{kind}' for kind in _KINDS)
        raise UserError(f'{len(names)} methods are named; give one of {flags}.')
    ((kind, name),) = names.items()
    args = None if given.args is None else source.literal(given.args)
    if given.args is not None and (kind == 'loss' or not isinstance(args, Mapping)):
        raise UserError(
            f"--args is '{given.args}'; "
            + ('a loss has no arguments.' if kind == 'loss' else "write a dictionary: {'a': 1}.")
        )
    registry.entry(kind, _KINDS[kind], name)  # a misspelt name is told before jax is imported
    from moe_vision.contract import shapes, transforms, values

    with shapes.named({f'--{kind}': name}):
        getattr(transforms if kind == 'transform' else values, kind)(
            name, *([] if args is None else [args])
        )
    print(f"{kind} '{name}' holds what it must")
    return 0


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
