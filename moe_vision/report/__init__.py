"""Turns a run's folder into one self-contained `report.html`. Reads files; runs no model.

    >>> from moe_vision import report
    >>> report.write('runs/digits_k2')

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


def write(workdir: epath.PathLike) -> epath.Path:
    """Writes `report.html` into the run's folder, from the files that the run has written so far.

    Args:
        workdir: the folder that `main.py --workdir` wrote; may be a `gs://` path.

    Returns:
        The path of the page.

    Raises:
        NoRun: the folder holds neither `config.json` nor metrics nor a result.
        NotWritten: the page cannot be written; one that was there before is unchanged.
    """
    run = read.load(expanded(os.fspath(workdir)))
    from moe_vision.report import page  # drawing takes a second to import; errors come before

    path = run.path / 'report.html'
    try:
        files.write(path, page.render(run).encode())
    except OSError as e:
        raise NotWritten(
            f"'{path}' cannot be written: {files.reason(e)}; make room, then run "
            f'python -m moe_vision.report --workdir={workdir}.'
        ) from e
    return path
