"""Reads the checkpoints that were published with V-MoE (Riquelme et al. 2021).

A checkpoint is NAME.index and NAME.data-i-of-n, in msgpack. The index is a tree of names; each leaf
says the shape of an array, into which boxes it was cut, and in which data file each box lies. A
data file maps the number of a leaf to its boxes: flat pieces of the values, and the box. msgpack's
own types are extended by numbers: 1 is an array, 3 a scalar, 6 a box, 8 a leaf of the index.

Leaves are numbered in the order of sorted names. An index without a version was written when they
had the order of a training state: step, params, opt_state, rngs, each in sorted order.
"""

import dataclasses
import math
import os
from collections.abc import Iterator, Mapping
from typing import Any

import ml_dtypes
import msgpack
import numpy as np

from moe_vision.common.files import check_memory

_ARRAY, _SCALAR, _BOX, _LEAF = 1, 3, 6, 8
_PIECES = '__msgpack_array_chunk_a87ca2__'  # marks a dictionary of boxes
_TRAIN_STATE = ('step', 'params', 'opt_state', 'rngs')
_PARAMS = 'params'
_DEEPEST = 100
_TYPES = ('float64', 'float32', 'float16', 'int64', 'int32', 'uint32', 'uint8', 'bool')

Box = tuple[tuple[int, int], ...]  # where it begins and ends, of each axis


@dataclasses.dataclass(frozen=True)
class _Leaf:
    shape: tuple[int, ...]
    dtype: np.dtype
    boxes: tuple[Box, ...]
    files: tuple[int, ...]  # the number of the data file that holds each box


def read(prefix: str) -> dict[str, np.ndarray]:
    """The parameters of a checkpoint by path, such as 'Encoder/encoder_norm/scale'.

    Args:
      prefix: path of the checkpoint without '.index'.

    Raises:
      ValueError: the files are damaged or do not fit each other; OSError: one cannot be read.
    """
    index = _load(f'{prefix}.index')
    count, tree = index['shard_count'], index['index']
    names = sorted(tree)
    orders = [names]
    if index.get('version') is None and set(names) <= set(_TRAIN_STATE):
        orders.insert(0, [name for name in _TRAIN_STATE if name in tree])
    numbered = [[leaf for name in order for leaf in _leaves(tree[name], name)] for order in orders]
    wanted = {name for name, _ in numbered[0] if name.startswith(f'{_PARAMS}/')}
    wanted = wanted or {name for name, _ in numbered[0]}
    found = {name: leaf for name, leaf in numbered[0] if name in wanted}
    check_memory(sum(math.prod(x.shape) * x.dtype.itemsize for x in found.values()))
    arrays = {name: np.zeros(leaf.shape, leaf.dtype) for name, leaf in found.items()}
    missing = {name: set(leaf.boxes) for name, leaf in found.items()}
    for file in sorted({n for leaf in found.values() for n in leaf.files}):
        pieces = _load(f'{prefix}.data-{file:05d}-of-{count:05d}')
        numbered = [order for order in numbered if _fits(order, pieces)]
        if not numbered:
            raise ValueError(f'data file {file} does not hold the boxes that the index names')
        for number, (name, _) in enumerate(numbered[0]):
            for values, box in pieces.get(str(number), ()) if name in wanted else ():
                arrays[name][tuple(slice(*ends) for ends in box)] = _joined(values, box)
                missing[name].discard(box)
    if lost := sorted(name for name, boxes in missing.items() if boxes):
        raise ValueError(f"parts of '{lost[0]}' are in none of its data files")
    return {name.removeprefix(f'{_PARAMS}/'): x for name, x in arrays.items()}


def _load(path: str) -> Any:
    check_memory(os.path.getsize(path))
    with open(path, 'rb') as file:
        data = file.read()
    try:
        return msgpack.unpackb(data, ext_hook=_extended, raw=False)
    except msgpack.exceptions.UnpackException as e:
        raise ValueError(f'{os.path.basename(path)} is no msgpack ({type(e).__name__})') from e


def _extended(code: int, data: bytes) -> Any:
    if code in (_ARRAY, _SCALAR):
        shape, dtype, values = msgpack.unpackb(data, raw=True)
        return np.frombuffer(values, _dtype(dtype)).reshape(shape)
    if code == _BOX:
        return _box(data)
    if code == _LEAF:
        about, boxes, files = msgpack.unpackb(data, raw=True)
        shape, dtype, *_ = msgpack.unpackb(about, raw=True)
        boxes = tuple(map(_box, boxes))
        if len(boxes) != len(files) or not all(type(n) is int and n >= 0 for n in (*shape, *files)):
            raise ValueError('a leaf of its index cannot be')
        if sum(math.prod(end - begin for begin, end in box) for box in boxes) != math.prod(shape):
            raise ValueError('the boxes of an array do not fill it')
        return _Leaf(tuple(shape), _dtype(dtype), boxes, tuple(files))
    raise ValueError(f'it holds a value of the unknown type {code}')


def _dtype(name: bytes) -> np.dtype:
    text = name.decode()
    if text == 'bfloat16':
        return np.dtype(ml_dtypes.bfloat16)
    if text not in _TYPES:
        raise ValueError(f'an array is of type {text[:40]}')
    return np.dtype(text)


def _box(data: bytes) -> Box:
    axes = [msgpack.unpackb(axis) for axis in msgpack.unpackb(data, raw=True)]
    if not all(step in (None, 1) for _, _, step in axes):
        raise ValueError('a box of an array has gaps')
    return tuple((int(begin or 0), int(end)) for begin, end, _ in axes)


def _leaves(tree: Any, path: str, depth: int = 0) -> Iterator[tuple[str, _Leaf]]:
    """(path, leaf) in the order in which jax flattens a dictionary."""
    if isinstance(tree, _Leaf):
        yield path, tree
    elif isinstance(tree, Mapping) and depth < _DEEPEST:
        for name in sorted(tree):
            yield from _leaves(tree[name], f'{path}/{name}', depth + 1)
    elif tree is not None:
        raise ValueError(f"'{path[:80]}' in its index is no array")


def _fits(order: list[tuple[str, _Leaf]], pieces: Any) -> bool:
    """Whether the boxes of a data file are those of the leaves, numbered in this order."""
    if not isinstance(pieces, Mapping) or _PIECES not in pieces:
        return False
    numbers = {int(key) for key in pieces if key != _PIECES}
    return numbers <= set(range(len(order))) and all(
        box in order[n][1].boxes for n in numbers for _, box in pieces[str(n)]
    )


def _joined(values: list[np.ndarray], box: Box) -> np.ndarray:
    return np.concatenate(values).reshape([end - begin for begin, end in box])
