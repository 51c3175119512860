"""Starts a run from the weights of another run."""

import dataclasses
from collections.abc import Mapping
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

    Optimizer and router state stay fresh, and so does the classifier if its shape differs because
    the number of classes does.

    Args:
      state: the `TrainState` before the first step.
      shardings: a sharding for each of its arrays.

    Raises:
      UserError: there is no checkpoint, or a parameter is missing, unknown or of another shape.
    """
    saved = checkpoints.load_raw(workdir)
    weights = {path_name(p): x for p, x in jax.tree_util.tree_leaves_with_path(saved['params'])}
    own = {path_name(p): x for p, x in jax.tree_util.tree_leaves_with_path(state.params)}
    fresh_head = _another_number_of_classes(weights, own)

    def weight(path, fresh):
        name = path_name(path)
        if name not in weights:
            raise UserError(
                f"init_from: '{workdir}' has no parameter '{name}'."
                f'{nearest(name, weights)} The networks must be the same except for '
                'the classifier.'
            )
        if name.startswith(_HEAD) and fresh_head:
            logging.info(
                'init_from: %s stays fresh, because it is %s there and %s here',
                name,
                weights[name].shape,
                fresh.shape,
            )
            return fresh
        if weights[name].shape != fresh.shape or weights[name].dtype != fresh.dtype:
            raise UserError(
                f"init_from: parameter '{name}' is {_form(weights[name])} in "
                f"'{workdir}' and {_form(fresh)} here."
            )
        return jnp.asarray(weights[name])

    for name in weights:
        if name not in own and not name.startswith(_HEAD):
            raise UserError(
                f"init_from: '{workdir}' has a parameter '{name}' that this network "
                'lacks. The networks must be the same except for the classifier.'
            )
    params = jax.tree_util.tree_map_with_path(weight, state.params)
    params = jax.device_put(params, shardings.params)
    stats = state.batch_stats
    saved_stats = saved.get('batch_stats') or {}
    if jax.tree.structure(saved_stats) == jax.tree.structure(stats):  # type: ignore[operator]
        stats = jax.device_put(jax.tree.map(jnp.asarray, saved_stats), shardings.batch_stats)
    ema = jax.tree.map(jnp.copy, params) if jax.tree.leaves(state.ema) else state.ema
    return dataclasses.replace(state, params=params, batch_stats=stats, ema=ema)


def _another_number_of_classes(weights: Mapping[str, Any], own: Mapping[str, Any]) -> bool:
    """Whether the classifiers differ in the last axis, the classes, in the same way everywhere."""
    shapes = [(weights[n].shape, own[n].shape) for n in own if n.startswith(_HEAD) and n in weights]
    return (
        bool(shapes)
        and all(ours and theirs and ours[:-1] == theirs[:-1] for theirs, ours in shapes)
        and len({theirs[-1] for theirs, _ in shapes}) == 1
        and all(ours[-1] != theirs[-1] for theirs, ours in shapes)
    )


def _form(array: Any) -> str:
    return f'{array.dtype} {tuple(array.shape)}'
