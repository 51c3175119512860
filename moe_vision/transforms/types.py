"""The base class of transforms, and how they find parameters.

A parameter's path is a string: 'block_1/router/kernel', 'block_1/experts/in_kernel'. The arrays of
an expert bank have a leading axis E.
"""

import re
from collections.abc import Callable
from typing import Any

import jax

from moe_vision.common.errors import UserError
from moe_vision.common.paths import path_name

Array = jax.Array
Tree = Any


class Transform:
    """Base class of transforms. A transform is arithmetic alone and holds no arrays.

    A subclass defines `moves`, `update` or both. All methods are traced, also for several seeds at
    once, so they decide by `jnp.where` and not by `if`. What they keep between steps is their
    state: it is part of the optimizer's, so it is checkpointed and has its own value for each seed.

    Attributes:
      routed: whether it acts on routers and experts alone. A dense twin has neither, and trains
        without it.
    """

    routed = False

    def __init__(self, args: Any, steps: int):
        """
        Args:
          args: the arguments of the config, an `Args`.
          steps: optimizer steps of the whole run. It grows if a run is made longer.

        Raises:
          UserError: the arguments do not fit a run of so many steps.
        """
        self.args, self.steps = args, steps

    def init(self, params: Tree) -> Tree:
        """The state before the first step: a tree of arrays of numbers, which keep their shapes.

        An array whose path holds 'experts', as in a tree like `params`, is split over devices as an
        expert bank is. The others are on every device.

        Args:
          params: of which only paths, shapes and types may be read.

        Raises:
          UserError: the transform does not fit these parameters.
        """
        del params
        return {}

    def moves(self, path: str, param: Array, *, step: Array, state: Tree) -> Array | bool:
        """What of a parameter this step may change: True, or bools that broadcast to its shape.

        Where it is False the parameter keeps its bits, whatever the optimizer and other transforms
        do: its gradient is 0 before the optimizer sees it (so the clipped norm is without it, and
        the optimizer's moments decay), and its update is 0 at the end.

        Args:
          step: int32 scalar, optimizer steps done before this one.
          state: before this step.
        """
        del path, param, step, state
        return True

    def update(self, updates: Tree, params: Tree, *, step: Array, state: Tree) -> tuple[Tree, Tree]:
        """(updates, state) after this step, from what the optimizer is about to add to `params`.

        Updates keep their shapes and types, and so does the state.

        Args:
          updates: a tree like `params`. The learning rate is in them.
          step, state: as in `moves`.
        """
        del params, step
        return updates, state

    def compared(self, *, step: Array, state: Tree) -> dict[str, dict[str, Array]]:
        """Other parameters for routers, by the path of a routed layer and by name.

        A layer routes the tokens of this step by them, too, and counts those whose most probable
        expert is another one; `observe` gets the counts. '' has what layers share. {}: none.

        Args:
          step, state: as in `moves`.
        """
        del step, state
        return {}

    def observe(
        self, routes: dict[str, dict[str, Array]], params: Tree, *, step: Array, state: Tree
    ) -> Tree:
        """The state at the end of this step, from what its routes were.

        Args:
          routes: by the path of a routed layer, sums over the tokens of the step, float32: 'tokens'
            [], 'load' [E], how often each true expert was chosen, and with `compared` 'changed' [].
          params: before this step.
          step: as in `moves`.
          state: after `update`.
        """
        del routes, params, step
        return state

    def settled(self, *, step: Array, state: Tree) -> Array | dict[str, Array] | None:
        """Whether the routes are settled in this step, a bool scalar; None: it never settles them.
        Or such scalars by the path of a routed layer, and at '' for all other layers and for what
        layers share.

        The noise of routers (`Context.settled`), the losses of routing and the changes of router
        state are off in such a step.

        Args:
          step, state: as in `moves`.
        """
        del step, state
        return None


def by_path(fn: Callable[..., Any], *trees: Tree) -> Tree:
    """The tree of `fn(path, leaf, ...)`, with a leaf of each tree at the same path."""
    return jax.tree_util.tree_map_with_path(lambda path, *x: fn(path_name(path), *x), *trees)


def paths(params: Tree) -> list[str]:
    """The path of every parameter."""
    return [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]


def of_router(path: str) -> bool:
    """Whether a router learns this parameter."""
    return router_of(path) is not None


def router_of(path: str) -> str | None:
    """The path of the routed layer whose router has this array; '' if layers share it; None: it is
    no router's."""
    layer, inside, _ = f'/{path}'.rpartition('/router/')
    return layer.removeprefix('/') if inside else None


def bank_of(path: str) -> str | None:
    """The path of the routed layer whose expert bank holds this parameter; None: it is in none."""
    found = re.search('(^|/)experts/', path)
    return path[: found.start()] if found else None


def require(acts_on: Callable[[str], bool], what: str, params: Tree) -> None:
    """Raises UserError if a transform acts on none of these parameters.

    Args:
      acts_on: whether it acts on the parameter with this path.
      what: what decides that, for the message.
    """
    names = paths(params)
    if not any(map(acts_on, names)):
        raise UserError(f'{what} matches no parameter; there are {", ".join(names[:6])}, ...')
