"""Checks whether the files of a source are the published ones, by size and MD5."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from input_pipeline.types import Report

_CHUNK = 16 * 2**20  # bytes read at once


@dataclasses.dataclass(frozen=True)
class Source:
    """A file that a set is prepared from.

    Attributes:
        name: file name.
        bytes: file size.
        md5: MD5 of the content; None if the size already differs from the published one.
        published: whether size and MD5 are the published ones.
    """

    name: str
    bytes: int
    md5: str | None
    published: bool

    def warning(self) -> str:
        """Returns a warning for the user; '' if this is the published file."""
        if self.published:
            return ''
        difference = f'MD5 {self.md5}' if self.md5 else f'{self.bytes:,} bytes'
        return f'{self.name} is not the published file: it has {difference}'


def compare(
    files: Sequence[Path], known: Mapping[str, tuple[int, str]], report: Report
) -> list[Source]:
    """Compares each file whose name is known with the published file.

    Args:
        files: files of a source.
        known: name -> published (bytes, MD5). A file is read only if its size matches.
        report: receives the progress of reading.
    """
    sources = []
    for path in files:
        if path.name not in known:
            continue
        published_size, published_md5 = known[path.name]
        size = path.stat().st_size
        md5 = _md5(path, report) if size == published_size else None
        sources.append(Source(path.name, size, md5, md5 == published_md5))
    return sources


def _md5(path: Path, report: Report) -> str:
    md5, done, size = hashlib.md5(usedforsecurity=False), 0, path.stat().st_size
    with path.open('rb') as file:
        while data := file.read(_CHUNK):
            md5.update(data)
            done += len(data)
            report.bytes(path.name, done, size)
    return md5.hexdigest()
