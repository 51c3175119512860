"""Judges a router, a loss, an expert or a backbone by what it does to small inputs.

Axes: G groups, T tokens, K choices, E experts, N ids, B images, D width, F hidden width.
"""

import dataclasses
import typing
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from moe_vision import models
from moe_vision.check import programs, quick, shapes
from moe_vision.common.errors import UserError
from moe_vision.common.place import Place
from moe_vision.config import registry
from moe_vision.config.schema import Model, Moe
from moe_vision.layers import Step
from moe_vision.layers.moe import make_args, make_expert, make_router
from moe_vision.routing.router import Router
from moe_vision.routing.types import Array, Context, Routing, SoftRouting, View, expect

_G, _T, _D, _F, _CLASSES, _N = 3, 8, 16, 32, 4, 4
_VALID = np.ones((_G, _T), bool)
_VALID[0, [1, 4]], _VALID[2] = False, False  # some padding, none, and a group of nothing else


def router(name: str, args: Any = None, num_experts: int = 4, k: int = 2) -> None:
    """Checks a router: a name in ROUTERS or 'module:Class'.

    Padding makes no choice, groups do not see each other, ids and probabilities are what they say,
    gradients are finite, and `update_state` keeps shapes and types. A router that `needs` what
    only a backbone of one's own supplies is judged by its state alone.

    Raises:
      UserError: the first thing that does not hold.
    """
    patches = 'attention' in registry.entry('router', registry.ROUTERS, name).needs
    place = Place(num_experts, k, _T, tokens_per_image=_N if patches else 1)
    made, what = make_router(name, args, place), f"router '{name}'"
    if set(made.needs) - {'labels', 'image', 'map', *_context(_VALID).extras}:
        shapes.state(made, {})
        return
    params = _drawn(made.params(_D) | made.shared_params())
    kept, context = made.init_state() | made.init_shared_state(), _context(_VALID)

    def observed(params: Any) -> dict[str, Array]:
        routing = made(params, kept, _features(made, params), context)
        return {n: v.sum(0) for n, v in made.observe(routing, context).items()}

    shapes.state(made, jax.eval_shape(observed, params))
    features = _features(made, params)

    def weights(params: Any, features: Array) -> tuple[Array, Routing | SoftRouting]:
        routing = made(params, kept, features, context)
        gate = routing.combine if isinstance(routing, SoftRouting) else routing.gate
        return jnp.sum(gate) + jnp.sum(jnp.sin(routing.probs)), routing

    run = quick.jit(jax.grad(weights, (0, 1), has_aux=True))
    gradients, first = run(params, features)
    other = run(params, features.at[1].set(_normal(2, *features.shape[1:])))[1]
    _padding(what, first)
    _ids(what, first, made)
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(first), jax.tree.leaves(other), strict=True
    ):
        if jnp.shape(a)[:1] == (_G,) and not np.array_equal(a[0], b[0], equal_nan=True):
            field = jax.tree_util.keystr(path).lstrip('.')
            raise UserError(
                f'{what}: {field} of a group changes with the tokens of another group; a group '
                'must be routed by its own tokens alone.'
            )

    _finite(what, gradients)
    _finite(what, run(jax.tree.map(jnp.zeros_like, params), features)[0], equal=True)
    programs.router(name, args, made)


def loss(name: str, args: Any = None) -> None:
    """Checks a loss: a name in LOSSES or 'module:function'.

    One of groups has one finite value per group, which padding and other groups do not change; one
    of a layer is a finite number. Gradients are finite. The routing is of router `supervised` with
    noise, which has all fields, or of the router of the table that alone supplies what the loss
    needs; the experts are those named `mlp`.

    Raises:
      UserError: the first thing that does not hold.
    """
    what, experts = f"loss '{name}'", 4
    entry = registry.entry('loss', registry.LOSSES, name)
    fn, own = registry.load(entry.path), make_args('loss', name, entry, args)
    place = Place(experts, 2, _T)
    made = _supplier(entry, place)
    context, params = _context(_VALID), _drawn(made.params(_D) | made.shared_params())
    x = _normal(1, _G, _T, _D)
    state = made.init_state() | made.init_shared_state()
    mlp = make_expert('mlp', None, _D, _F)
    bank = _drawn(mlp.shapes(), stacked=experts)
    view = View(place, own, params, state, tokens=x, bank=bank, expert=mlp)
    if entry.of_layer:

        def of_layer(params: Any, bank: Any) -> Array:
            layer = dataclasses.replace(view, params=params, bank=bank, tokens=None)
            return fn(layer, jax.random.key(1))

        value = quick.jit(of_layer)(params, bank)
        expect(what, value, (), 'float32', 'one number')
        _finite(what, (value, quick.jit(jax.grad(of_layer, (0, 1)))(params, bank)))
        return
    routing = quick.jit(made)(params, view.state, x, context)
    value = quick.jit(lambda r: fn(r, context, view))
    first = value(routing)
    expect(what, first, (_G,), 'float32', 'one value per group, [G]')
    _finite(what, first)

    def changed(where: np.ndarray) -> Routing:
        def at(a: Array | None, by: Array) -> Array | None:
            return a if a is None else jnp.where(where[..., None], by, a)

        probs = jax.nn.softmax(_normal(5, _G, _T, experts))
        logits = _normal(6, _G, _T, experts)
        return dataclasses.replace(
            routing,
            probs=at(routing.probs, probs),
            logits=at(routing.logits, logits),
            noisy_logits=at(routing.noisy_logits, logits),
        )

    if not np.allclose(value(changed(~_VALID)), first, rtol=1e-5, atol=1e-6):
        raise UserError(
            f'{what} changes with the routes of padding; leave out tokens that are '
            'not context.valid.'
        )
    group = np.zeros_like(_VALID)
    group[1] = True
    if not np.allclose(value(changed(group))[0], first[0], rtol=1e-5, atol=1e-6):
        raise UserError(
            f'{what} of a group changes with another group; expected one value of each.'
        )
    floats = {'probs': routing.probs, 'logits': routing.logits}
    gradient = jax.grad(lambda f: jnp.sum(fn(dataclasses.replace(routing, **f), context, view)))
    _finite(what, quick.jit(gradient)(floats))


def expert(name: str, args: Any = None, width: int = _D, hidden: int = _F) -> None:
    """Checks an expert: a name in EXPERTS or 'module:Class'.

    It keeps shape and type in float32 and bfloat16, does the same in a bank as by itself, does not
    mix tokens, and has finite gradients.

    Raises:
      UserError: the first thing that does not hold.
    """
    what, made = f"expert '{name}'", make_expert(name, args, width, hidden)
    needs = registry.entry('expert', registry.EXPERTS, name).needs
    shape = (5, 4, 4, width) if 'map' in needs else (5, width)
    params = _drawn(made.shapes(), stacked=3)
    x = _normal(1, 3, *shape)
    one = {n: w[0] for n, w in params.items()}
    for dtype in (jnp.float32, jnp.bfloat16):
        jax.eval_shape(made.run, one, x[0].astype(dtype))
        jax.eval_shape(made.run_stacked, params, x.astype(dtype))
    run, together = quick.jit(made.run), quick.jit(made.run_stacked)
    alone = run(one, x[0])
    if not np.allclose(together(params, x)[0], alone, rtol=1e-4, atol=1e-4):
        raise UserError(
            f'{what}: apply_stacked does not for each expert what apply does; they must agree.'
        )
    moved = run(one, x[0].at[-1].set(7.0))
    if not np.allclose(moved[:-1], alone[:-1], rtol=1e-4, atol=1e-4):
        raise UserError(f'{what}: the output for a token changes with another token.')
    _finite(what, quick.jit(jax.grad(lambda p, x: jnp.sum(made.run(p, x)), (0, 1)))(one, x[0]))


def backbone(name: str, args: Any = None, image: tuple[int, int, int] = (16, 16, 3)) -> None:
    """Checks a backbone: a name in BACKBONES or 'module:Class'.

    With its last block routed it returns logits [B, classes], float32, and what its routed layers
    report. Padding does not change what other images get. Gradients are finite.

    Raises:
      UserError: the first thing that does not hold.
    """
    what, entry = f"backbone '{name}'", registry.entry('backbone', registry.BACKBONES, name)
    fields = args if dataclasses.is_dataclass(args) else entry.args(**(args or {}))
    count = getattr(fields, 'tokens', None)
    tokens = count(*image[:2]) if count and entry.unit == 'patch' else 1
    used = entry.expert or 'mlp'
    expert_args = registry.entry('expert', registry.EXPERTS, used).args()
    if hasattr(expert_args, 'norm_groups'):
        expert_args = dataclasses.replace(expert_args, norm_groups=4)
    moe = Moe(
        router_args=registry.TopKArgs(),
        expert=used,
        expert_args=expert_args,
        group_size=2 * tokens,
        num_experts=3,
        losses={},
    )
    model = Model(name=name, args=typing.cast(Any, fields), moe=moe)
    shapes.network(model, image, _CLASSES, 4)
    net, key = models.build(model, _CLASSES), jax.random.key(0)
    x, valid = _normal(1, 4, *image), jnp.asarray([True, True, True, False])
    variables = quick.jit(lambda x: net.init(key, x, Step.example(4)))(x)

    @quick.jit
    def logits(x: Array) -> Array:
        return net.apply(variables, x, Step.example(4, valid=valid))[0]

    clean, dirty = logits(x), logits(x.at[3].set(7.0))
    if not np.allclose(clean[:3], dirty[:3], rtol=1e-3, atol=1e-3):
        raise UserError(
            f'{what}: the logits of an image change with padding; give the routed '
            'layers `step`, which says what is valid.'
        )
    _finite(what, clean)


def _supplier(loss: registry.Entry, place: Place) -> Router:
    """A router that has what a loss needs: `supervised` unless another one alone supplies it."""
    for name, entry in registry.ROUTERS.items():
        of_supervised = registry.ROUTERS['supervised'].supplies
        if set(loss.needs) & set(entry.supplies) - set(of_supervised):
            return make_router(name, None, place)
    return make_router('supervised', {'noise': 'gaussian'}, place)


def _padding(what: str, routing: Routing | SoftRouting) -> None:
    if isinstance(routing, Routing):
        taken, field = np.asarray(routing.active)[~_VALID].any(), 'active'
    else:
        used = routing.dispatch
        taken, field = np.any(np.asarray(0 if used is None else used[~_VALID])), 'dispatch'
    if taken:
        raise UserError(
            f'{what} ignores context.valid: {field} is not '
            f'{"False" if field == "active" else "0"} for padding; multiply it by '
            'context.valid[..., None].'
        )


def _ids(what: str, routing: Routing | SoftRouting, made: Router) -> None:
    probs = np.asarray(routing.probs)[_VALID]
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


def _finite(what: str, tree: Any, equal: bool = False) -> None:
    if not all(np.isfinite(np.asarray(a, np.float32)).all() for a in jax.tree.leaves(tree)):
        why = 'one group of three here is nothing but padding, whose features are 0'
        if equal:
            why = f'here all parameters are 0, so that all logits are equal; {why}'
        raise UserError(f'{what}: a value or a gradient is not finite; {why}.')


def _context(valid: np.ndarray) -> Context:
    g, t = valid.shape
    return Context(
        valid=jnp.asarray(valid),
        key=jax.random.key(0),
        group=jnp.arange(g),
        fraction=jnp.float32(0.3),
        labels=jnp.arange(g * t).reshape(g, t) % _CLASSES,
        extras={
            'domain': jnp.arange(g * t).reshape(g, t) % 2,
            'attention': jax.nn.softmax(_normal(3, g, t, _N)),
        },
        capacity=t // 2,
        train=True,
    )


def _features(made: Router, params: Any) -> Array:
    """Features [G, T, D'] as a router gets them: drawn, or pooled from drawn maps [B, 4, 4, D]."""
    if made.pool is None:
        return _normal(1, _G, _T, _D)
    extras = {n: v.reshape(-1, *v.shape[2:]) for n, v in _context(_VALID).extras.items()}
    extras['image'] = _normal(4, _G * _T, 8, 8, 3)
    return made.pool(params, _normal(1, _G * _T, 4, 4, _D), extras).reshape(_G, _T, -1)


def _drawn(shapes: dict[str, Any], stacked: int = 0) -> dict[str, Array]:
    """Parameters from their own initializers, with noise so that none is zero."""
    lead = (stacked,) if stacked else ()
    return {
        name: init(jax.random.key(i), shape) + 0.1 * _normal(10 + i, *lead, *shape)
        for i, (name, (shape, init)) in enumerate(shapes.items())
    }


def _normal(seed: int, *shape: int) -> Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)
