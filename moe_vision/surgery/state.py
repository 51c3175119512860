"""What kinds of surgery read and return: the arrays of a network by path, and what did not fit."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from moe_vision.common.errors import UserError
from moe_vision.common.json_values import clean
from moe_vision.common.paths import path_name

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


def cleaned(class_names: Iterable[str]) -> tuple[str, ...]:
    """Names of classes as the record of a run gives them."""
    return tuple(map(clean, class_names))


def replaced(tree: Any, arrays: Arrays) -> Any:
    """The tree with these arrays, by path, in the place of its own.

    Raises:
      Misfit: one of them has another shape.
    """
    rows = [
        (f'{path} {form(own)}', f'made: {np.shape(arrays[path])}', 'another shape is due')
        for path, own in leaves(tree).items()
        if np.shape(arrays[path]) != np.shape(own)
    ]
    if rows:
        raise Misfit('the result', rows)
    return jax.tree_util.tree_map_with_path(
        lambda path, x: jnp.asarray(arrays[path_name(path)], x.dtype), tree
    )


def form(array: Any) -> str:
    return f'{array.dtype} {tuple(array.shape)}'


def in_head(name: str) -> bool:
    return name.split('/')[0] == HEAD


class Table:
    """Takes arrays of one collection from a source, and notes those that do not fit.

    Args:
      theirs: the arrays there.
    """

    def __init__(self, theirs: Arrays):
        self._theirs, self._used = theirs, set[str]()
        self.rows: list[tuple[str, str, str]] = []

    def take(
        self,
        path: str,
        own: np.ndarray,
        name: str | None = None,
        make: Callable[[np.ndarray], np.ndarray] = np.asarray,
        why: str = 'there is no such array',
    ) -> np.ndarray:
        """The array for a path here, in its shape and type, or `own` where it does not fit.

        Args:
          own: what stands here.
          name: there; None is `path`.
          make: makes the array here of the one there; an error means that it cannot.
          why: it does not fit if the name is missing there.
        """
        name = path if name is None else name
        if name not in self._theirs:
            self.rows.append((f'{path} {form(own)}', name or '-', why))
            return own
        self._used.add(name)
        given = np.asarray(self._theirs[name])
        try:
            made = make(given)
        except (ValueError, IndexError):
            made = given
        if made.shape != own.shape:
            due = f'another shape: {tuple(own.shape)} is due'
            self.rows.append((f'{path} {form(own)}', f'{name} {tuple(given.shape)}', due))
            return own
        return np.ascontiguousarray(made, dtype=own.dtype)

    def leave(self, *names: str) -> None:
        """Notes that these arrays there are not wanted."""
        self._used.update(names)

    def finish(self, what: str, others: Iterable['Table'] = ()) -> None:
        """Raises Misfit if an array did not fit, or one there was neither taken nor left."""
        rows = [*self.rows, *(row for table in others for row in table.rows)]
        rows += [
            ('-', f'{name} {tuple(np.shape(x))}', 'this network has no such array')
            for name, x in self._theirs.items()
            if name not in self._used
        ]
        if rows:
            raise Misfit(what, rows)
