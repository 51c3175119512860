"""Reads the arrays of a file with weights. Nothing in such a file is run.

Formats: safetensors, numpy's .npz, torch's own files (if torch is installed), and the checkpoints
of V-MoE. See docs/trust.md for what is refused.
"""

import math
import os
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from moe_vision.common import safetensors
from moe_vision.common.errors import UserError
from moe_vision.common.files import check_memory
from moe_vision.surgery.weights import v_moe
from moe_vision.surgery.weights.names import renamed

Arrays = dict[str, np.ndarray]
_TORCH = ('.pt', '.pth', '.bin', '.tar')
_HOLDERS = ('model', 'state_dict', 'teacher', 'student')  # of the weights, in torch's own files
_PREFIXES = ('module.', 'backbone.')  # of a wrapped network's names
_LONGEST = 10_000  # characters of a header of one array


def read(path: str) -> tuple[Arrays, str]:
    """The arrays of a file by name, and what names them: 'torch' or 'v_moe'.

    Args:
      path: a file, or the part of a V-MoE checkpoint's name before '.index'.

    Raises:
      UserError: there is no such file, or it cannot be read as what its name says.
    """
    prefix = path.removesuffix('.index')
    if os.path.isfile(f'{prefix}.index'):
        return _told(f'{prefix}.index', v_moe.read, prefix), 'v_moe'
    if not os.path.isfile(path):
        raise UserError(
            f"--from is '{path}'; there is no such file. Give a .safetensors, .npz, .pth or .bin "
            'file, or the beginning of the names of a V-MoE checkpoint (before .index).'
        )
    if path.endswith('.safetensors'):
        arrays = _told(path, safetensors.read, path)
    elif path.endswith('.npz'):
        arrays = _told(path, _npz, path)
        if 'embedding/kernel' in arrays:
            return {renamed(name): x for name, x in arrays.items()}, 'v_moe'
    elif path.endswith(_TORCH):
        arrays = _told(path, _torch, path)
    else:
        raise UserError(
            f"--from is '{path}'; its name must end in .safetensors, .npz, "
            f'{", ".join(_TORCH)} or .index, which says how to read it.'
        )
    for start in _PREFIXES:
        if all(name.startswith(start) for name in arrays):
            arrays = {name.removeprefix(start): x for name, x in arrays.items()}
    return arrays, 'torch'


def _told(path: str, reader: Any, argument: str) -> Arrays:
    """What a reader returns; whatever a damaged file makes it raise becomes one line."""
    try:
        arrays = reader(argument)
    except UserError:
        raise
    except Exception as e:  # of zipfile, zlib, numpy, msgpack and torch, which may be of any type
        why = ' '.join(str(e).split())[:160] or type(e).__name__
        raise UserError(
            f"'{path}' cannot be read ({why}); bring the file back, or give another."
        ) from e
    if not arrays:
        raise UserError(f"'{path}' holds no arrays; give the file with the weights.")
    return arrays


def _npz(path: str) -> Arrays:
    """The arrays of a .npz file. One of objects would need pickle, so it is refused."""
    arrays = {}
    with zipfile.ZipFile(path) as archive:
        entries = [e for e in archive.infolist() if e.filename.endswith('.npy')]
        check_memory(sum(e.file_size for e in entries))
        for entry in entries:
            with archive.open(entry) as file:
                header = {
                    (1, 0): np.lib.format.read_array_header_1_0,
                    (2, 0): np.lib.format.read_array_header_2_0,
                }[np.lib.format.read_magic(file)]
                shape, fortran, dtype = header(file, max_header_size=_LONGEST)
                name = entry.filename.removesuffix('.npy')
                if dtype.kind not in 'fiub':  # objects would need pickle
                    raise ValueError(f"'{name}' is of type {dtype}; numbers are read alone")
                data = file.read(entry.file_size)
            if len(data) != math.prod(shape) * dtype.itemsize:
                raise ValueError(f"'{name}' does not have the bytes that its shape {shape} needs")
            arrays[name] = np.frombuffer(data, dtype).reshape(shape, order='F' if fortran else 'C')
    return arrays


def _torch(path: str) -> Arrays:
    """The arrays of one of torch's own files, which are pickles: only torch reads them, and only
    with `weights_only`, which builds tensors and calls nothing else that a file names."""
    try:
        import torch
    except ModuleNotFoundError as e:
        raise UserError(
            f"'{path}' is one of torch's own files, which only torch can read; run pip install "
            'torch, or save the weights as safetensors.'
        ) from e
    try:
        found = torch.load(path, map_location='cpu', weights_only=True)
    except Exception as e:  # of unpickling, which may be of any type
        raise UserError(
            f"'{path}' is refused: torch cannot read it as weights alone, so it holds more than "
            'tensors, or is damaged; save its state_dict() as safetensors.'
        ) from e
    for holder in _HOLDERS:
        if isinstance(found, Mapping) and isinstance(found.get(holder), Mapping):
            found = found[holder]
    if not isinstance(found, Mapping):
        raise ValueError(f'it holds a {type(found).__name__} and no dictionary of tensors')
    return {
        str(name): x.detach().to(torch.float32).numpy()
        for name, x in found.items()
        if isinstance(x, torch.Tensor)
    }
