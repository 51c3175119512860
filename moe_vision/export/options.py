"""The command line of the export, checked before jax is imported."""

import dataclasses
import os
from collections.abc import Iterable, Sequence

from moe_vision.common import files
from moe_vision.common.command_line import Parser
from moe_vision.common.errors import UserError, unknown
from moe_vision.common.paths import expanded
from moe_vision.config import command_line, trust
from moe_vision.run_folder import lives

PLATFORMS = {'cpu': 'cpu', 'cuda': 'gpu', 'tpu': 'tpu'}  # as jax.export and as jax name them
EVALUATION, UNBOUNDED = CAPACITIES = ('evaluation', 'unbounded')
_NONE = 'none'


@dataclasses.dataclass(frozen=True)
class Request:
    """A checked command line.

    Attributes:
      platforms: for which a program is written, of PLATFORMS.
      capacities: rules of capacity for which one is written, of CAPACITIES.
      license: of the weights; '' if it is not said.
    """

    workdir: str
    out: str
    platforms: tuple[str, ...]
    capacities: tuple[str, ...]
    license: str
    best: bool


def parse(arguments: Sequence[str], description: str | None) -> Request:
    """The checked request.

    Raises:
      UserError: the first mistake, in one line.
    """
    parser = Parser('moe_vision.export', description)
    parser.add_argument(
        '--workdir', type=expanded, required=True, metavar='W', help='folder of the run'
    )
    parser.add_argument(
        '--out', type=expanded, required=True, metavar='DIR', help='folder to write, new or empty'
    )
    parser.add_argument(
        '--platforms',
        default=','.join(PLATFORMS),
        metavar='P,P',
        help='where programs will run: cpu, cuda (or gpu), tpu (default: all), or none for weights '
        'alone',
    )
    parser.add_argument(
        '--capacity',
        default=','.join(CAPACITIES),
        metavar='C,C',
        help='evaluation (slots as in the evaluation), unbounded (room for all); default: both',
    )
    parser.add_argument(
        '--license', default='', metavar='NAME', help='license of the weights, for the card'
    )
    command_line.add_weights(parser)
    args = parser.parse(arguments)
    trust.allow(args.trust)
    _check_out(args.out, args.workdir)
    return Request(
        workdir=args.workdir,
        out=args.out,
        platforms=_names('platform', args.platforms, PLATFORMS),
        capacities=_names('capacity', args.capacity, CAPACITIES),
        license=' '.join(args.license.split()),
        best=args.best,
    )


def _names(what: str, given: str, allowed: Iterable[str]) -> tuple[str, ...]:
    """The names in a flag's value, in the order of the table, each once; () for 'none'."""
    names = given.split(',')
    if what == 'platform':
        if names == [_NONE]:
            return ()
        names = ['cuda' if name == 'gpu' else name for name in names]  # as jax calls it
    for name in names:
        if name not in allowed:
            raise unknown(what, name, allowed)
    return tuple(name for name in allowed if name in names)


def _check_out(out: str, workdir: str) -> None:
    """Raises UserError unless the folder is new or empty, and no part of the run's."""
    files.check_bucket(out)
    if not files.in_bucket(out) and not files.in_bucket(workdir):
        run, ours = os.path.realpath(workdir), os.path.realpath(out)
        if os.path.commonpath([run, ours]) == run:
            raise UserError(
                f"--out is '{out}', inside the folder of the run; give a folder beside it."
            )
    if os.path.ismount(out):
        raise UserError(f"--out is '{out}', where a disk is mounted; give a folder in it.")
    folder = lives.folder_of(out)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--out is '{out}', which is no folder; give a new one.")
    if folder.exists() and any(True for _ in folder.iterdir()):
        raise UserError(f"--out is '{out}', which is not empty; give a new or an empty folder.")
