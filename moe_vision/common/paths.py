"""Where this repository stands, and how the place of an array in a tree is written."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]  # the folder that holds `moe_vision`


def path_name(path: Iterable[Any]) -> str:
    """'block_3/experts/in_kernel' for the path of a leaf in a jax tree."""
    return '/'.join(str(getattr(k, 'key', getattr(k, 'name', getattr(k, 'idx', k)))) for k in path)
