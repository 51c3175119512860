"""`python -m moe_vision.report --workdir=W`: writes W/report.html and prints its path."""

import argparse
import sys
from typing import NoReturn

from moe_vision import report


class _OneLine(argparse.ArgumentParser):
    """A parser whose errors are one line, exit code 2."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f'report: {message}. Usage: python -m moe_vision.report --workdir=W\n')


def main(arguments: list[str] | None = None) -> int:
    """The command; returns the exit code."""
    parser = _OneLine(prog='report', description=__doc__, allow_abbrev=False)
    parser.add_argument('--workdir', required=True, help="a training run's folder, gs:// included")
    workdir = parser.parse_args(arguments).workdir
    try:
        path = report.write(workdir)
    except report.NoRun as error:
        print(f'report: {error}', file=sys.stderr)
        return 2
    except OSError as error:
        print(f'report: cannot write {workdir}/report.html: {error}', file=sys.stderr)
        return 2
    print(path)
    return 0


if __name__ == '__main__':
    sys.exit(main())
