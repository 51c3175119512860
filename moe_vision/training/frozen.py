"""What `train.trainable` freezes: parameters, and whatever else belongs to them.

A parameter is trained if its path matches the expression. Running statistics and router state are
no parameters, but belong to a module that may have some: they move only if a parameter of that
module is trained. A frozen batch norm uses its statistics in training as it does in evaluation.

This holds for the whole of training. What stands still from some step on, or in parts, is a
transform (`moe_vision.transforms`).
"""

import contextlib
import re
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax

from moe_vision.common.paths import path_name

Tree = Any


class Frozen:
    """Which parts of a network stand still.

    Args:
      params: of the network; only their paths are read.
      pattern: `train.trainable`.
    """

    def __init__(self, params: Tree, pattern: str):
        names = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
        self._trained: Mapping[str, bool] = {n: bool(re.search(pattern, n)) for n in names}

    @property
    def nothing(self) -> bool:
        """Whether every parameter is trained."""
        return all(self._trained.values())

    def moves(self, path: str) -> bool:
        """Whether the array at this path may change: a parameter, a statistic, a router's state.

        Without parameters of its own, a module does what the nearest one around it does.
        """
        if path in self._trained:
            return self._trained[path]
        while path:
            path = path.rpartition('/')[0]
            own = [t for name, t in self._trained.items() if name.startswith(path and f'{path}/')]
            if own:
                return any(own)
        return True

    def keep(self, new: Tree, old: Tree) -> Tree:
        """`new`, with the arrays of `old` where they must not change."""
        return jax.tree_util.tree_map_with_path(
            lambda path, a, b: a if self.moves(path_name(path)) else b, new, old
        )

    def norms(self) -> contextlib.AbstractContextManager:
        """Lets batch norms that stand still use their statistics, while a network is applied."""

        def norm(call, args, kwargs, context):
            module = context.module
            if (
                not isinstance(module, nn.BatchNorm)
                or context.method_name != '__call__'
                or module.use_running_average
                or self.moves('/'.join((*module.path, 'mean')))
            ):
                return call(*args, **kwargs)
            kwargs.pop('use_running_average', None)
            still = module.clone(parent=module.scope, use_running_average=True)
            return still(*args, **kwargs)

        return contextlib.nullcontext() if self.nothing else nn.intercept_methods(norm)
