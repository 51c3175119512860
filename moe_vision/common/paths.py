"""Finds this repository's folder, and writes the path of an array in a tree."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]  # the folder that holds `moe_vision`


def path_name(path: Iterable[Any]) -> str:
    """The path of a leaf in a jax tree as a string, such as 'block_3/experts/in_kernel'."""
    return '/'.join(str(getattr(k, 'key', getattr(k, 'name', getattr(k, 'idx', k)))) for k in path)
