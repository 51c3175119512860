"""Finds folders of the user and of this repository, and writes the path of an array in a tree."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from moe_vision.common.errors import UserError

ROOT = Path(__file__).resolve().parents[2]  # the folder that holds `moe_vision`


def expanded(path: str) -> str:
    """A path that the user gave, with `~` at its start replaced by the home folder.

    A shell does not do that behind `--workdir=`.

    Raises:
      UserError: `~name` names no user.
    """
    whole = os.path.expanduser(path)
    if whole.startswith('~'):
        raise UserError(
            f"the path '{path}' begins with the home folder of a user who does not exist; write "
            f"'./{path}' for a folder of that name."
        )
    return whole


def path_name(path: Iterable[Any]) -> str:
    """The path of a leaf in a jax tree as a string, such as 'block_3/experts/in_kernel'."""
    return '/'.join(str(getattr(k, 'key', getattr(k, 'name', getattr(k, 'idx', k)))) for k in path)
