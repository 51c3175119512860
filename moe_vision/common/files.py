"""Files that are whole or not there, in a folder or a bucket."""

import json
from pathlib import Path
from typing import Any

from moe_vision.common.errors import UserError
from moe_vision.common.json_values import finite


def write_json(path: Path, value: Any) -> None:
    """Writes a value; NaN becomes null.

    Raises:
      UserError: there is no room, or it is not allowed.
    """
    try:
        write(path, (json.dumps(finite(value), indent=1) + '\n').encode())
    except OSError as e:
        raise UserError(f"'{path}' cannot be written: {e.strerror or e}; make room or give another "
                        '--workdir, and start again to go on.') from e


def write(path: Path, data: bytes) -> None:
    """Writes a file in one go: to a neighbour first, then renamed. An object of a bucket appears
    when it is whole, and is not renamed: that would copy it."""
    if in_bucket(path):
        path.write_bytes(data)
        return
    part = path.parent / f'.{path.name}.part'
    part.write_bytes(data)
    part.replace(path)


def in_bucket(path: Any) -> bool:
    return '://' in str(path)


def absolute(path: Path) -> Path:
    """Orbax wants absolute paths; `resolve` would put a bucket into the working directory."""
    return path if in_bucket(path) else path.resolve()
