"""Whether the files of a source are the ones that were published."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from input_pipeline.types import Report

_CHUNK = 16 * 2**20  # bytes read at once


@dataclasses.dataclass(frozen=True)
class Source:
    """A file that a set is made from.

    Attributes:
        name: of the file.
        bytes: its size.
        md5: None where its size already tells.
        published: whether it is the published file.
    """

    name: str
    bytes: int
    md5: str | None
    published: bool

    def warning(self) -> str:
        """What to tell the user; '' where it is the published file."""
        if self.published:
            return ''
        told = f'has MD5 {self.md5}' if self.md5 else f'has {self.bytes:,} bytes'
        return f'{self.name} is not the published file: it {told}'


def compare(
    files: Sequence[Path], known: Mapping[str, tuple[int, str]], report: Report
) -> list[Source]:
    """Says of each file with a known name whether it is the published one.

    Args:
        files: of a source.
        known: name -> (bytes, MD5). A file of that size is read to its end; of another it is not.
        report: is told how much was read.
    """
    found = []
    for path in files:
        if path.name not in known:
            continue
        size, wanted = known[path.name]
        actual = path.stat().st_size
        md5 = _md5(path, report) if actual == size else None
        found.append(Source(path.name, actual, md5, md5 == wanted))
    return found


def _md5(path: Path, report: Report) -> str:
    of, done, size = hashlib.md5(usedforsecurity=False), 0, path.stat().st_size
    with path.open('rb') as file:
        while data := file.read(_CHUNK):
            of.update(data)
            done += len(data)
            report.bytes(path.name, done, size)
    return of.hexdigest()
