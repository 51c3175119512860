"""Which cases of a test always run, and which of them `pytest -m tables` alone."""

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def except_for(quick: Collection[Any], values: Iterable[Any]) -> list[Any]:
    """The values, of which all are cases of whole tables except for the quick ones."""
    return [v if v in quick else pytest.param(v, marks=pytest.mark.tables) for v in values]
