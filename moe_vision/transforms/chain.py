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

    def settled(self, *, step: Array, state: dict[str, Tree]) -> Array | None:
        """Whether a transform settles the routes in this step; None: none ever does."""
        each = [t.settled(step=step, state=state[n]) for n, t in self._each.items()]
        some = [s for s in each if s is not None]
        return functools.reduce(jnp.logical_or, some) if some else None


def held(tree: Tree, moves: Tree) -> Tree:
    """The tree with -0.0 wherever `moves`, as `Transforms.moves` returns it, is False."""
    return jax.tree.map(lambda x, m: x if m is True else jnp.where(m, x, STILL), tree, moves)


def _told(name: str, fn: Any, *args: Any) -> Any:
    """`fn(*args)`; an error that it raises names the transform."""
    try:
        return fn(*args)
    except UserError as e:
        raise UserError(f'train.transforms.{name}: {e}') from e
