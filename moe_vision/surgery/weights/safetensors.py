"""Reads safetensors files.

Such a file is 8 bytes with the length of a header, the header in JSON, and the bytes of all arrays.
The header says of each array its type, its shape, and where its bytes begin and end. So a small
reader is enough, and it believes nothing that the file does not have bytes for.
"""

import math
import os

import ml_dtypes
import numpy as np

from moe_vision.common import json_values

_TYPES = {
    'F64': np.float64,
    'F32': np.float32,
    'F16': np.float16,
    'BF16': ml_dtypes.bfloat16,
    'I64': np.int64,
    'I32': np.int32,
    'I16': np.int16,
    'I8': np.int8,
    'U8': np.uint8,
    'BOOL': np.bool_,
}
_ABOUT = '__metadata__'  # the entry of the header that describes no array


def read(path: str) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file by name.

    Raises:
      ValueError: the file is not what its header says; OSError: it cannot be read.
    """
    size = os.path.getsize(path)
    with open(path, 'rb') as file:
        length = int.from_bytes(file.read(8), 'little')
        if length > min(size - 8, json_values.MAX_BYTES):
            raise ValueError(f'its header would have {length:,} bytes')
        header = json_values.parse(file.read(length))
        if not isinstance(header, dict):
            raise ValueError('its header is no dictionary')
        check_memory(size)
        data = np.frombuffer(file.read(), np.uint8)
    return {name: _array(name, entry, data) for name, entry in header.items() if name != _ABOUT}


def _array(name: str, entry: dict, data: np.ndarray) -> np.ndarray:
    dtype, shape, (begin, end) = entry['dtype'], entry['shape'], entry['data_offsets']
    if dtype not in _TYPES:
        raise ValueError(f"'{name}' is of type {dtype}; read are {', '.join(_TYPES)}")
    numbers = [*shape, begin, end]
    if not all(type(n) is int and n >= 0 for n in numbers) or end > len(data):
        raise ValueError(f"'{name}' lies outside the file")
    kind = np.dtype(_TYPES[dtype])
    if end - begin != math.prod(shape) * kind.itemsize:
        raise ValueError(f"'{name}' does not have the bytes that its shape {shape} needs")
    return data[begin:end].view(kind).reshape(shape)


def check_memory(size: int) -> None:
    """Raises ValueError if this machine cannot hold so many bytes; a few can claim any number."""
    memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
    if size > memory:
        raise ValueError(f'its arrays would take {size:,} bytes; this machine has {memory:,}')
