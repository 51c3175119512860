"""Makes the folder of a run from another run, or from a file with weights, without training.

    python -m moe_vision.surgery import --from=vit_small.safetensors --workdir=W \\
        --config=configs/imagenet_vit_s16_dense.py

The first word is the kind of surgery; docs/surgery.md describes them all. Any key of the config can
be set: `--config.model.moe.k=1`. W is then an ordinary run's folder before its first step: main.py
trains it with `--config=configs/workdir.py:W --workdir=W`, another run starts from its weights with
`--config.init_from=W`, and `predict` reads it. `surgery.json` there says what was done.

If arrays do not fit, a table names each of them, nothing is written, and the exit code is 2.
"""

import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

from moe_vision.common.command_line import Parser, printable
from moe_vision.common.errors import UserError, unknown
from moe_vision.common.paths import expanded
from moe_vision.config import check as config_lib
from moe_vision.config import rules, source, surgery, trust, typed
from moe_vision.config.command_line import OverridesParser, exit_code
from moe_vision.config.schema import Config
from moe_vision.run_folder import lives


@dataclasses.dataclass(frozen=True)
class Request:
    """A checked command line."""

    kind: str  # a name in SURGERY
    args: Any  # of the kind
    sources: str  # a file, or folders of runs separated by commas
    config: Config
    config_file: str
    workdir: str


def main(arguments: Sequence[str]) -> int:
    """Runs the command; returns the exit code."""
    return exit_code(lambda: _run(arguments))


def _run(arguments: Sequence[str]) -> int:
    request = _parse(arguments)
    if lives.begun(request.workdir):
        raise UserError(
            f"--workdir is '{request.workdir}', which holds a run; give a folder of its own."
        )
    with rules.workdir(request.workdir, create=True):
        from moe_vision.run_folder import abandoned
        from moe_vision.surgery import folders
        from moe_vision.surgery.state import Misfit

        abandoned.hide()
        try:
            told = folders.make(request)
        except Misfit as e:
            print('\n'.join(map(printable, e.table)), file=sys.stderr)
            raise
    print('\n'.join(map(printable, told)))
    return 0


def _parse(arguments: Sequence[str]) -> Request:
    """Raises UserError: the first mistake, in one line."""
    kind, *others = arguments or ['']
    if kind in ('--help', '-h'):
        kinds = (
            f'{__doc__}\nKinds: {", ".join(surgery.SURGERY)}. KIND --help lists the flags of one.'
        )
        Parser('moe_vision.surgery KIND', kinds).parse_args(['--help'])
    if kind not in surgery.SURGERY:
        raise unknown('kind of surgery', kind, surgery.SURGERY)
    entry = surgery.SURGERY[kind]
    parser = OverridesParser(f'moe_vision.surgery {kind}', __doc__)
    for name, meaning in (
        ('from', 'a file with weights, or the folder of a run'),
        ('config', 'config file of the result'),
        ('workdir', 'folder of the result'),
        ('trust', "modules of your own that a run's config.json may import"),
    ):
        parser.add_argument(f'--{name}', default='', type=expanded, help=meaning)
    fields = {f.name: f.default for f in dataclasses.fields(entry.args)}
    for name, default in fields.items():
        parser.add_argument(f'--{name}', help=f'default {default!r}; see docs/surgery.md')
    options, common, opened = parser.parse_with_overrides(others)
    given = vars(options)
    for name in ('from', 'config', 'workdir'):
        if not given[name]:
            raise UserError(f'--{name} is missing; {parser.prog} --help shows the flags.')
    trust.allow(options.trust)
    values = {n: source.literal(given[n]) for n in fields if given[n] is not None}
    args = typed.build(entry.args, values, '', f"argument of surgery '{kind}'")
    config = config_lib.check(source.load(options.config, common, opened))
    if config.init_from:
        raise UserError('init_from is set but is not read: --from says where weights come from.')
    rules.check_data(config, reads=False)
    return Request(kind, args, given['from'], config, options.config, options.workdir)


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
