"""The base class of routers, which also checks what a router returns.

Axes: G groups, T tokens of a group, K choices of a token, E experts, N ids a router may choose
(E, or more where some ids are null experts), P slots per expert of a soft router, D width.
"""

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp

from moe_vision.common.errors import UserError
from moe_vision.common.place import Place
from moe_vision.routing.types import Array, Context, Routing, SoftRouting, expect

_FLOAT = 'float32'


class Router:
    """Base class of routers. A router is arithmetic alone and holds no arrays.

    A subclass defines `choose`; `params` and `init_state` name what it learns and what it keeps.
    Parameters and state are passed to the call, so that the same object serves a Linen layer, a
    vmap over seeds and a function of one's own.

    Attributes:
      needs: what the router reads besides features: names in `Context.extras` that the backbone or
        the data must supply; 'labels', which `Context.labels` then holds in training; or 'bank',
        which puts tokens and experts into `Context.view`, on one device of the expert axis.
      draws: whether routes are random in evaluation, too.
      compares: whether, in evaluation, what happens to a token depends on the other tokens of its
        group, besides the slots that they take.
      pool: None, or `pool(params, x [B, *, D], extras) -> [B, D']`, the features by which tokens
        are routed. It runs before the tokens are split into groups, and only its result travels
        with them. `extras` holds the 'image' besides, [images, H, W, C], if the router needs it.
        None takes the mean of a map over space in float32, or the vector itself.
    """

    needs: tuple[str, ...] = ()
    draws = False
    compares = False
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

    def room(self, capacity: int) -> Fraction:
        """Slots of all true experts per token of a group, with C = capacity.

        A router that returns a `SoftRouting` says it: E * P / T, or E where `dispatch` is None.
        """
        return Fraction(capacity * self.place.num_experts, self.place.group_size)

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
        given = set(context.extras) | ({'labels'} if context.labels is not None else set())
        given |= {'bank'} if context.view is not None else set()
        for name in self.needs:
            # `pool` reads the map and the image; labels are there in training alone
            read_elsewhere = ('image', 'map') if context.train else ('image', 'map', 'labels')
            if name in given or name in read_elsewhere:
                continue
            if name == 'bank':
                raise UserError(
                    f"router {type(self).__name__} needs 'bank', all experts on one device; lay "
                    'them over no mesh, or over one whose expert axis is 1.'
                )
            raise UserError(
                f"router {type(self).__name__} needs '{name}', but the step and the backbone "
                f'give {", ".join(sorted(given)) or "nothing"}; put it into Step.'
                f'{"labels" if name == "labels" else "extras"}.'
            )
        features = jnp.where(context.valid[..., None], features, jnp.zeros((), features.dtype))
        routing = self.choose(params, state, features, context)
        _check_routing(f'{type(self).__name__}.choose', routing, context, self)
        return routing

    def routing(
        self,
        context: Context,
        logits: Array,
        ids: Array,
        gate: Array,
        *,
        probs: Array | None = None,
        active: Array | None = None,
        **more: Any,
    ) -> Routing:
        """What `choose` returns, with the arguments that routers share.

        Gates are divided by their sum over a token's choices if `args.renormalize` says so, and
        multiplied by `args.gate_scale`.

        Args:
          logits: [G, T, N].
          ids: [G, T, K], the choices, the first one first.
          gate: [G, T, K].
          probs: [G, T, N]; None takes the softmax of the logits.
          active: [G, T, K] bool, choices that were made; None means all. Padding makes none.
          more: other fields of `Routing`.
        """
        made = jnp.broadcast_to(context.valid[..., None], ids.shape)
        if active is not None:
            made &= active
        if getattr(self.args, 'renormalize', False):
            counted = gate if active is None else jnp.where(made, gate, 0.0)
            gate = gate / (counted.sum(-1, keepdims=True) + 1e-9)
        return Routing(
            probs=jax.nn.softmax(logits) if probs is None else probs,
            logits=logits,
            expert_of_choice=ids,
            gate=gate * getattr(self.args, 'gate_scale', 1.0),
            active=made,
            **more,
        )

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
        if routing.allowed is not None:
            check('allowed', (g, n), bool, '[G, N]')
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
