"""Writes W/report.html from what a training run has left in its folder W; prints the page's path.

python -m moe_vision.report --workdir=W
python -m moe_vision.report --workdir=A --beside=B

The second form writes A/report-beside-B.html, which compares the runs in A and B.
"""

import sys
from collections.abc import Sequence

from moe_vision import report
from moe_vision.common.command_line import Parser, exit_code


def main(arguments: Sequence[str]) -> int:
    """Runs the command; returns the exit code."""
    return exit_code(lambda: _run(arguments))


def _run(arguments: Sequence[str]) -> int:
    parser = Parser('moe_vision.report', __doc__)
    parser.add_argument(
        '--workdir', required=True, metavar='W', help='folder of the run; may be a gs:// path'
    )
    parser.add_argument(
        '--beside', default=None, metavar='B', help='folder of a second run, to compare with'
    )
    given = parser.parse(arguments)
    print(report.write(given.workdir, given.beside))
    return 0


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
