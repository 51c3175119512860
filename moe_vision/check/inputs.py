"""The small inputs by which methods are judged.

Axes: G groups, T tokens of a group, N patches of an image, D width, F hidden width.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from moe_vision.common.errors import UserError
from moe_vision.common.place import Place
from moe_vision.config import registry
from moe_vision.layers.moe import make_args, make_expert
from moe_vision.routing.router import Router
from moe_vision.routing.types import Array, Context, View, declared

G, T, D, F, CLASSES, N = 3, 8, 16, 32, 4, 4
VALID = np.ones((G, T), bool)
VALID[0, [1, 4]], VALID[2] = False, False  # some padding, none, and a group of nothing else
SUPPLIED = {'labels', 'domain', 'image', 'map', 'attention', 'bank'}  # of what routers may need


def place_of(router: str, num_experts: int = 4, k: int = 2) -> Place:
    """Where a router stands here: among patches if it reads attention, else among images."""
    patches = router and 'attention' in registry.entry('router', registry.ROUTERS, router).needs
    return Place(num_experts, k, T, tokens_per_image=N if patches else 1)


def params_of(made: Router) -> dict[str, Array]:
    """What a router learns, by itself and with the routers of other layers."""
    declares = type(made).__name__
    own = declared(f'{declares}.params', made.params(D))
    return drawn(own | declared(f'{declares}.shared_params', made.shared_params()))


def view_of(name: str, args: Any, place: Place, params: Any, state: Any) -> View:
    """What losses, and routers that need 'bank', see of experts of this name."""
    made = make_expert(name, narrow(name, args), D, F)
    is_map = 'map' in registry.entry('expert', registry.EXPERTS, name).needs
    tokens = normal(1, G, T, *((4, 4) if is_map else ()), D)
    bank = drawn(declared(f'{type(made).__name__}.shapes', made.shapes()), place.num_experts)
    return View(place, None, params, state, tokens=tokens, bank=bank, expert=made)


def seeing(context: Context, view: View | None, features: Array) -> Context:
    """The context of a router that sees experts; tokens that are vectors are their features."""
    if view is None:
        return context
    same = view.tokens is not None and view.tokens.shape[2:] == features.shape[2:]
    seen = dataclasses.replace(view, tokens=features) if same else view
    return dataclasses.replace(context, view=seen)


def context() -> Context:
    """A step in training, with everything that a router may need but the experts."""
    g, t = VALID.shape
    return Context(
        valid=jnp.asarray(VALID),
        key=jax.random.key(0),
        group=jnp.arange(g),
        fraction=jnp.float32(0.3),
        labels=jnp.arange(g * t).reshape(g, t) % CLASSES,
        extras={
            'domain': jnp.arange(g * t).reshape(g, t) % 2,
            'attention': jax.nn.softmax(normal(3, g, t, N)),
        },
        capacity=t // 2,
        train=True,
    )


def features_of(made: Router, params: Any) -> Array:
    """Features [G, T, D'] as a router gets them: drawn, or pooled from drawn maps [B, 4, 4, D]."""
    if made.pool is None:
        return normal(1, G, T, D)
    extras = {n: v.reshape(-1, *v.shape[2:]) for n, v in context().extras.items()}
    extras['image'] = normal(4, G * T, 8, 8, 3)
    return made.pool(params, normal(1, G * T, 4, 4, D), extras).reshape(G, T, -1)


def narrow(expert: str, args: Any) -> Any:
    """The Args of an expert for the few channels that there are here."""
    entry = registry.entry('expert', registry.EXPERTS, expert)
    made = make_args('expert', expert, entry, args)
    narrow = hasattr(made, 'norm_groups')
    return dataclasses.replace(made, norm_groups=4) if narrow else made


def drawn(shapes: dict[str, Any], stacked: int = 0) -> dict[str, Array]:
    """Parameters from their own initializers, with noise so that none is zero."""
    lead = (stacked,) if stacked else ()
    return {
        name: init(jax.random.key(i), shape) + 0.1 * normal(10 + i, *lead, *shape)
        for i, (name, (shape, init)) in enumerate(shapes.items())
    }


def normal(seed: int, *shape: int) -> Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def finite(what: str, tree: Any, equal: bool = False) -> None:
    if not all(np.isfinite(np.asarray(a, np.float32)).all() for a in jax.tree.leaves(tree)):
        why = 'one group of three here is nothing but padding, whose features are 0'
        if equal:
            why = f'here all parameters are 0, so that all logits are equal; {why}'
        raise UserError(f'{what}: a value or a gradient is not finite; {why}.')
