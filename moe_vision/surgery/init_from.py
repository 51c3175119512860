"""From checkpoint to checkpoint: starting a run from another run's weights."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging

from moe_vision.common.errors import UserError, nearest
from moe_vision.common.paths import path_name
from moe_vision.run_folder import checkpoints

_HEAD = 'classifier'


def init_from(state: Any, workdir: str, shardings: Any) -> Any:
    """`state` with the weights and batch statistics of the newest checkpoint in `workdir`.

    Optimizer and router state stay fresh. A classifier of another number of classes stays fresh,
    too.

    Raises:
      UserError: no checkpoint there, or a parameter is missing or of another shape.
    """
    raw = checkpoints.load_raw(workdir)
    found = {path_name(p): x for p, x in jax.tree_util.tree_leaves_with_path(raw['params'])}

    def weight(path, mine):
        name = path_name(path)
        if name not in found:
            raise UserError(f"init_from: '{workdir}' has no parameter '{name}'."
                            f'{nearest(name, found)} The networks must be the same but for the '
                            'classifier.')
        if found[name].shape != mine.shape:
            if name.startswith(_HEAD):
                logging.info('init_from: %s stays fresh, %s there and %s here', name,
                             found[name].shape, mine.shape)
                return mine
            raise UserError(f"init_from: parameter '{name}' is {tuple(found[name].shape)} in "
                            f"'{workdir}' and {tuple(mine.shape)} here.")
        return jnp.asarray(found[name])

    mine = {path_name(p) for p, _ in jax.tree_util.tree_leaves_with_path(state.params)}
    for name in found:
        if name not in mine and not name.startswith(_HEAD):
            raise UserError(f"init_from: '{workdir}' has a parameter '{name}' that this network "
                            'lacks. The networks must be the same but for the classifier.')
    params = jax.tree_util.tree_map_with_path(weight, state.params)
    params = jax.device_put(params, shardings.params)
    stats = state.batch_stats
    theirs = raw.get('batch_stats') or {}
    if jax.tree.structure(theirs) == jax.tree.structure(stats):  # type: ignore[operator]
        stats = jax.device_put(jax.tree.map(jnp.asarray, theirs), shardings.batch_stats)
    ema = jax.tree.map(jnp.copy, params) if jax.tree.leaves(state.ema) else state.ema
    return dataclasses.replace(state, params=params, batch_stats=stats, ema=ema)
