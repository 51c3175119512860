"""Shards of records on their way: each is whole or not there, has a digest, and is kept.

The folder of an unfinished set holds its record files and, in `.made`, what is known of each one
that is done. A later preparation from the same files goes on from there.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from input_pipeline.builder import Example
from input_pipeline.cores import cores
from input_pipeline.decode import readable

_MADE = '.made'
_LAYOUT = 1  # of the records; another one makes them anew
_CHECKED_AT_ONCE = 64  # images that wait to be decoded


@dataclasses.dataclass(frozen=True)
class Written:
    """What is known of a shard that is done.

    Attributes:
        images: records in it.
        bytes: size of the file.
        digest: sha256 of the names, labels and encoded images, in order.
        unreadable: names of the images that cannot be decoded.
    """

    images: int
    bytes: int
    digest: str
    unreadable: tuple[str, ...]


class Unfinished:
    """The folder of a set on its way.

    Args:
        folder: where; what is there of another `identity` is removed.
        identity: of what the records are made from.
    """

    def __init__(self, folder: Path, identity: str) -> None:
        self.folder, self._made = folder, folder / _MADE
        told = self._made / 'identity'
        if not (told.is_file() and told.read_text() == identity):
            shutil.rmtree(folder, ignore_errors=True)
            self._made.mkdir(parents=True)
            told.write_text(identity)

    def note(self, name: str, value: Any) -> None:
        """Keeps a JSON value under a name; whole or not at all."""
        part = self._made / f'{name}.part'
        part.write_text(json.dumps(value))
        part.rename(self._made / f'{name}.json')

    def noted(self, name: str) -> Any:
        """What was kept under the name, or None."""
        try:
            return json.loads((self._made / f'{name}.json').read_text())
        except (OSError, ValueError):
            return None

    def kept(self, file: str) -> Written | None:
        """What an earlier preparation wrote under this name, if it is whole."""
        found = self.noted(file)
        path = self.folder / file
        if not found or not path.is_file() or path.stat().st_size != found['bytes']:
            return None
        return Written(**(found | {'unreadable': tuple(found['unreadable'])}))

    def write(self, file: str, examples: Iterable[Example]) -> Written:
        """Writes one shard, one example in memory at a time.

        Raises:
            OSError: it cannot be written, for instance because the disk is full.
        """
        done = _write(self.folder / file, examples)
        self.note(file, dataclasses.asdict(done))
        return done

    def finish(self, final: Path) -> None:
        """Gives the folder its name; nothing is unfinished in it."""
        self.folder.rename(final)
        shutil.rmtree(final / _MADE, ignore_errors=True)

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def identity(files: Sequence[Path], *facts: Any) -> str:
    """Changes when one of the files, or of the facts, does. Files are not read."""
    of = hashlib.sha256(repr((_LAYOUT, facts)).encode())
    for path in files:
        about = path.stat()
        of.update(repr((str(path), about.st_size, about.st_mtime_ns)).encode())
    return of.hexdigest()


def digest(class_names: Sequence[str], splits: dict[str, list[Written]]) -> str:
    """sha256 of a set: its class names, and the digests of the shards of each split, in order."""
    parts = {split: [w.digest for w in shards] for split, shards in splits.items()}
    return hashlib.sha256(json.dumps([list(class_names), parts]).encode()).hexdigest()


def _write(path: Path, examples: Iterable[Example]) -> Written:
    from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

    images, of = 0, hashlib.sha256()
    unreadable: list[str] = []
    checks: collections.deque[tuple[str, Future[bool]]] = collections.deque()

    def settle(most: int) -> None:
        while len(checks) > most:
            name, check = checks.popleft()
            if not check.result():
                unreadable.append(name)

    writer = ArrayRecordWriter(str(path), 'group_size:1,uncompressed')  # images are compressed
    try:
        with ThreadPoolExecutor(cores()) as pool:
            for key, encoded, label in examples:
                for part in (key.encode(), str(label).encode(), encoded):
                    of.update(len(part).to_bytes(8, 'big') + part)
                writer.write(_record(key, encoded, label))
                if not writer.ok():
                    break  # closing says why
                images += 1
                checks.append((key, pool.submit(readable, encoded)))
                settle(_CHECKED_AT_ONCE)
            settle(0)
    finally:
        try:
            writer.close()
        except RuntimeError as error:  # array_record has no other
            raise OSError(' '.join(str(error).split())) from error
    with path.open('rb') as file:
        os.fsync(file.fileno())
    if ArrayRecordReader(str(path)).num_records() != images:
        raise OSError(f'{path.name} does not hold the {images} records written to it')
    return Written(images, path.stat().st_size, of.hexdigest(), tuple(unreadable))


def _record(key: str, encoded: bytes, label: int) -> bytes:
    """One tf.Example, as tfds reads it."""
    from tensorflow_datasets.proto import tf_example_pb2

    proto: Any = tf_example_pb2
    example = proto.Example()
    fields = example.features.feature
    fields['image'].bytes_list.value.append(encoded)
    fields['key'].bytes_list.value.append(key.encode())
    fields['label'].int64_list.value.append(label)
    return example.SerializeToString()
