r"""Writes a trained network as files that others can use: programs, weights, and a card.

    python -m moe_vision.export --workdir=W --out=DIR
    python -m moe_vision.export --workdir=W --out=DIR --platforms=cpu,cuda --capacity=unbounded \
        --license=CC-BY-4.0

DIR then holds

  model.safetensors, model.json   the weights, and what describes them: config, metrics, data,
                                  versions, license, classes, how images are prepared;
  CAPACITY.PLATFORM.jax_export    programs (StableHLO, written by jax.export) that need jax and not
                                  this package, each with the weights inside;
  README.md                       the same in words, and how a program is run.

`moe_vision.load(DIR)` and `python -m moe_vision.predict --workdir=DIR` read it as they read a run.
docs/export.md explains it. The folder appears when it is complete.
"""

import sys
from collections.abc import Sequence

from moe_vision.config import check as config_lib
from moe_vision.config.command_line import exit_code
from moe_vision.export.options import parse


def main(arguments: Sequence[str]) -> int:
    """Runs the command; returns the exit code."""
    return exit_code(lambda: _run(arguments))


def _run(arguments: Sequence[str]) -> int:
    request = parse(arguments, __doc__)
    config_lib.load(request.workdir)  # a folder without a run is refused before jax is imported
    from moe_vision.export.folder import write
    from moe_vision.run_folder import abandoned

    abandoned.hide()

    for name, size in write(request).items():
        print(f'{size:>15,}  {name}')
    print(f"wrote '{request.out}'; its README.md says how to run it")
    return 0


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
