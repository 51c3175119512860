"""What kinds of surgery read and return: the arrays of a network by path, and what did not fit."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from moe_vision.common.errors import UserError
from moe_vision.common.paths import path_name
from moe_vision.config.schema import Config

Arrays = Mapping[str, np.ndarray]  # by path, such as 'block_3/experts/in_kernel'
COLLECTIONS = ('params', 'batch_stats', 'router_state')
HEAD = 'classifier'


@dataclasses.dataclass(frozen=True)
class State:
    """The arrays of a network, without those of its optimizer.

    Attributes:
      params, batch_stats, router_state: arrays by path.
      class_names: of the data set, in the order of the classifier's outputs; () if unknown.
      told: what became of the arrays, in lines for people.
      about: what else is known of a run, such as its evaluation; kinds name what they need.
    """

    params: Arrays
    batch_stats: Arrays = dataclasses.field(default_factory=dict)
    router_state: Arrays = dataclasses.field(default_factory=dict)
    class_names: tuple[str, ...] = ()
    told: tuple[str, ...] = ()
    about: Mapping[str, Any] = dataclasses.field(default_factory=dict)


class Kind:
    """Base class of the kinds of surgery. A kind is called once for each set of weights.

    Attributes:
      reads: 'run', the folder of a run; 'runs', several, separated by commas; or 'file'.
    """

    reads = 'run'

    def __init__(self, args: Any):
        self.args = args

    def configured(self, source: Any, source_config: Config | None, config: Config) -> Config:
        """The config of the result, from the one that was asked for; arguments as in the call."""
        del source, source_config
        return config

    def __call__(
        self, source: Any, source_config: Config | None, fresh: State, config: Config
    ) -> State:
        """The state of the result. It changes none of its arguments and depends on nothing else.

        Args:
          source: the state that is cut; a tuple of them for a kind that reads several runs.
          source_config: of the run; None for a file.
          fresh: the initial values of the network of `config`.
          config: of the result.

        Raises:
          Misfit: arrays do not fit; UserError: the networks are not what this kind needs.
        """
        raise NotImplementedError


class Misfit(UserError):
    """Arrays that do not fit.

    Attributes:
      table: lines that name each of them.
    """

    def __init__(self, what: str, rows: Sequence[tuple[str, str, str]]):
        head = ('here', 'there', 'why it does not fit')
        widths = [max(len(r[i]) for r in (head, *rows)) for i in range(2)]
        self.table = [f'{a:<{widths[0]}}  {b:<{widths[1]}}  {c}' for a, b, c in (head, *rows)]
        arrays = 'array does' if len(rows) == 1 else 'arrays do'
        super().__init__(f'{what}: {len(rows)} {arrays} not fit, as the table above says.')


def leaves(tree: Any) -> dict[str, Any]:
    """The leaves of a tree by path."""
    return {path_name(p): x for p, x in jax.tree_util.tree_leaves_with_path(tree or {})}


def replaced(tree: Any, arrays: Arrays) -> Any:
    """The tree with these arrays, by path, in the place of its own."""
    return jax.tree_util.tree_map_with_path(
        lambda path, x: jnp.asarray(arrays[path_name(path)], x.dtype), tree
    )


def form(array: Any) -> str:
    return f'{array.dtype} {tuple(array.shape)}'


def in_head(name: str) -> bool:
    return name.split('/')[0] == HEAD
