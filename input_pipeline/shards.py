"""Writes the record files (shards) of a set that is not finished, so that it can be resumed.

The folder of an unfinished set holds its record files. Its subfolder `.made` notes each finished
one. A later preparation from the same source files keeps the finished ones and writes the rest.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from input_pipeline import json_data
from input_pipeline.builder import Example
from input_pipeline.cores import cores
from input_pipeline.decode import readable
from input_pipeline.image_size import image_size, named

_NOTES = '.made'
_LAYOUT = 2  # of records and notes; raise it when they change: older ones are written again
_MAX_PENDING = 64  # images that wait to be checked


@dataclasses.dataclass(frozen=True)
class Written:
    """What is known about a finished shard.

    Attributes:
        images: number of records.
        bytes: size of the file.
        digest: sha256 of the names, labels and encoded images, in order.
        unreadable: names of the images that cannot be decoded; with its size where
            that is why.
        unreadable_at: their places in the shard.
        pixels: width times height, summed over the images that can be decoded.
    """

    images: int
    bytes: int
    digest: str
    unreadable: tuple[str, ...]
    unreadable_at: tuple[int, ...] = ()
    pixels: int = 0


class Unfinished:
    """The folder of a set that is being prepared.

    Args:
        folder: its path. A folder left there with another `identity` is removed.
        identity: hash of the source and of the layout of the records, from `identity()`.
    """

    def __init__(self, folder: Path, identity: str) -> None:
        self.folder, self._notes = folder, folder / _NOTES
        path = self._notes / 'identity'
        if not (path.is_file() and path.read_text() == identity):
            shutil.rmtree(folder, ignore_errors=True)
            self._notes.mkdir(parents=True)
            path.write_text(identity)

    def note(self, name: str, value: Any) -> None:
        """Saves a JSON value under a name. An interruption leaves no partial file."""
        part = self._notes / f'{name}.part'
        part.write_text(json.dumps(value))
        part.rename(self._notes / f'{name}.json')

    def noted(self, name: str) -> Any:
        """Returns the value saved under a name, or None."""
        try:
            return json_data.read(self._notes / f'{name}.json')
        except (OSError, ValueError):
            return None

    def kept(self, file: str) -> Written | None:
        """Returns what an earlier preparation noted about a shard, or None if it is not whole."""
        path = self.folder / file
        try:
            written = Written(**self.noted(file))
            written = dataclasses.replace(
                written,
                unreadable=tuple(written.unreadable),
                unreadable_at=tuple(written.unreadable_at),
            )
        except TypeError:  # there is no note, or not one of ours
            return None
        return written if path.is_file() and path.stat().st_size == written.bytes else None

    def write(self, file: str, examples: Iterable[Example]) -> Written:
        """Writes one shard, holding one example in memory at a time.

        Raises:
            OSError: it cannot be written, for instance because the disk is full.
        """
        written = _write(self.folder / file, examples)
        self.note(file, dataclasses.asdict(written))
        return written

    def finish(self, final: Path) -> None:
        """Renames the folder to `final` and removes the notes."""
        self.folder.rename(final)
        shutil.rmtree(final / _NOTES, ignore_errors=True)

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def identity(files: Sequence[Path], *facts: Any) -> str:
    """Returns a hash of the facts and of each file's path, size and time; reads no file."""
    sha256 = hashlib.sha256(repr((_LAYOUT, facts)).encode())
    for path in files:
        stat = path.stat()
        sha256.update(repr((str(path), stat.st_size, stat.st_mtime_ns)).encode())
    return sha256.hexdigest()


def digest(class_names: Sequence[str], splits: dict[str, list[Written]]) -> str:
    """Returns the sha256 of a set: of its class names and the digests of its shards, in order."""
    parts = {split: [w.digest for w in shards] for split, shards in splits.items()}
    return hashlib.sha256(json.dumps([list(class_names), parts]).encode()).hexdigest()


def _write(path: Path, examples: Iterable[Example]) -> Written:
    from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

    images, pixels, sha256 = 0, 0, hashlib.sha256()
    unreadable: dict[int, str] = {}
    checks: collections.deque[tuple[int, str, int, Future[bool]]] = collections.deque()

    def finish_checks(pending: int) -> None:
        nonlocal pixels
        while len(checks) > pending:
            place, name, area, check = checks.popleft()
            if check.result():
                pixels += area
            else:
                unreadable[place] = name

    writer = ArrayRecordWriter(str(path), 'group_size:1,uncompressed')  # images are compressed
    try:
        with ThreadPoolExecutor(cores()) as pool:
            for key, encoded, label in examples:
                for part in (key.encode(), str(label).encode(), encoded):
                    sha256.update(len(part).to_bytes(8, 'big') + part)
                writer.write(_record(key, encoded, label))
                if not writer.ok():
                    break  # writer.close() raises the reason
                area = math.prod(image_size(encoded) or (0,))
                check = pool.submit(readable, encoded)
                checks.append((images, named(key, encoded), area, check))
                images += 1
                finish_checks(_MAX_PENDING)
            finish_checks(0)
    finally:
        try:
            writer.close()
        except RuntimeError as error:  # array_record raises no other kind
            raise OSError(' '.join(str(error).split())) from error
    with path.open('rb') as file:
        os.fsync(file.fileno())
    if ArrayRecordReader(str(path)).num_records() != images:
        raise OSError(f'{path.name} does not hold the {images} records written to it')
    return Written(
        images=images,
        bytes=path.stat().st_size,
        digest=sha256.hexdigest(),
        unreadable=tuple(unreadable.values()),
        unreadable_at=tuple(unreadable),
        pixels=pixels,
    )


def _record(key: str, encoded: bytes, label: int) -> bytes:
    """Serialises one tf.Example in the layout that tfds reads."""
    from tensorflow_datasets.proto import tf_example_pb2

    proto: Any = tf_example_pb2
    example = proto.Example()
    fields = example.features.feature
    fields['image'].bytes_list.value.append(encoded)
    fields['key'].bytes_list.value.append(key.encode())
    fields['label'].int64_list.value.append(label)
    return example.SerializeToString()
