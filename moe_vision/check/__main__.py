"""Checks a method by itself: shapes, padding, groups, gradients, seeds, mesh, FLOPs.

    python -m moe_vision.check my.routers:Mine --args="{'temperature': 0.1}"
    python -m moe_vision.check --loss=z
    python -m moe_vision.check my.losses:teach --router=my.routers:Mine --expert=my.experts:Mine

A loss is checked with the routes of --router; a loss or a router that reads experts, with --expert.
A name of the tables in moe_vision/config/registry.py may stand for several kinds of method. Then
say which: --router, --loss, --expert, --backbone or --transform. What does not hold is told in one
line.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from moe_vision.common.command_line import Parser
from moe_vision.common.errors import UserError, nearest
from moe_vision.config import own_code, registry, source
from moe_vision.config.command_line import exit_code

_KINDS = {
    'router': registry.ROUTERS,
    'loss': registry.LOSSES,
    'expert': registry.EXPERTS,
    'backbone': registry.BACKBONES,
    'transform': registry.TRANSFORMS,
}
_DEVICES = '--xla_force_host_platform_device_count=4'  # a CPU plays the devices of a mesh


def main(arguments: Sequence[str]) -> int:
    """Runs the command; returns the exit code."""
    return exit_code(lambda: _run(arguments))


def _run(arguments: Sequence[str]) -> int:
    parser = Parser('moe_vision.check', __doc__)
    parser.add_argument('name', nargs='?', help="'package.module:Class', or a name of the tables")
    for kind in _KINDS:
        parser.add_argument(
            f'--{kind}', metavar='NAME', help=f'a class of your own that is one: {kind}'
        )
    parser.add_argument('--args', metavar='DICT', help='its arguments')
    given = parser.parse(arguments)
    if 'jax' not in sys.modules:
        os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} {_DEVICES}'
    names = {kind: name for kind in _KINDS if (name := getattr(given, kind)) is not None}
    if given.name is not None:
        kind = _kind(given.name)
        if kind in names:
            raise UserError(
                f"the {kind} is named twice, '{given.name}' and '{names[kind]}'; give one name."
            )
        names[kind] = given.name
    kind, beside = _judged(names)
    name = names[kind]
    args = None if given.args is None else source.literal(given.args)
    if given.args is not None and not isinstance(args, Mapping):
        raise UserError(f"--args is '{given.args}'; write a dictionary: {{'a': 1}}.")
    registry.entry(kind, _KINDS[kind], name)  # a misspelt name is told before jax is imported
    from moe_vision.check import inputs, routers, shapes, transforms, values

    module = {'transform': transforms, 'router': routers}.get(kind, values)
    if kind in ('loss', 'router'):
        beside['given'] = inputs.Given(expert=beside.pop('expert', 'mlp'))
    try:
        with shapes.named({k: n for k, n in names.items() if ':' in n}):
            getattr(module, kind)(name, args, **beside)
    except ValueError as e:  # a size that does not fit the small inputs
        raise UserError(
            f"{kind} '{name}' cannot be run on {inputs.D} channels: {str(e).splitlines()[0]}."
        ) from e
    print(f"{kind} '{name}' holds what it must")
    return 0


def _judged(names: Mapping[str, str]) -> tuple[str, dict[str, Any]]:
    """The kind of method that is to be checked, and those that it is checked with."""
    for kind, others in (('loss', ('router', 'expert')), ('router', ('expert',))):
        if kind in names and set(names) <= {kind, *others}:
            return kind, {k: n for k, n in names.items() if k != kind}
    if len(names) != 1:
        flags = ', '.join(f'--{kind}' for kind in _KINDS)
        raise UserError(
            f'{len(names)} methods are named; give one, by itself or with {flags}. A loss may have '
            'a --router and an --expert beside it, a router an --expert.'
        )
    return next(iter(names)), {}


def _kind(name: str) -> str:
    """What kind of method a name names.

    Raises:
      UserError: none, or several.
    """
    found = [kind for kind, table in _KINDS.items() if name in table]
    if ':' in name:
        found = [own_code.kind_of(name)]
    if len(found) == 1:
        return found[0]
    flags = ' or '.join(f'--{kind}={name}' for kind in found)
    if found:
        raise UserError(f"'{name}' can be one of several kinds: {', '.join(found)}; write {flags}.")
    known = sorted({n for table in _KINDS.values() for n in table})
    raise UserError(
        f"there is no method '{name}'.{nearest(name, known)} Allowed: 'package.module:Class', or "
        f'{", ".join(known)}.'
    )


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
