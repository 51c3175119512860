"""Which cases of a test always run, and which of them `pytest -m slow` alone."""

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def except_for(quick: Collection[Any], values: Iterable[Any]) -> list[Any]:
    """The values, of which all are slow cases except for the quick ones."""
    return [v if v in quick else pytest.param(v, marks=pytest.mark.slow) for v in values]
