"""Judges a loss, an expert or a backbone by what it does to small inputs.

Axes: G groups, T tokens, E experts, B images, D width, F hidden width.
"""

import dataclasses
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from moe_vision import models
from moe_vision.check import inputs, shapes
from moe_vision.check.inputs import Given
from moe_vision.common import quick
from moe_vision.common.errors import UserError
from moe_vision.common.place import Place
from moe_vision.config import registry
from moe_vision.config.routing_rules import REMEDIES
from moe_vision.config.schema import Model, Moe
from moe_vision.layers import Step
from moe_vision.layers.experts import Expert
from moe_vision.layers.moe import make_args, make_expert, make_router
from moe_vision.routing.router import Router
from moe_vision.routing.types import Array, Routing, SoftRouting, declared, expect


def loss(
    name: str,
    args: Any = None,
    router: str = '',
    router_args: Any = None,
    given: Given = inputs.GIVEN,
) -> None:
    """Checks a loss: a name in LOSSES or 'module:function'.

    One of groups has one finite value per group, which padding and other groups do not change; one
    of a layer is a finite number. Gradients are finite.

    Args:
      router, router_args: whose routes the loss gets; '' for `supervised` with noise, which has
        all fields, or for the router of the table that alone supplies what the loss needs.

    Raises:
      UserError: the first thing that does not hold.
    """
    what = f"loss '{name}'"
    entry = registry.entry('loss', registry.LOSSES, name)
    fn, own = registry.load(entry.path), make_args('loss', name, entry, args)
    supplied = [*registry.entry('expert', registry.EXPERTS, given.expert).supplies]
    if router:
        of_router = registry.entry('router', registry.ROUTERS, router)
        supplied += of_router.supplies
        if 'choices' in entry.needs and 'k' in of_router.ignores:
            raise UserError(f"{what} needs choices, but router '{router}' makes none.")
    if unknown := set(entry.needs) - set(REMEDIES) - set(supplied):
        raise UserError(
            f"{what} needs '{min(unknown)}', which nothing supplies; a router or an expert of your "
            f'own can name it in `supplies`. Otherwise allowed: {", ".join(REMEDIES)}.'
        )
    place = given.place(router)
    made = make_router(router, router_args, place) if router else _supplier(entry, place)
    if lacks := set(made.needs) - inputs.SUPPLIED:
        raise UserError(
            f"{what} cannot be checked with router '{router}', which needs "
            f'{", ".join(sorted(lacks))} of a backbone; name another router.'
        )
    context, params, state = inputs.context(), inputs.params_of(made), inputs.state_of(made)
    seen = given.view(place, params, state)
    x = inputs.features_of(made, params, inputs.tokens_of(made.pool is not None))
    view = dataclasses.replace(seen, args=own)
    if not entry.of_layer and 'bank' not in entry.needs:
        view = dataclasses.replace(view, bank=None, expert=None)
    if entry.of_layer:

        def of_layer(params: Any, bank: Any) -> Array:
            layer = dataclasses.replace(view, params=params, bank=bank, tokens=None)
            return fn(layer, jax.random.key(1))

        value = quick.jit(of_layer)(params, view.bank)
        expect(what, value, (), 'float32', 'one number')
        inputs.finite(what, (value, quick.jit(jax.grad(of_layer, (0, 1)))(params, view.bank)))
        return
    read = context.with_view(seen, 'bank' in made.needs)
    routing = quick.jit(lambda p, x: made(p, state, x, read))(params, x)
    value = quick.jit(lambda r: fn(r, context, view))
    first = value(routing)
    expect(what, first, (inputs.G,), 'float32', 'one value per group, [G]')
    inputs.finite(what, first)

    def changed(where: np.ndarray) -> Routing | SoftRouting:
        fields = {}
        for n, field in enumerate(('probs', 'logits', 'noisy_logits')):
            if (old := getattr(routing, field, None)) is not None:
                by = inputs.normal(5 + n, *old.shape)
                by = jax.nn.softmax(by) if field == 'probs' else by
                fields[field] = jnp.where(where[..., None], by, old)
        return dataclasses.replace(routing, **fields)

    if not np.allclose(value(changed(~inputs.VALID)), first, rtol=1e-5, atol=1e-6):
        raise UserError(
            f'{what} changes with the routes of padding; leave out tokens that are '
            'not context.valid.'
        )
    group = np.zeros_like(inputs.VALID)
    group[1] = True
    if not np.allclose(value(changed(group))[0], first[0], rtol=1e-5, atol=1e-6):
        raise UserError(
            f'{what} of a group changes with another group; expected one value of each.'
        )
    floats = {'probs': routing.probs, 'logits': routing.logits}
    gradient = jax.grad(lambda f: jnp.sum(fn(dataclasses.replace(routing, **f), context, view)))
    inputs.finite(what, quick.jit(gradient)(floats))


def expert(name: str, args: Any = None) -> None:
    """Checks an expert: a name in EXPERTS or 'module:Class'.

    It keeps shape and type in float32 and bfloat16, does the same in a bank as by itself, does not
    mix tokens, and has finite gradients.

    Raises:
      UserError: the first thing that does not hold.
    """
    needs = registry.entry('expert', registry.EXPERTS, name).needs
    space = (4, 4) if 'map' in needs else ()
    one_expert(name, make_expert(name, args, inputs.D, inputs.F), space, ('float32', 'bfloat16'))


def one_expert(name: str, made: Expert, space: tuple[int, ...], dtypes: Iterable[Any]) -> None:
    """`expert` for one that is made, on tokens [*space, D] of these types."""
    what = f"expert '{name}'"
    params = inputs.drawn(declared(f'{type(made).__name__}.shapes', made.shapes()), stacked=3)
    x = inputs.normal(1, 3, 5, *space, made.width)
    one = {n: w[0] for n, w in params.items()}
    for dtype in dtypes:
        jax.eval_shape(made.run, one, x[0].astype(dtype))
        jax.eval_shape(made.run_stacked, params, x.astype(dtype))
    run, together = quick.jit(made.run), quick.jit(made.run_stacked)
    alone = run(one, x[0])
    if not np.allclose(together(params, x)[0], alone, rtol=1e-4, atol=1e-4):
        raise UserError(
            f'{what}: apply_stacked does not for each expert what it does for one alone, or what '
            'apply does; they must agree, and nothing may mix experts, which a mesh splits.'
        )
    moved = run(one, x[0].at[-1].set(7.0))
    if not np.allclose(moved[:-1], alone[:-1], rtol=1e-4, atol=1e-4):
        raise UserError(f'{what}: the output for a token changes with another token.')
    gradient = jax.grad(lambda p, x: jnp.sum(made.run(p, x)), (0, 1))
    inputs.finite(what, quick.jit(gradient)(one, x[0]))


def backbone(name: str, args: Any = None, image: tuple[int, int, int] = (16, 16, 3)) -> None:
    """Checks a backbone: a name in BACKBONES or 'module:Class'.

    With its last block routed it returns logits [B, classes], float32, and what its routed layers
    report. Padding does not change what other images get. Gradients are finite.

    Raises:
      UserError: the first thing that does not hold.
    """
    what, entry = f"backbone '{name}'", registry.entry('backbone', registry.BACKBONES, name)
    fields: Any = make_args('backbone', name, entry, args)
    count = getattr(fields, 'tokens', None)
    tokens = count(*image[:2]) if count and entry.unit == 'patch' else 1
    used = entry.expert or 'mlp'
    expert_args = inputs.narrow(used, None)
    moe = Moe(
        router_args=registry.TopKArgs(),
        expert=used,
        expert_args=expert_args,
        group_size=2 * tokens,
        num_experts=3,
        losses={},
    )
    model = Model(name=name, args=fields, moe=moe)
    shapes.network(model, image, inputs.CLASSES, 4)
    net, key = models.build(model, inputs.CLASSES), jax.random.key(0)
    x, valid = inputs.normal(1, 4, *image), jnp.asarray([True, True, True, False])
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
    inputs.finite(what, clean)


def _supplier(loss: registry.Entry, place: Place) -> Router:
    """A router that has what a loss needs: `supervised` unless another one alone supplies it."""
    for name, entry in registry.ROUTERS.items():
        of_supervised = registry.ROUTERS['supervised'].supplies
        if set(loss.needs) & set(entry.supplies) - set(of_supervised):
            return make_router(name, None, place)
    return make_router('supervised', {'noise': 'gaussian'}, place)
