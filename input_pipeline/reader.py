"""Random access to the decoded images of one stored split.

Axes: N images of the stored split, H height, W width, C channels.
"""

from __future__ import annotations

import dataclasses
import functools
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from input_pipeline.cores import cores
from input_pipeline.decode import decode
from input_pipeline.types import DataError

_OPENING = threading.Lock()  # tfds' lazy imports must not be resolved by two threads at once
_SLOW_SECONDS = 1e-3  # a record in memory takes a tenth of it
_NAMES = ('key', 'file_name', 'id')  # ours, and those of stock sets

Image = np.ndarray | None  # uint8 [H, W, C]; None where the bytes cannot be decoded


@dataclasses.dataclass(frozen=True)
class Item:
    """One image as stored: pixels (None if undecodable), label, and a name for messages."""

    image: Image
    label: int
    key: str


@dataclasses.dataclass(frozen=True)
class Reader:
    """A stored split. Holds no open file, so it can be sent to another process.

    Attributes:
        directory: folder of the prepared set.
        split: stored split.
        channels: 1 or 3.
        cache: keep all images decoded in memory, shared by all readers of this process.
    """

    directory: Path
    split: str
    channels: int
    cache: bool

    def read(self, positions: Sequence[int]) -> Iterator[Item]:
        """Yields the items at stored positions, in that order, each decoded when it is asked for.

        A photograph is still in the processor's cache when it is cropped.

        Raises:
            DataError: the record files are damaged.
        """
        if self.cache:
            items = _decoded(self.directory, self.split, self.channels)
            yield from (items[i] for i in positions)
            return
        try:
            for record, position in zip(self._raw(positions), positions, strict=True):
                yield self._item(record, position)
        except (OSError, RuntimeError, ValueError, TypeError, LookupError) as error:
            reason = ' '.join(str(error).split())
            raise DataError(
                f"records of split '{self.split}' in {self.directory} are damaged ({reason}); "
                'remove the folder and prepare the set again.'
            ) from error

    def _raw(self, positions: Sequence[int]) -> Iterator[bytes]:
        """One by one, for less of the processor, until two in a row wait; then the rest at once.

        Two: one alone may have waited for another thread of this process, not for storage.
        """
        records, waits = _records(self.directory, self.split), 0
        for done, position in enumerate(positions, 1):
            began = time.perf_counter()
            record = records[position]
            waits = waits + 1 if time.perf_counter() - began > _SLOW_SECONDS else 0
            yield record
            if waits == 2 and done < len(positions):
                yield from records.__getitems__(list(positions[done:]))
                return

    def _item(self, record: bytes, position: int) -> Item:
        # tfds' own parser also casts, checks and nests every field: several times the work
        from tensorflow_datasets.proto import tf_example_pb2

        proto: Any = tf_example_pb2
        fields = proto.Example.FromString(record).features.feature
        name = next((fields[n].bytes_list.value[0] for n in _NAMES if n in fields), b'')
        return Item(
            decode(fields['image'].bytes_list.value[0], self.channels),
            int(fields['label'].int64_list.value[0]),
            name.decode('utf-8', 'replace') or f'record {position} of {self.split}',
        )


def _records(directory: Path, split: str) -> Any:
    with _OPENING:
        return _opened(directory, split)


@functools.cache
def _opened(directory: Path, split: str) -> Any:
    import cv2

    from input_pipeline.storage import records

    cv2.setNumThreads(0)  # images are decoded in parallel already
    return records(directory, split)


@functools.lru_cache(maxsize=4)
def _decoded(directory: Path, split: str, channels: int) -> list[Item]:
    """Decodes a whole stored split, in parallel, and keeps it."""
    source = Reader(directory, split, channels, cache=False)
    size = len(_records(directory, split))
    chunks = [range(i, min(i + 256, size)) for i in range(0, size, 256)]
    with ThreadPoolExecutor(cores()) as pool:
        parts = pool.map(lambda chunk: list(source.read(chunk)), chunks)
        return [item for part in parts for item in part]
