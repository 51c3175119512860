"""Starts a run from the weights of another run."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging

from moe_vision.common.errors import UserError, nearest
from moe_vision.common.json_values import differences
from moe_vision.common.paths import path_name
from moe_vision.config import check as config_lib
from moe_vision.config import registry, surgery
from moe_vision.config.schema import Config
from moe_vision.run_folder import checkpoints, record
from moe_vision.surgery import runs
from moe_vision.surgery.kind import ALIKE
from moe_vision.surgery.moments import carried
from moe_vision.surgery.state import (
    COLLECTIONS,
    HEAD,
    State,
    cleaned,
    form,
    in_head,
    leaves,
    replaced,
)

_SHOWN = 4  # names in the log
_COLLECTIONS = ('batch_stats', 'router_state')  # what a network keeps besides its parameters


def init_from(
    state: Any,
    workdir: str,
    class_names: Sequence[str],
    shardings: Any,
    config: Config | None = None,
) -> Any:
    """`state` with the weights that the run in `workdir` was scored with, from its newest
    checkpoint: their moving average if it kept one. Batch statistics and router state go with them.

    The classifier stays as it is if the classes have other names there or another order. So do
    statistics and router state that the other network lacks. The optimizer starts anew, and so does
    the moving average of this run. One line in the log says what was taken.

    Args:
      state: the `TrainState` before the first step.
      class_names: of this run's data set.
      shardings: a sharding for each of the state's arrays.
      config: of this run; None compares arrays alone. With `init_kind` that kind of surgery makes
        the weights, and the optimizer's state, too, if its arguments say so.

    Raises:
      UserError: there is no run, a parameter is missing, unknown or of another shape, or the
        network there computes other things with the same parameters.
    """
    if config and config.init_kind:
        return _by_kind(state, workdir, class_names, shardings, config)
    if config:
        _check_alike(workdir, config)
    saved = checkpoints.load_raw(workdir)
    names = record.dataset_info(workdir).class_names
    source = _Source(workdir, leaves(checkpoints.scored(saved)), names != cleaned(class_names))
    params = source.params(state.params)
    kept = {n: source.kept(n, leaves(saved.get(n)), getattr(state, n)) for n in _COLLECTIONS}
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


def _by_kind(
    state: Any, workdir: str, class_names: Sequence[str], shardings: Any, config: Config
) -> Any:
    run, args = runs.read(workdir), config.init_args
    there = runs.with_data_of(run.config, config)
    kind = registry.load(surgery.SURGERY[config.init_kind].path)(args)
    needed = kind.configured(run.scored, there, config)
    changes = differences(config_lib.to_dict(config), config_lib.to_dict(needed))
    if first := next(changes, None):
        raise UserError(
            f"init_kind is '{config.init_kind}', and the run in '{workdir}' needs {first}; set "
            'that here, too.'
        )
    params, statistics, router_state = (
        leaves(jax.device_get(getattr(state, n))) for n in COLLECTIONS
    )
    fresh = State(params, statistics, router_state, cleaned(class_names))
    result = kind(run.scored, there, fresh, config)
    new = {n: replaced(getattr(state, n), getattr(result, n)) for n in COLLECTIONS}
    if getattr(args, 'optimizer', 'fresh') == 'carried':
        own = leaves(jax.device_get(state.opt_state))
        moved = carried(kind, run.weights, run.moments, there, fresh, own, config)
        new['opt_state'] = replaced(state.opt_state, moved)
    logging.info(
        "init_from: '%s', step %d, %s: %s",
        workdir,
        run.step,
        config.init_kind,
        '; '.join(result.told) or 'took all its weights',
    )
    placed = jax.device_put(new, {n: getattr(shardings, n) for n in new})
    ema = jax.tree.map(jnp.copy, placed['params']) if jax.tree.leaves(state.ema) else state.ema
    return dataclasses.replace(state, **placed, ema=ema)


def _check_alike(workdir: str, config: Config) -> None:
    """Raises UserError if the network there has another gelu, other norms or another padding."""
    try:
        theirs = config_lib.load(workdir).model
    except UserError:
        return  # it names code of somebody's own, or nothing; arrays are compared all the same
    ours = config.model
    pairs = [('model.args', theirs.args, ours.args)] if theirs.name == ours.name else []
    if theirs.moe.expert == ours.moe.expert and 'none' not in (
        theirs.moe.placement,
        ours.moe.placement,
    ):
        pairs.append(('model.moe.expert_args', theirs.moe.expert_args, ours.moe.expert_args))
    for where, there, here in pairs:
        for name in ALIKE:
            was, now = (getattr(x, name, None) for x in (there, here))
            if was != now:
                raise UserError(
                    f"init_from: '{workdir}' was made with {where}.{name}={was}, and here it is "
                    f'{now}; add --config.{where}.{name}={was}, or start with '
                    f'--config=configs/workdir.py:{workdir}.'
                )


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
        own = leaves(fresh)
        if self._new_head:
            if not any(map(in_head, own)):
                raise UserError(
                    f"init_from: the classes of '{self._workdir}' are others, and this network "
                    f"has no parameter '{HEAD}' that could start anew; name its last layer so."
                )
            self.new.append(f'the {HEAD}, because the classes there are others')
        for name in self._weights:
            if name not in own and not (self._new_head and in_head(name)):
                raise UserError(
                    f"init_from: '{self._workdir}' has a parameter '{name}' that this network "
                    'lacks. The networks must be the same except for the classifier.'
                )
        return jax.tree_util.tree_map_with_path(self._param, fresh)

    def _param(self, path: Any, fresh: Any) -> Any:
        name = path_name(path)
        if self._new_head and in_head(name):
            return fresh
        if name not in self._weights:
            raise UserError(
                f"init_from: '{self._workdir}' has no parameter '{name}'."
                f'{nearest(name, self._weights)} The networks must be the same except for '
                'the classifier.'
            )
        theirs = self._weights[name]
        if form(theirs) != form(fresh):
            raise UserError(
                f"init_from: parameter '{name}' is {form(theirs)} in "
                f"'{self._workdir}' and {form(fresh)} here."
            )
        return jnp.asarray(theirs)

    def kept(self, collection: str, theirs: Mapping[str, Any], fresh: Any) -> Any:
        """A collection with each array taken that has the path, type and shape of one here."""
        own = leaves(fresh)
        taken = {
            n
            for n, x in theirs.items()
            if n in own and form(x) == form(own[n]) and not (self._new_head and in_head(n))
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
