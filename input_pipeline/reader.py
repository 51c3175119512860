"""Reads and decodes images of one stored split, in any order.

Axes: H height, W width, C channels.
"""

from __future__ import annotations

import dataclasses
import functools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from input_pipeline.cores import cores
from input_pipeline.decode import decode
from input_pipeline.image_size import named
from input_pipeline.types import DataError

# Two threads must not open the same files at once, nor resolve tfds' lazy imports: they would wait
# for each other for ever.
_OPENING = threading.Lock()
_DECODING = threading.Lock()  # of a whole split: one thread does it, and the others wait
_SLOW_SECONDS = 1e-3  # ten times what a record in memory takes
_NAME_FIELDS = ('key', 'file_name', 'id')  # ours, then those of sets that tfds prepares
_CHUNK = 256  # images that a thread of `read_all` takes at a time

_T = TypeVar('_T')
Image = np.ndarray | None  # uint8 [H, W, C]; None if the bytes cannot be decoded


@dataclasses.dataclass(frozen=True)
class Item:
    """A stored image, its label, and its name for messages (with its size if it is too large)."""

    image: Image
    label: int
    key: str


@dataclasses.dataclass(frozen=True)
class Reader:
    """A stored split. It holds no open file, so it can be sent to another process.

    Attributes:
        directory: folder of the prepared set.
        split: name of the stored split.
        channels: 1 or 3.
        classes: labels are 0 to classes - 1.
        cache: decode the whole split once and share it among the readers of this process.
    """

    directory: Path
    split: str
    channels: int
    classes: int
    cache: bool

    def read(self, positions: Sequence[int]) -> Iterator[Item]:
        """Yields the items at stored positions, in that order.

        Each is decoded only when it is taken, so that it is still in the processor's cache when
        it is cropped.

        Raises:
            DataError: the record files are damaged, or a label is none of a class.
        """
        if self.cache:
            with _DECODING:
                items = _decoded(dataclasses.replace(self, cache=False))
            yield from (items[i] for i in positions)
            return
        try:
            for record, position in zip(self._raw(positions), positions, strict=True):
                yield self._item(record, position)
        except DataError:
            raise
        except Exception as error:  # array_record and protobuf list none
            reason = ' '.join(str(error).split())
            raise DataError(
                f"records of split '{self.split}' in {self.directory} are damaged ({reason}); "
                'remove the folder and prepare the set again.'
            ) from error

    def read_all(self, positions: Sequence[int], keep: Callable[[Item], _T]) -> Iterator[_T]:
        """Yields `keep(item)` for what `read` yields, read ahead by one thread per processor."""
        chunks = [positions[i : i + _CHUNK] for i in range(0, len(positions), _CHUNK)]
        with ThreadPoolExecutor(cores()) as pool:
            for kept in pool.map(lambda chunk: list(map(keep, self.read(chunk))), chunks):
                yield from kept

    def _raw(self, positions: Sequence[int]) -> Iterator[bytes]:
        """Yields records one by one until storage is slow, then reads all the rest at once.

        Reading one by one costs less processor time. Storage counts as slow after two slow
        reads in a row: a single one may have waited for another thread of this process.
        """
        records, slow_reads = _records(self.directory, self.split), 0
        for count, position in enumerate(positions, 1):
            start = time.perf_counter()
            record = records[position]
            slow_reads = slow_reads + 1 if time.perf_counter() - start > _SLOW_SECONDS else 0
            yield record
            if slow_reads == 2 and count < len(positions):
                yield from records.__getitems__(list(positions[count:]))
                return

    def _item(self, record: bytes, position: int) -> Item:
        # tfds' own parser also casts, checks and nests every field: it takes several times longer
        fields = _example().FromString(record).features.feature
        encoded = fields['image'].bytes_list.value[0]
        name = next((fields[n].bytes_list.value[0] for n in _NAME_FIELDS if n in fields), b'')
        key = name.decode('utf-8', 'replace') or f'record {position} of {self.split}'
        image = decode(encoded, self.channels)
        label = int(fields['label'].int64_list.value[0])
        if not 0 <= label < self.classes:
            raise DataError(
                f"'{key}' in {self.directory} has label {label}, but its {self.classes} classes "
                f'are 0 to {self.classes - 1}; prepare the set again with labels for all images.'
            )
        return Item(image, label, named(key, encoded) if image is None else key)


@functools.cache
def _example() -> Any:
    from tensorflow_datasets.proto import tf_example_pb2

    proto: Any = tf_example_pb2
    return proto.Example


def _records(directory: Path, split: str) -> Any:
    with _OPENING:
        return _opened(directory, split)


@functools.cache
def _opened(directory: Path, split: str) -> Any:
    import cv2

    from input_pipeline.storage import records

    cv2.setNumThreads(0)  # we already decode images in parallel
    _example()
    return records(directory, split)


@functools.lru_cache(maxsize=4)
def _decoded(reader: Reader) -> list[Item]:
    positions = range(len(_records(reader.directory, reader.split)))
    return list(reader.read_all(positions, lambda item: item))
