"""Files that are whole or not there, in a folder or a bucket, and JSON that may be damaged."""

import contextlib
import glob
import importlib.util
import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from input_pipeline.cores import memory
from moe_vision.common import json_values
from moe_vision.common.errors import NotWritten, UserError

_STALE = 60.0  # seconds, in which any file here is written
MAX_FILE = 2**30  # bytes; no file that a run writes comes near, and no checkpoint is read here


def write_json(path: Path, value: Any, error: type[UserError] = NotWritten) -> None:
    """Writes a value as JSON. Numbers that are not finite become null.

    Args:
      error: what to raise; UserError where no work is lost.

    Raises:
      UserError: the file cannot be written.
    """
    try:
        write(path, (json.dumps(json_values.finite(value), indent=1) + '\n').encode())
    except OSError as e:
        raise error(
            f"'{path}' cannot be written: {reason(e)}; make room or give another "
            '--workdir, and start again to continue.'
        ) from e


def write(path: Path, data: bytes) -> None:
    """Writes a file so that it is never seen half written: to another name, which is then renamed.

    In a bucket it is written directly: an object appears only when it is whole, and renaming would
    copy it.

    Raises:
      OSError: it cannot be written. What was there before is unchanged.
    """
    if in_bucket(path):
        path.write_bytes(data)
        return
    # another process may write the same file, so the name is this call's alone
    part = path.parent / f'.{path.name}.{os.urandom(4).hex()}.part'
    _clear(path)
    try:
        part.touch(exist_ok=False)  # writing to what is there would follow a link, or wait
        part.write_bytes(data)
        part.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            part.unlink()
        raise


def _clear(path: Path) -> None:
    """Removes what a process left that was killed while it wrote this file."""
    for part in path.parent.glob(f'.{glob.escape(path.name)}.*.part'):
        with contextlib.suppress(OSError):
            if time.time() - part.lstat().st_mtime > _STALE:
                part.unlink()


@contextlib.contextmanager
def new_folder(path: str) -> Iterator[Any]:
    """A folder that is never seen half full: it is filled under another name, and renamed when the
    block ends without an error.

    In a bucket it is filled in place, so the file that makes it complete must be written last.

    Args:
      path: of a folder that is not there, or empty.
    """
    if in_bucket(path):
        from etils import epath  # slower to import, and only needed for buckets

        yield epath.Path(path)
        return
    whole = Path(path).resolve()
    part = whole.parent / f'.{whole.name}.{os.getpid()}.part'
    part.mkdir(parents=True)
    try:
        yield part
        part.replace(whole)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def read(path: Path | str, limit: int = MAX_FILE) -> bytes:
    """The bytes of a file.

    Raises:
      FileNotFoundError: there is none.
      ValueError: it cannot be read, is no file (a pipe would keep the reader waiting), or has more
        than `limit` bytes (a file with holes may claim more than memory holds).
    """
    try:
        if in_bucket(path):
            from etils import epath  # slower to import, and only needed for buckets

            return epath.Path(path).read_bytes()
        if os.path.exists(path) and not os.path.isfile(path):
            raise ValueError('not a file')
        if (size := os.stat(path).st_size) > limit:
            raise ValueError(f'it has {size:,} bytes; at most {limit:,} are read')
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise
    except OSError as e:
        raise ValueError(f'cannot be read ({reason(e)})') from e


def read_json(path: Path | str) -> Any:
    """The value in a JSON file that may be damaged.

    Raises:
      FileNotFoundError: there is none.
      ValueError: it cannot be read; the message says why, in one line.
    """
    return json_values.parse(read(path, json_values.MAX_BYTES))


def reason(error: BaseException | None) -> str:
    """Why a file cannot be read or written, such as 'No space left on device'."""
    return getattr(error, 'strerror', None) or ' '.join(str(error).split())


def check_memory(size: int) -> None:
    """Raises ValueError if the memory here cannot hold so many bytes of arrays; a few bytes of a
    file can claim any number."""
    if size > (has := memory()):
        raise ValueError(f'its arrays would take {size:,} bytes; there are {has:,} of memory here')


def exists(path: str) -> bool:
    """Whether there is something of this name, in a folder or a bucket."""
    if not in_bucket(path):
        return os.path.exists(path)
    from etils import epath  # slower to import, and only needed for buckets

    return epath.Path(path).exists()


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
