"""Encodes rows of metrics as a TensorBoard events file."""

import math
import struct
import time
from typing import Any


def encode(rows: list[dict[str, Any]]) -> bytes:
    """The bytes of an events file that holds every finite number of the rows as 'SPLIT/NAME'."""
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.proto.summary_pb2 import Summary

    now = time.time()
    out = [Event(wall_time=now, file_version='brain.Event:2')]
    for row in rows:
        values = [
            Summary.Value(tag=f'{row["split"]}/{name}', simple_value=value)
            for name, value in flat(row)
            if math.isfinite(value)
        ]
        out.append(Event(wall_time=now, step=row['step'], summary=Summary(value=values)))
    return b''.join(_record(event.SerializeToString()) for event in out)


def _record(data: bytes) -> bytes:
    """Frames data as a TFRecord: its length, a checksum of that, the data, a checksum of that."""
    from tensorboardX.record_writer import masked_crc32c

    length = struct.pack('<Q', len(data))
    return (
        length
        + struct.pack('<I', masked_crc32c(length))
        + data
        + struct.pack('<I', masked_crc32c(data))
    )


def flat(row: dict[str, Any], prefix: str = '') -> list[tuple[str, float]]:
    """('layers/block_3/drop_rate', 0.1) for every number of a row, except for step and probe."""
    out: list[tuple[str, float]] = []
    for key, value in row.items():
        name = f'{prefix}{key}'
        if isinstance(value, dict) and name != 'probe':
            out += flat(value, f'{name}/')
        elif isinstance(value, list):
            out += [(f'{name}/{i}', v) for i, v in enumerate(value)]
        elif isinstance(value, (int, float)) and name != 'step':
            out.append((name, value))
    return out
