"""Turns a run's folder into one self-contained `report.html`. Reads files; runs no model.

    >>> from moe_vision import report
    >>> report.write('runs/digits_k2')
    >>> report.write('runs/digits_k2', beside='runs/digits_dense')

The steps: `read` (files, tolerant) -> `sections/*` (what to say) -> `charts`, `markup`
(how it looks) -> `page` (one file).
"""

import os

from etils import epath

from moe_vision.common import files
from moe_vision.common.errors import NotWritten
from moe_vision.common.paths import expanded
from moe_vision.report import read

NoRun = read.NoRun


def write(workdir: epath.PathLike, beside: epath.PathLike | None = None) -> epath.Path:
    """Writes a page into the run's folder, from the files that the run has written so far.

    Args:
        workdir: the folder that `main.py --workdir` wrote; may be a `gs://` path.
        beside: the folder of a second run; the page then compares the two.

    Returns:
        The path of the page: `report.html`, or `report-beside-NAME.html` with the name of the
        second run's folder.

    Raises:
        NoRun: a folder holds neither `config.json` nor metrics nor a result, or both are one.
        NotWritten: the page cannot be written; one that was there before is unchanged.
    """
    run = read.load(expanded(os.fspath(workdir)))
    other = None if beside is None else read.load(expanded(os.fspath(beside)))
    if other and files.absolute(run.path) == files.absolute(other.path):
        raise NoRun(
            f"'{beside}' is the run of --workdir itself; give --beside another run's folder"
        )
    from moe_vision.report import beside as two  # drawing takes a second to import
    from moe_vision.report import page  # errors come before

    text = two.render(run, other) if other else page.render(run)
    path = run.path / (f'report-beside-{other.path_name}.html' if other else 'report.html')
    again = f'--workdir={workdir}' + (f' --beside={beside}' if other else '')
    try:
        files.write(path, text.encode())
    except OSError as e:
        raise NotWritten(
            f"'{path}' cannot be written: {files.reason(e)}; make room, then run "
            f'python -m moe_vision.report {again}.'
        ) from e
    return path
