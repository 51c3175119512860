"""Judges a router by what it does to small inputs.

Axes: G groups, T tokens, K choices, E experts, N ids.
"""

import dataclasses
import functools
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from moe_vision.check import inputs, programs, shapes
from moe_vision.check.inputs import Given
from moe_vision.common import quick
from moe_vision.common.errors import UserError
from moe_vision.config import registry
from moe_vision.layers.moe import make_router
from moe_vision.layers.route import observed
from moe_vision.routing.router import Router
from moe_vision.routing.types import Array, Context, Routing, SoftRouting, View


def router(name: str, args: Any = None, given: Given = inputs.GIVEN) -> None:
    """Checks a router: a name in ROUTERS or 'module:Class'.

    Padding makes no choice and is not observed, groups do not see each other, ids and probabilities
    are what they say, settled routes draw nothing, gradients are finite, `update_state` keeps
    shapes and types, evaluation can be traced for any number of groups, and a second routed layer
    takes what the first hands on. A router that `needs` what only a backbone of one's own supplies
    is judged by its state alone.

    Raises:
      UserError: the first thing that does not hold.
    """
    place = given.place(name)
    made, what = make_router(name, args, place), f"router '{name}'"
    kept = inputs.state_of(made)
    if not set(made.needs) <= inputs.SUPPLIED:
        shapes.state(made, {})
        return
    params = inputs.params_of(made)
    view = given.view(place, params, kept) if 'bank' in made.needs else None
    tokens = inputs.tokens_of(made.pool is not None if view is None else given.is_map)

    def routed(params: Any, features: Array, tokens: Array, context: Context) -> Any:
        return made(params, kept, features, _seeing(context, view, params, tokens))

    def seen(params: Any) -> dict[str, Array]:
        features = inputs.features_of(made, params, tokens)
        context = _seeing(inputs.context(), view, params, tokens)
        return observed(made, made(params, kept, features, context), context)

    sums = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), jax.eval_shape(seen, params)
    )
    shapes.state(made, sums)
    features = inputs.features_of(made, params, tokens)

    def weights(
        params: Any, features: Array, tokens: Array, key: Array, settled: Array
    ) -> tuple[Array, Routing | SoftRouting]:
        context = dataclasses.replace(inputs.context(), key=key, settled=settled)
        routing = routed(params, features, tokens, context)
        gate = routing.combine if isinstance(routing, SoftRouting) else routing.gate
        return jnp.sum(gate) + jnp.sum(jnp.sin(routing.probs)), routing

    compiled = quick.jit(jax.grad(weights, (0, 1), has_aux=True))

    def run(params: Any, features: Array, key: int = 0, settled: bool = False) -> Any:
        return compiled(params, features, tokens, jax.random.key(key), jnp.asarray(settled))

    gradients, first = run(params, features)
    changed = [a.at[1].set(inputs.normal(2, *a.shape[1:])) for a in (features, tokens)]
    other = compiled(params, *changed, jax.random.key(0), jnp.asarray(False))[1]
    _padding(what, first)
    _observes_no_padding(made, first, _seeing(inputs.context(), view, params, tokens))
    _ids(what, first, made)
    _soft(name, first, made)
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(first), jax.tree.leaves(other), strict=True
    ):
        if jnp.shape(a)[:1] == (inputs.G,) and not np.array_equal(a[0], b[0], equal_nan=True):
            field = jax.tree_util.keystr(path).lstrip('.')
            raise UserError(
                f'{what}: {field} of a group changes with the tokens of another group; a group '
                'must be routed by its own tokens alone.'
            )

    inputs.finite(what, gradients)
    inputs.finite(what, run(jax.tree.map(jnp.zeros_like, params), features)[0], equal=True)
    if not made.draws:
        _draws_nothing(what, *(run(params, features, key, settled=True)[1] for key in (0, 1)))
    _for_any_groups(functools.partial(routed, params), features, tokens)
    if given.layers > 1:
        later = make_router(name, args, dataclasses.replace(place, layer=1))
        context = dataclasses.replace(inputs.context(), carry=first.carry)
        jax.eval_shape(
            lambda p, s: later(p, s, features, _seeing(context, view, p, tokens)),
            inputs.params_of(later),
            inputs.state_of(later),
        )
    programs.router(name, args, made, given)


def _seeing(context: Context, view: View | None, params: Any, tokens: Array) -> Context:
    """The context of a router that sees experts and tokens."""
    if view is None:
        return context
    return context.with_view(dataclasses.replace(view, params=params, tokens=tokens))


def _padding(what: str, routing: Routing | SoftRouting) -> None:
    if isinstance(routing, Routing):
        taken, field = np.asarray(routing.active)[~inputs.VALID].any(), 'active'
    else:
        used = routing.dispatch
        taken, field = np.any(np.asarray(0 if used is None else used[~inputs.VALID])), 'dispatch'
    if taken:
        raise UserError(
            f'{what} ignores context.valid: {field} is not '
            f'{"False" if field == "active" else "0"} for padding; multiply it by '
            'context.valid[..., None].'
        )


def _soft(name: str, routing: Routing | SoftRouting, made: Router) -> None:
    """Whether a router says what it runs, by which FLOPs are counted."""
    soft = isinstance(routing, SoftRouting)
    if soft != ('k' in registry.entry('router', registry.ROUTERS, name).ignores):
        raise UserError(
            f"router '{name}' returns a {type(routing).__name__}; a SoftRouting, which runs all "
            "experts, comes from routers whose `ignores` names 'k', and from no others."
        )
    if isinstance(routing, SoftRouting):
        slots = routing.combine.shape[-1] * made.place.num_experts
        due = Fraction(slots, 1 if routing.dispatch is None else inputs.T)
        if made.room(1) != due:
            raise UserError(
                f"router '{name}': its routing has {due} slots per token, but `room`, by which "
                f'FLOPs are counted, says {made.room(1)}; define room(capacity).'
            )


def _observes_no_padding(made: Router, routing: Routing | SoftRouting, context: Context) -> None:
    mask = inputs.VALID[..., None]  # other fields may be 0 where features are
    dirty = dataclasses.replace(routing, probs=jnp.where(mask, routing.probs, 0.75))
    if isinstance(dirty, Routing):
        dirty = dataclasses.replace(dirty, gate=jnp.where(mask, dirty.gate, 0.75))
    what, clean = f'{type(made).__name__}.observe', observed(made, routing, context)
    inputs.finite(what, clean)
    other = observed(made, dirty, context)
    for name, value in clean.items():
        if not np.allclose(value, other[name], rtol=1e-5, atol=1e-6):
            raise UserError(
                f"{what}: '{name}' changes with padding; leave out tokens that are not "
                'context.valid.'
            )


def _draws_nothing(what: str, one: Any, other: Any) -> None:
    soft = isinstance(one, SoftRouting)
    for name in ('combine', 'dispatch') if soft else ('expert_of_choice', 'gate', 'active'):
        a, b = getattr(one, name), getattr(other, name)
        if a is not None and not np.array_equal(a, b, equal_nan=True):
            raise UserError(
                f'{what}: {name} is drawn where routes are settled; take noise through '
                'context.unless_settled(noisy, clean), or say draws = True if routes are random '
                'in evaluation, too.'
            )


def _for_any_groups(
    fn: Callable[[Array, Array, Context], Any], features: Array, tokens: Array
) -> None:
    """Traces evaluation for any number of groups, as the export does."""
    (g,) = export.symbolic_shape('g')

    def symbolic(a: Any) -> jax.ShapeDtypeStruct:
        a = jnp.asarray(a)
        lead = (g,) if a.shape[:1] == (inputs.G,) else a.shape[:1]
        return jax.ShapeDtypeStruct((*lead, *a.shape[1:]), a.dtype)

    context = dataclasses.replace(inputs.context(), train=False, labels=None)
    jax.eval_shape(fn, symbolic(features), symbolic(tokens), jax.tree.map(symbolic, context))


def _ids(what: str, routing: Routing | SoftRouting, made: Router) -> None:
    probs = np.asarray(routing.probs)[inputs.VALID]
    if not (
        np.isfinite(probs).all() and (probs >= 0).all() and np.allclose(probs.sum(-1), 1, 1e-4)
    ):
        raise UserError(f'{what}: probs are no probabilities; each token must have a sum of 1.')
    if isinstance(routing, Routing):
        ids = np.asarray(routing.expert_of_choice)[np.asarray(routing.active)]
        if ids.size and not (0 <= ids.min() and ids.max() < made.num_ids):
            raise UserError(
                f'{what}: expert_of_choice holds {ids.min()} to {ids.max()}; allowed are 0 to '
                f'{made.num_ids - 1}.'
            )
        chosen = np.asarray(jax.nn.one_hot(routing.expert_of_choice, made.place.num_experts))
        if (np.sum(chosen * np.asarray(routing.active)[..., None], 2) > 1).any():
            raise UserError(
                f'{what}: a token chooses one expert twice; it would take two of its slots.'
            )
