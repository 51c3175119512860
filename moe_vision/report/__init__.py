"""Turns a run's folder into one self-contained `report.html`. Reads files; runs no model.

    >>> from moe_vision import report
    >>> report.write('runs/digits_k2')

The steps: `read` (files, tolerant) -> `sections/*` (what to say) -> `charts`, `markup`
(how it looks) -> `page` (one file).
"""

from etils import epath

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
    """
    run = read.load(workdir)
    from moe_vision.report import page  # drawing takes a second to import; errors come before

    path = run.path / 'report.html'
    path.write_text(page.render(run))
    return path
