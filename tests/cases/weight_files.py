"""Writes files with weights as other programs do, and networks that surgery begins with."""

import json
import zlib

import jax
import msgpack
import numpy as np
import train_cases

from moe_vision import models
from moe_vision.layers import Step
from moe_vision.surgery.state import COLLECTIONS, State, leaves

_NAMES = {'float32': 'F32', 'float16': 'F16', 'int64': 'I64'}


def safetensors(path, arrays, header=None):
    """`header` changes the header before it is written."""
    entries, end = {}, 0
    for name, x in arrays.items():
        entries[name] = {
            'dtype': _NAMES[x.dtype.name],
            'shape': list(x.shape),
            'data_offsets': [end, end := end + x.nbytes],
        }
    text = json.dumps((header or (lambda h: h))({'__metadata__': {'format': 'pt'}, **entries}))
    data = b''.join(np.ascontiguousarray(x).tobytes() for x in arrays.values())
    path.write_bytes(len(text).to_bytes(8, 'little') + text.encode() + data)
    return str(path)


def _packed_box(box):
    return msgpack.packb([msgpack.packb([begin, end, None]) for begin, end in box])


def v_moe(prefix, tree, cut=lambda name: 1, files=2, order=sorted, version='20220622'):
    """A checkpoint as V-MoE writes it: NAME.index and NAME.data-i-of-n.

    Args:
      tree: nested dictionaries of arrays.
      cut: into how many boxes along its first axis the array of a path is cut.
      order: of the names at the top, by which arrays are numbered.
      version: of the index; None leaves it out.
    """
    shards = [{'__msgpack_array_chunk_a87ca2__': True} for _ in range(files)]
    numbers = {}
    for top in order(tree):
        for path, _ in leaves({top: tree[top]}).items():
            numbers[path] = len(numbers)

    def array(x):
        return msgpack.ExtType(
            1, msgpack.packb((x.shape, x.dtype.name, x.tobytes()), use_bin_type=True)
        )

    def leaf(path, x):
        parts = np.array_split(np.arange(len(x)), cut(path)) if x.ndim else [None]
        boxes, held = [], []
        for part in parts:
            first = [] if part is None else [(int(part[0]), int(part[-1]) + 1)]
            box = [*first, *((0, n) for n in x.shape[1:])]
            flat = x[tuple(slice(*ends) for ends in box)].reshape(-1)
            half = max(len(flat) // 2, 1)
            pieces = [array(p) for p in (flat[:half], flat[half:]) if len(p)]
            file = (numbers[path] + len(boxes)) % files
            boxes.append(_packed_box(box))
            held.append(file)
            entry = [pieces, msgpack.ExtType(6, boxes[-1])]
            shards[file].setdefault(str(numbers[path]), []).append(entry)
        about = msgpack.packb((x.shape, x.dtype.name, False, {}))
        return msgpack.ExtType(8, msgpack.packb((about, boxes, held), use_bin_type=True))

    def indexed(tree, path=''):
        if isinstance(tree, dict):
            return {n: indexed(x, f'{path}/{n}' if path else n) for n, x in tree.items()}
        return leaf(path, np.asarray(tree))

    index = {'shard_count': files, 'index': indexed(tree)}
    index |= {} if version is None else {'version': version}
    with open(f'{prefix}.index', 'wb') as file:
        file.write(msgpack.packb(index))
    for number, shard in enumerate(shards):
        with open(f'{prefix}.data-{number:05d}-of-{files:05d}', 'wb') as file:
            file.write(msgpack.packb(shard))
    return str(prefix)


DENSE = {
    'model.moe.placement': 'none',
    'model.moe.router_args': {'noise': 'gaussian'},
    'dataset.image_size': 0,
}


def config(data_dir, changes):
    """A checked config of digits, with `changes` by dotted path."""
    return train_cases.make(data_dir, changes, start={})


def fresh(config, image, classes=5, seed=0, names=()):
    """Values for the network of a config, which are quicker to draw than its initial ones."""
    network = models.build(config.model, classes)
    images = np.zeros((config.model.moe.group_size, *image), np.float32)
    step = Step(key=jax.random.key(0), train=True)
    variables = jax.eval_shape(lambda: network.init(jax.random.key(0), images, step))

    def draw(path, x):
        rng = np.random.default_rng(seed + zlib.crc32(path.encode()))
        fans = np.prod(x.shape[-2:-1]) if 'kernel' in path else 1.0
        near_one = path.endswith(('scale', 'var'))
        values = rng.normal(size=x.shape) * (0.1 if near_one else fans**-0.5)
        return np.asarray(values * (not path.startswith('classifier/bias')) + near_one, x.dtype)

    params, statistics, router_state = (
        {n: draw(n, x) for n, x in leaves(variables.get(c)).items()} for c in COLLECTIONS
    )
    return State(params, statistics, router_state, names or tuple(map(str, range(classes))))


def nested(arrays):
    """Arrays by path as nested dictionaries."""
    tree = {}
    for path, x in arrays.items():
        *above, last = path.split('/')
        inner = tree
        for name in above:
            inner = inner.setdefault(name, {})
        inner[last] = x
    return tree


def logits(config, state, images, classes=5):
    """What the network of a config gives with the arrays of a state: [B, classes]."""
    network = models.build(config.model, classes)
    variables = {c: nested(getattr(state, c)) for c in COLLECTIONS}
    return np.asarray(jax.jit(lambda v, x: network.apply(v, x, Step())[0])(variables, images))
