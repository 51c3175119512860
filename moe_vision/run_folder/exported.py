"""Weights outside a run: the card and the arrays of a folder that `moe_vision.export` wrote.

`model.json`, the card, describes the run as its config.json does, and the folder besides;
`model.safetensors` holds the arrays by path, such as 'params/block_1/experts/in_kernel'. Only these
two are read. The programs beside them are for others.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from input_pipeline.cores import memory
from moe_vision.common import files, json_values, safetensors
from moe_vision.common.errors import UserError
from moe_vision.common.paths import path_name
from moe_vision.config.check import CARD, record_of

WEIGHTS = 'model.safetensors'
COLLECTIONS = ('params', 'batch_stats', 'router_state')


def holds(folder: str) -> bool:
    """Whether this is an exported folder, and no run's."""
    return record_of(folder).endswith(f'/{CARD}')


def packed(variables: Mapping[str, Any]) -> bytes:
    """The bytes of the file with the weights."""
    leaves = jax.tree_util.tree_leaves_with_path(dict(variables))
    return safetensors.packed({path_name(path): np.asarray(x) for path, x in leaves})


def read(folder: str) -> dict[str, Any]:
    """The state in an exported folder, as `checkpoints.load_raw` returns that of a run: the weights
    that were scored, without those of the optimizer.

    Raises:
      UserError: a file is missing or damaged.
    """
    file = f'{folder}/{WEIGHTS}'
    try:
        card = files.read_json(f'{folder}/{CARD}')
        data = files.read(file, memory())
        if digest(data) != card['files'][WEIGHTS]['sha256']:
            raise ValueError('its sha256 is not the one that the card says')
        seed_key = np.asarray(card['seed_key'], np.uint32)
        tree = traverse_util.unflatten_dict(safetensors.parse(data), '/')
        state = {'step': int(card['step']), 'seed_key': seed_key}
    except (OSError, ValueError, KeyError, TypeError, OverflowError, AttributeError) as e:
        why = f'{type(e).__name__}: {e}' if isinstance(e, KeyError | TypeError) else e
        raise UserError(
            f"'{file}' and the card beside it cannot be read ({why}); copy the whole exported "
            'folder again.'
        ) from e
    return state | {name: json_values.as_dict(tree.get(name)) for name in COLLECTIONS}


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
