"""Reads the files of a folder that a stranger may have made: regular files alone, of bounded size.

A FIFO would block for ever, a device has no end, and a file may claim more than memory holds.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from input_pipeline.types import DataError

MAX_IMAGE_FILE = 2**30  # bytes of one image file

_KINDS = (
    (stat.S_ISDIR, 'a directory'),
    (stat.S_ISFIFO, 'a FIFO'),
    (stat.S_ISSOCK, 'a socket'),
    (stat.S_ISCHR, 'a device'),
    (stat.S_ISBLK, 'a device'),
)


def irregular(path: str | Path) -> str:
    """Returns why a path is no regular file, such as 'it is a FIFO'; '' if it is one.

    Links are followed.
    """
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        if isinstance(error, FileNotFoundError) and os.path.islink(path):
            return 'it is a link to a file that does not exist'
        return error.strerror or str(error)
    except ValueError as error:  # a path with a null byte
        return str(error)
    if stat.S_ISREG(mode):
        return ''
    return f'it is {next((kind for is_kind, kind in _KINDS if is_kind(mode)), "a special file")}'


def expanded(path: str) -> str:
    """Returns a path that the user gave, with `~` at its start replaced by the home folder.

    Raises:
        DataError: `~name` names no user.
    """
    whole = os.path.expanduser(path)
    if whole.startswith('~'):
        raise DataError(
            f"the path '{path}' begins with the home folder of a user who does not exist; write "
            f"'./{path}' for a folder of that name."
        )
    return whole


def read(path: str | Path, limit: int) -> bytes:
    """Returns the content of a regular file.

    Raises:
        OSError: it is no regular file, it has more than `limit` bytes, or it cannot be read;
            `strerror` says which.
    """
    if reason := irregular(path):
        missing = not os.path.lexists(path)
        raise OSError(errno.ENOENT if missing else errno.EINVAL, reason, str(path))
    with open(path, 'rb') as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            reason = f'it has {size:,} bytes; at most {limit:,} are read'
            raise OSError(errno.EFBIG, reason, str(path))
        return file.read(size)


def printable(path: str | Path) -> str:
    """Returns a path as text that UTF-8 can hold; a byte that is none becomes a question mark."""
    return os.fsencode(path).decode('utf-8', 'replace')
