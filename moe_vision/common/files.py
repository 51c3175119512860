"""Files that are whole or not there, in a folder or a bucket."""

import importlib.util
import json
from pathlib import Path
from typing import Any

from moe_vision.common.errors import UserError
from moe_vision.common.json_values import finite


def write_json(path: Path, value: Any) -> None:
    """Writes a value as JSON. Numbers that are not finite become null.

    Raises:
      UserError: the file cannot be written.
    """
    try:
        write(path, (json.dumps(finite(value), indent=1) + '\n').encode())
    except OSError as e:
        raise UserError(
            f"'{path}' cannot be written: {e.strerror or e}; make room or give another "
            '--workdir, and start again to continue.'
        ) from e


def write(path: Path, data: bytes) -> None:
    """Writes a file so that it is never seen half written: to another name, which is then renamed.

    In a bucket it is written directly: an object appears only when it is whole, and renaming would
    copy it.
    """
    if in_bucket(path):
        path.write_bytes(data)
        return
    part = path.parent / f'.{path.name}.part'
    part.write_bytes(data)
    part.replace(path)


def in_bucket(path: Any) -> bool:
    return '://' in str(path)


def check_bucket(path: str) -> None:
    """Raises UserError if `path` is a `gs://` path and a package that it needs is missing."""
    if not path.startswith('gs://'):
        return
    needs = {'gcsfs': ('gcsfs', 'tensorflow'), 'google-cloud-storage': ('google.cloud.storage',)}
    missing = [name for name, modules in needs.items() if not any(map(_installed, modules))]
    if missing:
        raise UserError(
            f"workdir '{path}' needs {' and '.join(missing)}; run pip install {' '.join(missing)}."
        )


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the package that would contain it
        return False


def absolute(path: Path) -> Path:
    """The absolute path, as orbax wants it. `resolve` would turn a bucket's into a local one."""
    return path if in_bucket(path) else path.resolve()
