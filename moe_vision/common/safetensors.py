"""Reads and writes safetensors files.

Such a file is 8 bytes with the length of a header, the header in JSON, and the bytes of all arrays.
The header says of each array its type, its shape, and where its bytes begin and end. So a small
reader is enough, and it believes nothing that the file does not have bytes for.
"""

import json
import math
import os
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from moe_vision.common import json_values
from moe_vision.common.files import check_memory

_TYPES = {
    'F64': np.float64,
    'F32': np.float32,
    'F16': np.float16,
    'BF16': ml_dtypes.bfloat16,
    'I64': np.int64,
    'I32': np.int32,
    'I16': np.int16,
    'I8': np.int8,
    'U64': np.uint64,
    'U32': np.uint32,
    'U16': np.uint16,
    'U8': np.uint8,
    'BOOL': np.bool_,
}
_NAMES = {np.dtype(kind): name for name, kind in _TYPES.items()}
_ABOUT = '__metadata__'  # the entry of the header that describes no array
_HEAD = 8  # bytes of the header's length, of which the header is made a multiple


def read(path: str) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file by name.

    Raises:
      ValueError: the file is not what its header says; OSError: it cannot be read.
    """
    size = os.path.getsize(path)
    with open(path, 'rb') as file:
        _length(file.read(_HEAD), size)
        check_memory(size)
        file.seek(0)
        return parse(file.read())


def parse(data: bytes) -> dict[str, np.ndarray]:
    """`read` for the bytes of a file. The arrays are views of them."""
    begin = _HEAD + _length(data[:_HEAD], len(data))
    header = json_values.parse(data[_HEAD:begin])
    if not isinstance(header, dict):
        raise ValueError('its header is no dictionary')
    arrays = np.frombuffer(data, np.uint8, offset=begin)
    return {name: _array(name, entry, arrays) for name, entry in header.items() if name != _ABOUT}


def packed(arrays: Mapping[str, np.ndarray]) -> bytes:
    """A file that holds these arrays.

    Raises:
      KeyError: an array is of a type that such files do not have.
    """
    header, end = dict[str, Any](), 0
    # Widest types first, so that each array begins where its type may.
    ordered = sorted(arrays, key=lambda name: (-arrays[name].dtype.itemsize, name))
    for name in ordered:
        x = arrays[name]
        ends = [end, end := end + x.nbytes]
        header[name] = {'dtype': _NAMES[x.dtype], 'shape': list(x.shape), 'data_offsets': ends}
    text = json.dumps(header).encode()
    text += b' ' * (-len(text) % _HEAD)
    data = (np.ascontiguousarray(arrays[name]).tobytes() for name in ordered)
    return b''.join((len(text).to_bytes(_HEAD, 'little'), text, *data))


def _length(head: bytes, size: int) -> int:
    """The length of the header of a file of this size."""
    length = int.from_bytes(head, 'little')
    if length > min(size - _HEAD, json_values.MAX_BYTES):
        raise ValueError(f'its header would have {length:,} bytes')
    return length


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
