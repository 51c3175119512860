"""Reads untrusted tar and zip archives. No file is ever extracted to disk.

An archive is refused if a member's path leads outside it, or if a member is a link or a device:
nobody publishes images that way.
"""

from __future__ import annotations

import gzip
import io
import os
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import BinaryIO

from input_pipeline.files import irregular, read
from input_pipeline.types import DataError

MAX_MEMBER = 64 * 2**20  # bytes of one image file; published images are far smaller
_NOT_REGULAR = 'a link, a device or another special file'
_MAX_TEXT = 2**24  # bytes of a list of labels
_MAX_HEADER = 2**15  # bytes of all headers of one member of a tar; its path has at most 4,096
_MAX_MEMBERS = 2**22  # of a tar; ImageNet's largest has 50,000
_MAX_NAME = 200  # characters of a member's name in a message
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # others unpack without a limit
_DAMAGE = (  # whatever these modules raise for bytes that make no sense
    *(tarfile.TarError, zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError),
    *(RuntimeError, ValueError, ArithmeticError, LookupError),
)


def pick(source: Path, names: Sequence[str], wants: str) -> Path:
    """Returns `source` if it is a file, or the first of `names` that the folder `source` holds.

    Raises:
        DataError: there is no such file; the message ends with `wants`.
    """
    if source.is_dir():
        for name in names:
            if is_there(source / name):
                return source / name
        raise DataError(f'{source} holds none of {", ".join(names)}; wanted: {wants}.')
    if not is_there(source):
        raise DataError(f'{source} does not exist; wanted: {wants}.')
    return source


def is_there(path: Path) -> bool:
    """Whether there is a regular file of this name.

    Raises:
        DataError: something else has the name, such as a FIFO, which would block its reader.
    """
    if not os.path.lexists(path):
        return False
    if reason := irregular(path):
        raise DataError(f'{path} cannot be read: {reason}.')
    return True


def read_text(path: Path) -> str:
    """Returns the content of a text file; bytes that are no UTF-8 become question marks.

    Raises:
        DataError: it is no regular file, it is too long, or it cannot be read.
    """
    try:
        return read(path, _MAX_TEXT).decode('utf-8', 'replace')
    except OSError as error:
        raise DataError(f'{path} cannot be read: {error.strerror}.') from error


def _refuse_unsafe(archive: Path, name: str, problem: str = '') -> None:
    parts = (*PurePosixPath(name).parts, *PureWindowsPath(name).parts)
    rooted = name.startswith(('/', '\\')) or PureWindowsPath(name).drive
    if not problem and ('..' in parts or rooted):
        problem = 'a path outside the archive'
    if not problem and any('\ud800' <= c <= '\udfff' for c in name):
        problem = 'a name that is not UTF-8'
    if problem:
        raise DataError(
            f'{archive} is refused: member {_shown(name)} is {problem}; nothing was written from '
            'it.'
        )


def _shown(name: str) -> str:
    return repr(name if len(name) <= _MAX_NAME else f'{name[:_MAX_NAME]}...')


def _damaged(archive: Path, name: str, error: object) -> DataError:
    where = f'at member {_shown(name)}' if name else 'at its start'
    reason = ' '.join(str(error).split())[:_MAX_NAME] or type(error).__name__
    return DataError(f'{archive} is damaged {where} ({reason}); download the file again.')


class _Window(io.RawIOBase):
    """Presents `size` bytes of a file, from offset `start`, as a file."""

    def __init__(self, file: BinaryIO, start: int, size: int) -> None:
        self._file, self._start, self._size, self._position = file, start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._position}.get(whence, self._size)
        self._position = origin + offset
        return self._position

    def read(self, size: int = -1) -> bytes:
        left = max(0, self._size - self._position)
        self._file.seek(self._start + self._position)
        data = self._file.read(left if size < 0 else min(size, left))
        self._position += len(data)
        return data

    def close(self) -> None:
        self._file.close()
        super().close()


class _Headers(io.RawIOBase):
    """Hands `tarfile` the headers of a tar, but not more bytes of them than a member can need.

    A header states its own length, and `tarfile` would read as much into memory.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self._left = stream, _MAX_HEADER

    def start(self, offset: int) -> None:
        """Goes to the first header of a member."""
        self._left = _MAX_HEADER
        self._stream.seek(offset)

    def tell(self) -> int:
        return self._stream.tell()

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._stream.seek(offset, whence)

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= self._left:
            raise tarfile.ReadError(f'a header of more than {_MAX_HEADER:,} bytes')
        self._left -= size
        return self._stream.read(size)


def open_tar(path: Path, start: int = 0, size: int = -1) -> BinaryIO:
    """Opens a tar file (gzipped or not), or one inside another tar file.

    Args:
        path: the outer file.
        start: offset in bytes of an inner tar file.
        size: its size in bytes; -1 opens the whole of `path`.

    Raises:
        DataError: the file cannot be opened.
    """
    if not is_there(path):
        raise DataError(f'{path} does not exist.')
    try:
        file = path.open('rb')
    except OSError as error:
        raise DataError(f'{path} cannot be read: {error.strerror}.') from error
    if size >= 0:
        return _Window(file, start, size)  # type: ignore[return-value]
    gzipped = file.read(2) == b'\x1f\x8b'
    file.seek(0)
    return gzip.GzipFile(fileobj=file) if gzipped else file  # type: ignore[return-value]


def tar_members(stream: BinaryIO, path: Path) -> Iterator[tarfile.TarInfo]:
    """Yields the regular files of an open tar; their data starts at `offset_data`.

    `tarfile` itself takes a broken header for the end of the archive; this raises an error.

    Raises:
        DataError: a member is unsafe, or the archive is damaged; the message names the member.
    """
    last, count = '', 0
    try:
        headers = _Headers(stream)
        tar = tarfile.TarFile(fileobj=headers, mode='r')  # type: ignore[arg-type]
        tar.offset = 0  # type: ignore[attr-defined]
        while True:
            headers.start(tar.offset)  # type: ignore[attr-defined]
            try:
                member = tarfile.TarInfo.fromtarfile(tar)
            except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
                return
            last = member.name
            regular = member.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and not member.issparse()
            if not (regular or member.isdir()) or member.size < 0:
                _refuse_unsafe(path, last, _NOT_REGULAR)
            _refuse_unsafe(path, last)
            if (count := count + 1) > _MAX_MEMBERS:
                raise DataError(f'{path} is refused: it has over {_MAX_MEMBERS:,} members.')
            if regular:
                yield member
    except _DAMAGE as error:
        raise _damaged(path, last, error) from error


def read_at(stream: BinaryIO, path: Path, name: str, start: int, size: int) -> bytes:
    """Returns the `size` bytes of member `name`, from offset `start`.

    Raises:
        DataError: the member is larger than an image can be, or the archive ends inside it.
    """
    if size > MAX_MEMBER:
        raise DataError(
            f'{path}: member {_shown(name)} has {size} bytes; at most {MAX_MEMBER} are allowed.'
        )
    try:
        stream.seek(start)
        data = stream.read(size)
    except _DAMAGE as error:
        raise _damaged(path, name, error) from error
    if len(data) != size:
        raise _damaged(path, name, 'it ends early')
    return data


def tar_files(path: Path, start: int = 0, size: int = -1) -> Iterator[tuple[str, bytes]]:
    """Yields (name, bytes) of each file of a tar, holding one in memory at a time."""
    with open_tar(path, start, size) as stream:
        for member in tar_members(stream, path):
            yield member.name, read_at(stream, path, member.name, member.offset_data, member.size)


Place = tuple[str, int, int]  # (name, offset, size) of a member inside its archive


def tar_places(path: Path) -> list[Place]:
    """Returns the place of each file of a tar without reading the files."""
    with open_tar(path) as stream:
        return [(m.name, m.offset_data, m.size) for m in tar_members(stream, path)]


def tar_read(path: Path, places: Iterable[Place]) -> Iterator[tuple[str, bytes]]:
    """Yields (name, bytes) of the members at `places`, holding one in memory at a time."""
    with open_tar(path) as stream:
        for name, start, size in places:
            yield name, read_at(stream, path, name, start, size)


def zip_names(path: Path) -> list[str]:
    """Returns the names of the files in a zip.

    Raises:
        DataError: it is not a zip, it is damaged, or a member is unsafe.
    """
    if not is_there(path):
        raise DataError(f'{path} does not exist.')
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except _DAMAGE as error:
        raise _damaged(path, '', error) from error
    for member in members:
        kind = stat.S_IFMT(member.external_attr >> 16)
        regular = kind in (0, stat.S_IFREG, stat.S_IFDIR)
        _refuse_unsafe(path, member.filename, '' if regular else _NOT_REGULAR)
    return [m.filename for m in members if not m.is_dir()]


def zip_read(path: Path, names: Iterable[str]) -> Iterator[tuple[str, bytes]]:
    """Yields (name, bytes) of the members called `names`, holding one in memory at a time."""
    with zipfile.ZipFile(path) as archive:  # `zip_names` has read it
        for name in names:
            try:
                member = archive.getinfo(name)
                if member.file_size > MAX_MEMBER:
                    raise DataError(
                        f'{path}: member {_shown(name)} has {member.file_size} bytes; at most '
                        f'{MAX_MEMBER} are allowed.'
                    )
                if member.compress_type not in _METHODS:
                    raise _damaged(path, name, 'neither stored nor deflated')
                with archive.open(member) as file:  # `archive.read` unpacks more than is declared
                    data = file.read(member.file_size + 1)
            except _DAMAGE as error:
                raise _damaged(path, name, error) from error
            if len(data) != member.file_size:
                raise _damaged(path, name, 'it ends early')
            yield name, data
