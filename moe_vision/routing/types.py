"""What a router reads, what it returns, and the base class of routers.

Axes: G groups, T tokens of a group, K choices of a token, E experts, N ids a router may choose
(E, or more where some ids are null experts), P slots per expert of a soft router, D width.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

Array = jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Routing:
    """Token choice: each token chooses up to K experts.

    Ids >= E are null experts: they take no slot, are never dropped and cost nothing.
    """

    probs: Array  # [G, T, N] float32, without noise; rows sum to 1
    logits: Array  # [G, T, N] float32, without noise
    expert_of_choice: Array  # [G, T, K] int32, first choice first
    gate: Array  # [G, T, K] float32, the weight of that choice's output
    active: Array  # [G, T, K] bool; False: this choice was not made (padding, fewer than K)
    noisy_logits: Array | None = None  # [G, T, N]; the choices are its largest entries
    noise_std: Array | None = None  # scalar or [G, T, N], standard deviation of that noise
    temperature: Array | float = 1.0  # scalar or [G, T]
    superclass: Array | None = None  # [G, T] int32, the id that the token's label belongs to
    carry: Any = None  # what the next routed layer's router may read
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
    labels: Array | None = None  # [G, T] int32, class of the token's image, if the step has labels
    train: bool = dataclasses.field(default=False, metadata={'static': True})

    def keys(self, stream: int) -> Array:
        """One random key per group, [G].

        Args:
          stream: number of a draw that no other draw of this layer has. A router of your own may
            take 0 to 6; `common.streams` lists those in use.

        Raises:
          ValueError: there is no key.
        """
        if self.key is None:
            raise ValueError('this routing draws at random: give the step a key')
        base = jax.random.fold_in(self.key, stream)
        return jax.vmap(lambda g: jax.random.fold_in(base, g))(self.group)


class Router:
    """Base class of routers. A router is arithmetic alone and holds no arrays.

    A subclass defines `choose`; `params` and `init_state` name what it learns and what it keeps.
    Parameters and state are passed to the call, so that the same object serves a Linen layer, a
    vmap over seeds and a function of one's own.

    Attributes:
      needs: names that the backbone must supply in `Context.extras`.
      draws: whether routes are random in evaluation, too.
    """

    needs: tuple[str, ...] = ()
    draws = False

    def __init__(self, args: Any, num_experts: int, k: int):
        self.args, self.num_experts, self.k = args, num_experts, k

    @property
    def num_ids(self) -> int:
        """N, the number of ids that may be chosen, null experts included."""
        return self.num_experts

    def params(self, width: int) -> dict[str, tuple[tuple[int, ...], Any]]:
        """Name -> (shape, initializer) of what is learned, for features of this width."""
        init = jax.nn.initializers.normal(width**-0.5)
        return {'kernel': ((width, self.num_ids), init)}

    def init_state(self) -> dict[str, Array]:
        """What is kept between steps. It is replicated, checkpointed and has no gradient."""
        return {}

    def choose(self, params, state, features: Array, context: Context) -> Routing | SoftRouting:
        """Routes features [G, T, D]. Those of padding are zero."""
        raise NotImplementedError

    def __call__(self, params, state, features: Array, context: Context) -> Routing | SoftRouting:
        """Routes features [G, T, D]. Padding may hold anything, NaN included."""
        features = jnp.where(context.valid[..., None], features, jnp.zeros((), features.dtype))
        return self.choose(params, state, features, context)

    def update_state(self, state, counts: Array):
        """The state after an optimizer step in which id n was chosen `counts[n]` times."""
        del counts
        return state


def top_k_ids(scores: Array, k: int) -> Array:
    """Indices of the k largest of the last axis, int32, without gradient. The lowest wins a tie."""
    return jax.lax.top_k(jax.lax.stop_gradient(scores), k)[1].astype(jnp.int32)


def pick(values: Array, ids: Array) -> Array:
    """values [..., N] at ids [..., K], with a gradient that is a sum instead of a scatter."""
    chosen = jax.nn.one_hot(ids, values.shape[-1], dtype=values.dtype)
    return jnp.sum(values[..., None, :] * chosen, axis=-1)
