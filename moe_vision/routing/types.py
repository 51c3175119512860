"""What a router reads and what it returns.

Axes: G groups, T tokens of a group, K choices of a token, E experts, N ids a router may choose
(E, or more where some ids are null experts), P slots per expert of a soft router, D width.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from moe_vision.common.errors import UserError
from moe_vision.common.place import Place

Array = jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Routing:
    """Token choice: each token chooses up to K experts.

    Ids >= E are null experts: they take no slot, are never dropped and cost nothing.
    """

    probs: Array  # [G, T, N] float32, without noise on the logits; rows sum to 1
    logits: Array  # [G, T, N] float32, without that noise
    expert_of_choice: Array  # [G, T, K] int32, first choice first
    gate: Array  # [G, T, K] float32, the weight of that choice's output
    active: Array  # [G, T, K] bool; False: this choice was not made (padding, fewer than K)
    noisy_logits: Array | None = None  # [G, T, N]; the choices are its largest entries
    noise_std: Array | None = None  # scalar or [G, T, N], standard deviation of that noise
    temperature: Array | float = 1.0  # scalar or [G, T]
    superclass: Array | None = None  # [G, T] int32, the id that the token's label belongs to
    allowed: Array | None = None  # [G, N] bool, ids that may be chosen by now; None: all
    carry: Any = None  # what the next routed layer's router may read
    aux: dict[str, Array] = dataclasses.field(default_factory=dict)  # [G, ...] each, for losses
    scored: int | None = dataclasses.field(  # leading choices that follow `noisy_logits`; None: K
        default=None, metadata={'static': True}
    )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SoftRouting:
    """Soft routing: slots are mixtures of tokens, and outputs are mixtures of slots.

    `dispatch` is None if every expert sees every token unmixed (P = 1).
    """

    probs: Array  # [G, T, E] float32, softmax over experts, summed over an expert's slots
    logits: Array  # [G, T, E * P] float32
    combine: Array  # [G, T, E, P] float32, sums to 1 over (E, P)
    dispatch: Array | None  # [G, T, E, P] float32, sums to 1 over the valid tokens
    temperature: Array | float = 1.0
    carry: Any = None
    aux: dict[str, Array] = dataclasses.field(default_factory=dict)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Context:
    """What a router may read besides the tokens."""

    valid: Array  # [G, T] bool; False is padding, which takes no slot and counts nowhere
    key: Array | None  # derives from (seed, step, layer); `keys` folds in the group
    group: Array  # [G] int32, global group index
    fraction: Array | float = 0.0  # of training done, 0 to 1
    carry: Any = None  # of the previous routed layer
    extras: dict[str, Array] = dataclasses.field(default_factory=dict)  # what the router `needs`
    labels: Array | None = None  # [G, T] int32, class of the token's image; in training alone
    settled: Array | None = None  # bool scalar; True: noise is off in training; None: False
    view: Any = None  # a `View` with tokens, bank and expert, if the router needs 'bank'
    capacity: int = dataclasses.field(default=0, metadata={'static': True})  # C, slots per expert
    train: bool = dataclasses.field(default=False, metadata={'static': True})

    def with_view(self, view: 'View', reads: bool = True) -> 'Context':
        """This context with a view, if the router reads one. Tokens of padding are zero in it."""
        if not reads or view.tokens is None:
            return self
        valid = self.valid.reshape(*self.valid.shape, *[1] * (view.tokens.ndim - 2))
        tokens = jnp.where(valid, view.tokens, jnp.zeros((), view.tokens.dtype))
        return dataclasses.replace(self, view=dataclasses.replace(view, tokens=tokens))

    def unless_settled(self, noisy: Array, clean: Array | float) -> Array:
        """`noisy`, or `clean` if the routes are settled: what a router with noise takes."""
        return noisy if self.settled is None else jnp.where(self.settled, clean, noisy)

    def keys(self, stream: int) -> Array:
        """One random key per group, [G].

        Args:
          stream: number of a draw that no other draw of this layer has. A router may take 0 to 6
            (`common.streams` lists the others), a loss any, because its key is its own.

        Raises:
          ValueError: there is no key.
        """
        base = self.layer_key(stream)
        return jax.vmap(lambda g: jax.random.fold_in(base, g))(self.group)

    def layer_key(self, stream: int) -> Array:
        """One random key for all groups of the layer, and for all micro-batches of the step.

        Args:
          stream: as in `keys`.

        Raises:
          ValueError: there is no key.
        """
        if self.key is None:
            raise ValueError('this routing draws at random: give the step a key')
        return jax.random.fold_in(self.key, stream)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class View:
    """What a loss may read besides the routing: the router's arrays, the tokens or the experts. A
    router that needs 'bank' gets it, too.

    Attributes:
      place: where the layer stands.
      args: the loss's own arguments.
      params, state: of the router.
      tokens: [G, T, *, D], what experts read; of a loss of a group.
      bank: parameters of all experts, each with a leading E; of a loss of a layer, and of one of a
        group where one device has all experts. Those of experts that differ are named
        `kind_{n}_{name}` and lead with the number of experts of that kind.
      expert: the expert, which runs with such parameters; None where `bank` is None.
    """

    place: Place = dataclasses.field(metadata={'static': True})
    args: Any = dataclasses.field(default=None, metadata={'static': True})
    params: Any = dataclasses.field(default_factory=dict)
    state: Any = dataclasses.field(default_factory=dict)
    tokens: Array | None = None
    bank: Any = None
    expert: Any = dataclasses.field(default=None, metadata={'static': True})

    @property
    def num_experts(self) -> int:
        """E, true experts."""
        return self.place.num_experts


def top_k_ids(scores: Array, k: int) -> Array:
    """Indices of the k largest of the last axis, int32, without gradient. The lowest wins a tie."""
    return jax.lax.top_k(jax.lax.stop_gradient(scores), k)[1].astype(jnp.int32)


def pick(values: Array, ids: Array) -> Array:
    """values [..., N] at ids [..., K], with a gradient that is a sum instead of a scatter."""
    chosen = jax.nn.one_hot(ids, values.shape[-1], dtype=values.dtype)
    return jnp.sum(values[..., None, :] * chosen, axis=-1)


def at_most(size: Any, most: int) -> bool:
    """Whether a size is so small. Nobody knows that where a program is traced for any number of
    groups, as for the export: there the size is a symbol, and the answer is no."""
    return isinstance(size, int) and size <= most


def declared(what: str, shapes: Any) -> dict[str, Any]:
    """Parameters as a method declares them: name -> (shape, initializer).

    Raises:
      UserError: `what` returned something else.
    """
    if not isinstance(shapes, Mapping):
        raise UserError(
            f'{what} returned a {type(shapes).__name__}; expected a dict of names, each with '
            '(shape, initializer).'
        )
    for name, given in shapes.items():
        pair = given if isinstance(given, Sequence) and len(given) == 2 else (None, None)
        if not (isinstance(pair[0], Sequence) and callable(pair[1])):
            raise UserError(
                f"{what}: '{name}' is {str(given)[:60]}; expected (shape, initializer), such as "
                '((16, 4), jax.nn.initializers.zeros).'
            )
    return dict(shapes)


def as_state(what: str, given: Any) -> dict[str, Array]:
    """What a router keeps at first.

    Raises:
      UserError: `what` returned no dictionary.
    """
    if not isinstance(given, Mapping):
        raise UserError(f'{what} returned a {type(given).__name__}; expected a dict of arrays.')
    return dict(given)


def expect(field: str, given: Any, shape: tuple[int, ...], dtype: Any, meaning: str) -> None:
    """Raises UserError unless an array has this shape and type.

    Args:
      field: what returned it, and where in it the array stands.
      dtype: a type, or 'int' for any integers.
      meaning: the axes, for the message.
    """
    kind, found = getattr(given, 'dtype', None), getattr(given, 'shape', None)
    fits = jnp.issubdtype(kind, jnp.integer) if kind is not None and dtype == 'int' else False
    if found == shape and kind is not None and (fits or kind == dtype):
        return
    told = type(given).__name__ if found is None or kind is None else f'{kind}{list(found)}'
    due = 'int32' if dtype == 'int' else jnp.dtype(dtype)
    raise UserError(f'{field} is {told}; expected {due}{list(shape)}, {meaning}.')
