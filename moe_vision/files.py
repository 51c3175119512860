"""JSON files that are whole or not there."""

import json
import math
from pathlib import Path
from typing import Any


def write_json(path: Path, value: Any) -> None:
    """Writes whole files only: to a neighbour first, then renamed. NaN becomes null."""
    part = path.parent / f'.{path.name}.part'
    part.write_text(json.dumps(finite(value), indent=1) + '\n')
    part.replace(path)


def finite(value: Any) -> Any:
    """The value with every number that is not finite replaced by None (JSON has none such)."""
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
