"""What a router reads, what it returns, and the base class of routers.

Axes: G groups, T tokens of a group, K choices of a token, E experts, N ids a router may choose
(E, or more where some ids are null experts), P slots per expert of a soft router, D width.
"""

import dataclasses
from collections.abc import Callable
from fractions import Fraction
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
    capacity: int = dataclasses.field(default=0, metadata={'static': True})  # C, slots per expert
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
      needs: what the router reads besides features: names in `Context.extras` that the backbone or
        the data must supply, or 'labels', which `Context.labels` then holds in training.
      draws: whether routes are random in evaluation, too.
      pool: None, or `pool(params, x [B, *, D], extras) -> [B, D']`, the features by which tokens
        are routed. It runs before the tokens are split into groups, and only its result travels
        with them. `extras` holds the 'image' besides, [images, H, W, C], if the router needs it.
        None takes the mean of a map over space in float32, or the vector itself.
    """

    needs: tuple[str, ...] = ()
    draws = False
    pool: Callable[..., Array] | None = None

    def __init__(self, args: Any, place: Place):
        self.args, self.place = args, place
        # a router need not know which of the experts among which it chooses are null ones
        self.num_experts, self.k = place.num_experts + place.skips, place.k

    @property
    def num_ids(self) -> int:
        """N, the number of ids that may be chosen, null experts included."""
        return self.num_experts

    def choices(self, capacity: int) -> Fraction:
        """True experts that a token takes, the mean under balanced choices.

        Args:
          capacity: C, for routers whose number of choices follows from it.
        """
        del capacity
        return Fraction(self.k * self.place.num_experts, self.num_ids)

    def params(self, width: int) -> dict[str, tuple[tuple[int, ...], Any]]:
        """Name -> (shape, initializer) of what is learned, for features of this width."""
        init = jax.nn.initializers.normal(width**-0.5)
        return {'kernel': ((width, self.num_ids), init)}

    def init_state(self) -> dict[str, Array]:
        """What is kept between steps. It is replicated, checkpointed and has no gradient."""
        return {}

    def shared_params(self) -> dict[str, tuple[tuple[int, ...], Any]]:
        """The same as `params` for what all routers of a network share, under other names."""
        return {}

    def init_shared_state(self) -> dict[str, Array]:
        """The same as `init_state` for what all routers of a network share, under other names."""
        return {}

    def choose(self, params, state, features: Array, context: Context) -> Routing | SoftRouting:
        """Routes features [G, T, D], float32. Those of padding are zero.

        The fields of `Routing` say what shapes are due. Padding makes no choice: `active` is False
        where `context.valid` is.
        """
        raise NotImplementedError

    def __call__(self, params, state, features: Array, context: Context) -> Routing | SoftRouting:
        """Routes features [G, T, D]. Padding may hold anything, NaN included.

        Raises:
          UserError: the context lacks what the router needs, or `choose` returned something else
            than a routing of these shapes.
        """
        given = context.extras | ({} if context.labels is None else {'labels': context.labels})
        for name in self.needs:
            # `pool` reads the map and the image; labels are there in training alone
            read_elsewhere = ('image', 'map') if context.train else ('image', 'map', 'labels')
            if name in given or name in read_elsewhere:
                continue
            raise UserError(
                f"router {type(self).__name__} needs '{name}', but the step and the backbone "
                f'give {", ".join(given) or "nothing"}; put it into Step.'
                f'{"labels" if name == "labels" else "extras"}.'
            )
        features = jnp.where(context.valid[..., None], features, jnp.zeros((), features.dtype))
        routing = self.choose(params, state, features, context)
        _check_routing(f'{type(self).__name__}.choose', routing, context, self)
        return routing

    def observe(self, routing: Routing | SoftRouting, context: Context) -> dict[str, Array]:
        """What `update_state` needs of this step besides the choices: name -> [G, ...], float32.

        Training adds these up over groups, devices and micro-batches. Padding must not count.
        """
        del routing, context
        return {}

    def update_state(self, state, sums: dict[str, Array]):
        """The state after an optimizer step. Each of its arrays keeps its shape and type.

        Args:
          sums: over all tokens of the step, 'chosen' [N], how often each id was chosen; 'tokens',
            how many there were; and what `observe` returns.
        """
        del sums
        return state

    def update_shared_state(self, state, sums: list[dict[str, Array]]):
        """`update_state` for what all routers share; `sums` has those of each layer, in order."""
        del sums
        return state


@dataclasses.dataclass(frozen=True)
class View:
    """What a loss may read besides the routing: the router's arrays, the tokens or the experts.

    Attributes:
      place: where the layer stands.
      args: the loss's own arguments.
      params, state: of the router.
      tokens: [G, T, *, D], what experts read; of a loss of a group.
      bank: parameters of all experts, each with a leading E; of a loss of a layer. Those of experts
        that differ are named `kind_{n}_{name}` and lead with the number of experts of that kind.
      expert: the expert, which runs with such parameters; of a loss of a layer.
    """

    place: Place
    args: Any = None
    params: Any = dataclasses.field(default_factory=dict)
    state: Any = dataclasses.field(default_factory=dict)
    tokens: Array | None = None
    bank: Any = None
    expert: Any = None

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


_FLOAT = 'float32'


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


def _check_routing(what: str, routing: Any, context: Context, router: Router) -> None:
    """Raises UserError for the first field whose shape or type is not the one that is due."""
    g, t = context.valid.shape
    n, e = router.num_ids, router.num_experts
    if not isinstance(routing, Routing | SoftRouting):
        raise UserError(
            f'{what} returned {type(routing).__name__}; expected a Routing or a SoftRouting.'
        )

    def check(name: str, shape: tuple[int, ...], dtype: Any, meaning: str) -> None:
        expect(f'{what}: {name}', getattr(routing, name), shape, dtype, meaning)

    if isinstance(routing, SoftRouting):
        p = getattr(routing.combine, 'shape', (0,))[-1:] or (0,)
        for name in ('combine', *([] if routing.dispatch is None else ['dispatch'])):
            check(name, (g, t, e, p[0]), _FLOAT, '[G, T, E, P]')
        check('probs', (g, t, e), _FLOAT, '[G, T, E]')
        check('logits', (g, t, e * p[0]), _FLOAT, '[G, T, E * P]')
    else:
        k = getattr(routing.expert_of_choice, 'shape', ())[2:3] or (router.k,)
        check('expert_of_choice', (g, t, *k), 'int', '[G, T, K]')
        check('gate', (g, t, *k), _FLOAT, '[G, T, K]')
        check('active', (g, t, *k), bool, '[G, T, K]')
        for name in ('probs', 'logits', 'noisy_logits'):
            if name != 'noisy_logits' or routing.noisy_logits is not None:
                check(name, (g, t, n), _FLOAT, '[G, T, N] with all ids that may be chosen')
        if routing.superclass is not None:
            check('superclass', (g, t), 'int', '[G, T]')
        if jnp.ndim(0.0 if routing.noise_std is None else routing.noise_std):
            check('noise_std', (g, t, n), _FLOAT, 'a scalar or [G, T, N]')
    if jnp.ndim(routing.temperature):
        check('temperature', (g, t), _FLOAT, 'a scalar or [G, T]')
    for name, value in routing.aux.items():
        if jnp.shape(value)[:1] != (g,):
            raise UserError(
                f"{what}: aux '{name}' has shape {list(jnp.shape(value))}; expected {[g]} and "
                'more, [G, ...].'
            )
    for leaf in jax.tree.leaves(routing.carry):
        if jnp.shape(leaf)[:2] != (g, t):
            raise UserError(
                f'{what}: carry has an array of shape {list(jnp.shape(leaf))}; expected '
                f'{[g, t]} and more, [G, T, ...].'
            )
