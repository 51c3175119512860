"""Finds folders of the user, of this repository and of runs, and names arrays in a tree."""

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from input_pipeline import DataError, files
from moe_vision.common.errors import UserError

ROOT = Path(__file__).resolve().parents[2]  # the folder that holds `moe_vision`


def expanded(path: str) -> str:
    """A path that the user gave, with `~` at its start replaced by the home folder.

    A shell does not do that behind `--workdir=`.

    Raises:
      UserError: `~name` names no user.
    """
    try:
        return files.expanded(path)
    except DataError as e:
        raise UserError(str(e)) from e


def in_order(layers: Iterable[str]) -> list[str]:
    """Paths of layers in the order of their numbers: block_2 before block_10, unlike in a tree."""

    def key(name: str) -> list[tuple[str, int]]:
        return [('', int(s)) if s.isdecimal() else (s, 0) for s in re.split(r'(\d+)', name)]

    return sorted(layers, key=key)


def path_name(path: Iterable[Any]) -> str:
    """The path of a leaf in a jax tree as a string, such as 'block_3/experts/in_kernel'."""
    return '/'.join(str(getattr(k, 'key', getattr(k, 'name', getattr(k, 'idx', k)))) for k in path)


def runs_near(folder: str) -> str:
    """What to do about a folder that holds no run, for the end of an error's message."""
    try:
        names = sorted(os.listdir(folder))
    except OSError:  # it is gone, a file, or in a bucket
        names = []
    if 'preregistration.json' in names:
        return (
            "it holds a study: see 'python -m moe_vision.study report', and give the folder of a "
            'run that was kept (--keep_runs)'
        )
    runs = [n for n in names if os.path.isfile(os.path.join(folder, n, 'config.json'))]
    if runs:
        more = f' (or {len(runs) - 1} more there)' if len(runs) > 1 else ''
        return f"give the folder of a run, such as '{os.path.join(folder, runs[0])}'{more}"
    return 'give the folder of a run that was trained'
