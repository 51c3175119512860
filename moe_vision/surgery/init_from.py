"""Starts a run from the weights of another run."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging

from moe_vision.common.errors import UserError, nearest
from moe_vision.common.json_values import clean
from moe_vision.common.paths import path_name
from moe_vision.run_folder import checkpoints, record

_HEAD = 'classifier'
_SHOWN = 4  # names in the log
_COLLECTIONS = ('batch_stats', 'router_state')  # what a network keeps besides its parameters


def init_from(state: Any, workdir: str, class_names: Sequence[str], shardings: Any) -> Any:
    """`state` with the weights that the run in `workdir` was scored with, from its newest
    checkpoint: their moving average if it kept one. Batch statistics and router state go with them.

    The classifier stays as it is if the classes have other names there or another order. So do
    statistics and router state that the other network lacks. The optimizer starts anew, and so does
    the moving average of this run. One line in the log says what was taken.

    Args:
      state: the `TrainState` before the first step.
      class_names: of this run's data set.
      shardings: a sharding for each of the state's arrays.

    Raises:
      UserError: there is no run, or a parameter is missing, unknown or of another shape.
    """
    saved = checkpoints.load_raw(workdir)
    names = record.dataset_info(workdir).class_names
    source = _Source(workdir, _leaves(checkpoints.scored(saved)), names != _cleaned(class_names))
    params = source.params(state.params)
    kept = {n: source.kept(n, _leaves(saved.get(n)), getattr(state, n)) for n in _COLLECTIONS}
    logging.info(
        "init_from: '%s', step %d: took %s%s; new: %s; left there: %s",
        workdir,
        int(saved['step']),
        'its averaged weights' if saved.get('ema') else 'its weights',
        ''.join(f', {n}' for n in source.taken),
        _some(source.new),
        _some(['the optimizer state', *source.left]),
    )
    new = {'params': params, **kept}
    placed = jax.device_put(new, {n: getattr(shardings, n) for n in new})
    ema = jax.tree.map(jnp.copy, placed['params']) if jax.tree.leaves(state.ema) else state.ema
    return dataclasses.replace(state, **placed, ema=ema)


class _Source:
    """The arrays of another run, and what became of them.

    Args:
      weights: parameters by path.
      new_head: whether its classifier is of no use.
    """

    def __init__(self, workdir: str, weights: Mapping[str, Any], new_head: bool):
        self._workdir, self._weights, self._new_head = workdir, weights, new_head
        self.taken: list[str] = []  # collections
        self.new: list[str] = []
        self.left: list[str] = []

    def params(self, fresh: Any) -> Any:
        own = _leaves(fresh)
        if self._new_head:
            if not any(map(_in_head, own)):
                raise UserError(
                    f"init_from: the classes of '{self._workdir}' are others, and this network "
                    f"has no parameter '{_HEAD}' that could start anew; name its last layer so."
                )
            self.new.append(f'the {_HEAD}, because the classes there are others')
        for name in self._weights:
            if name not in own and not (self._new_head and _in_head(name)):
                raise UserError(
                    f"init_from: '{self._workdir}' has a parameter '{name}' that this network "
                    'lacks. The networks must be the same except for the classifier.'
                )
        return jax.tree_util.tree_map_with_path(self._param, fresh)

    def _param(self, path: Any, fresh: Any) -> Any:
        name = path_name(path)
        if self._new_head and _in_head(name):
            return fresh
        if name not in self._weights:
            raise UserError(
                f"init_from: '{self._workdir}' has no parameter '{name}'."
                f'{nearest(name, self._weights)} The networks must be the same except for '
                'the classifier.'
            )
        theirs = self._weights[name]
        if _form(theirs) != _form(fresh):
            raise UserError(
                f"init_from: parameter '{name}' is {_form(theirs)} in "
                f"'{self._workdir}' and {_form(fresh)} here."
            )
        return jnp.asarray(theirs)

    def kept(self, collection: str, theirs: Mapping[str, Any], fresh: Any) -> Any:
        """A collection with each array taken that has the path, type and shape of one here."""
        own = _leaves(fresh)
        taken = {
            n
            for n, x in theirs.items()
            if n in own and _form(x) == _form(own[n]) and not (self._new_head and _in_head(n))
        }
        self.taken += [collection] if taken else []
        self.new += [f'{collection}/{n}' for n in own if n not in taken]
        self.left += [f'{collection}/{n}' for n in theirs if n not in taken]
        return jax.tree_util.tree_map_with_path(
            lambda path, x: jnp.asarray(theirs[path_name(path)]) if path_name(path) in taken else x,
            fresh,
        )


def _some(names: Sequence[str]) -> str:
    more = f' and {len(names) - _SHOWN} more' if len(names) > _SHOWN else ''
    return (', '.join(names[:_SHOWN]) or 'nothing') + more


def _in_head(name: str) -> bool:
    return name.startswith(_HEAD)


def _cleaned(names: Sequence[str]) -> tuple[str, ...]:
    return tuple(map(clean, names))  # as the record of a run gives them


def _leaves(tree: Any) -> dict[str, Any]:
    return {path_name(p): x for p, x in jax.tree_util.tree_leaves_with_path(tree or {})}


def _form(array: Any) -> str:
    return f'{array.dtype} {tuple(array.shape)}'
