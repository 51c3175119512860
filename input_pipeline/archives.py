"""Reads untrusted tar and zip archives. No file is ever extracted to disk.

An archive is refused if a member's path leads outside it, or if a member is a link or a device:
nobody publishes images that way.
"""

from __future__ import annotations

import gzip
import io
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import BinaryIO

from input_pipeline.types import DataError

MAX_MEMBER = 64 * 2**20  # bytes of one image file; published images are far smaller
_NOT_REGULAR = 'a link, a device or another special file'
_DAMAGE = (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError)


def pick(source: Path, names: Sequence[str], wants: str) -> Path:
    """Returns `source` if it is a file, or the first of `names` that the folder `source` holds.

    Raises:
        DataError: there is no such file; the message ends with `wants`.
    """
    if source.is_dir():
        for name in names:
            if (source / name).is_file():
                return source / name
        raise DataError(f'{source} holds none of {", ".join(names)}; wanted: {wants}.')
    if not source.is_file():
        raise DataError(f'{source} does not exist; wanted: {wants}.')
    return source


def _refuse_unsafe(archive: Path, name: str, problem: str = '') -> None:
    parts = (*PurePosixPath(name).parts, *PureWindowsPath(name).parts)
    rooted = name.startswith(('/', '\\')) or PureWindowsPath(name).drive
    problem = problem or ('a path outside the archive' if '..' in parts or rooted else '')
    if problem:
        raise DataError(
            f'{archive} is refused: member {name!r} is {problem}; nothing was written from it.'
        )


def _damaged(archive: Path, name: str, error: object) -> DataError:
    where = f'at member {name!r}' if name else 'at its start'
    return DataError(f'{archive} is damaged {where} ({error}); download the file again.')


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


def open_tar(path: Path, start: int = 0, size: int = -1) -> BinaryIO:
    """Opens a tar file (gzipped or not), or one inside another tar file.

    Args:
        path: the outer file.
        start: offset in bytes of an inner tar file.
        size: its size in bytes; -1 opens the whole of `path`.

    Raises:
        DataError: the file cannot be opened.
    """
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
    last = ''
    try:
        tar = tarfile.TarFile(fileobj=stream, mode='r')
        tar.offset = 0  # type: ignore[attr-defined]
        while True:
            stream.seek(tar.offset)  # type: ignore[attr-defined]
            try:
                member = tarfile.TarInfo.fromtarfile(tar)
            except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
                return
            last = member.name
            regular = member.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and not member.issparse()
            if not (regular or member.isdir()) or member.size < 0:
                _refuse_unsafe(path, last, _NOT_REGULAR)
            _refuse_unsafe(path, last)
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
            f'{path}: member {name!r} has {size} bytes; at most {MAX_MEMBER} are allowed.'
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
    with zipfile.ZipFile(path) as archive:
        for name in names:
            try:
                if archive.getinfo(name).file_size > MAX_MEMBER:
                    raise DataError(f'{path}: member {name!r} is larger than an image can be.')
                data = archive.read(name)
            except (*_DAMAGE, NotImplementedError) as error:
                raise _damaged(path, name, error) from error
            yield name, data
