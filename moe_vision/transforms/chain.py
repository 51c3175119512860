"""All transforms of a config as one."""

import functools
from collections.abc import ItemsView
from typing import Any

import jax
import jax.numpy as jnp

from moe_vision.common.errors import UserError
from moe_vision.config import registry
from moe_vision.config.schema import Config
from moe_vision.transforms.types import Array, Transform, Tree, by_path

# x + -0.0 is x, bit for bit, also where x is -0.0; with +0.0 it would not be.
STILL = -0.0


class Transforms:
    """The transforms of a config, in the order of their names.

    It has the methods of `Transform`, for all parameters at once. Its state is a dictionary with an
    entry for each transform. A dense twin has only those that are not `routed`. Without transforms
    it is false and does nothing.

    Args:
      config: a checked one.
      steps: optimizer steps of the whole run.

    Raises:
      UserError: there is no such transform, or its arguments do not fit the run.
    """

    def __init__(self, config: Config, steps: int):
        self._each: dict[str, Transform] = {}
        for name, args in sorted(config.train.transforms.items()):
            cls = registry.load(registry.entry('transform', registry.TRANSFORMS, name).path)
            if cls.routed and config.model.twin != 'none':
                continue
            self._each[name] = _told(name, cls, args, steps)

    def __bool__(self) -> bool:
        return bool(self._each)

    def items(self) -> ItemsView[str, Transform]:
        """(name, transform) of each."""
        return self._each.items()

    def init(self, params: Tree) -> dict[str, Tree]:
        """The state before the first step.

        Raises:
          UserError: a transform does not fit these parameters.
        """
        return {
            name: jax.tree.map(jnp.asarray, _told(name, t.init, params))
            for name, t in self._each.items()
        }

    def moves(self, params: Tree, *, step: Array, state: dict[str, Tree]) -> Tree:
        """For each parameter True, or the bools of all transforms together."""

        def of(path: str, param: Array) -> Array | bool:
            each = [t.moves(path, param, step=step, state=state[n]) for n, t in self._each.items()]
            some = [m for m in each if m is not True]
            return functools.reduce(jnp.logical_and, some) if some else True

        return by_path(of, params)

    def update(
        self, updates: Tree, params: Tree, *, step: Array, state: dict[str, Tree]
    ) -> tuple[Tree, dict[str, Tree]]:
        """(updates, state) after this step; each transform gets the updates of the one before."""
        after = {}
        for name, t in self._each.items():
            updates, after[name] = t.update(updates, params, step=step, state=state[name])
        return updates, after

    def compared(
        self, *, step: Array, state: dict[str, Tree]
    ) -> dict[str, dict[str, dict[str, Array]]]:
        """What transforms compare routes with, by transform, for `Step.compared`."""
        each = {n: t.compared(step=step, state=state[n]) for n, t in self._each.items()}
        return {name: params for name, params in each.items() if params}

    def observe(
        self,
        counts: dict[str, dict[str, Array]],
        changed: dict[str, dict[str, Array]],
        params: Tree,
        *,
        step: Array,
        state: dict[str, Tree],
    ) -> dict[str, Tree]:
        """The state at the end of this step.

        Args:
          counts: telemetry of each routed layer, by path.
          changed: by path and transform, how many tokens its parameters send elsewhere.
          params: before this step.
          state: after `update`.
        """
        after = {}
        for name, t in self._each.items():
            routes = {
                layer: {'tokens': c['tokens'], 'load': c['chosen'][: len(c['kept'])]}
                | ({'changed': changed[layer][name]} if name in changed[layer] else {})
                for layer, c in counts.items()
            }
            after[name] = t.observe(routes, params, step=step, state=state[name])
        return after

    def settled(self, *, step: Array, state: dict[str, Tree]) -> dict[str, Array]:
        """Whether transforms settle the routes in this step, for `Step.settled`; {}: none does."""
        found: dict[str, Array] = {}
        for name, t in self._each.items():
            given = t.settled(step=step, state=state[name])
            if given is None:
                continue
            given = given if isinstance(given, dict) else {'': given}
            found = {
                layer: functools.reduce(
                    jnp.logical_or, [d.get(layer, d['']) for d in (found, given) if d]
                )
                for layer in [*found, *given]
            }
        return found


def held(tree: Tree, moves: Tree) -> Tree:
    """The tree with -0.0 wherever `moves`, as `Transforms.moves` returns it, is False."""
    return jax.tree.map(lambda x, m: x if m is True else jnp.where(m, x, STILL), tree, moves)


def _told(name: str, fn: Any, *args: Any) -> Any:
    """`fn(*args)`; an error that it raises names the transform."""
    try:
        return fn(*args)
    except UserError as e:
        raise UserError(f'train.transforms.{name}: {e}') from e
