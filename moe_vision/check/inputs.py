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
from moe_vision.config.kinds import SKIP, Kind, kind_of_id, skips, true_kinds
from moe_vision.layers.moe import make_args, make_experts
from moe_vision.routing.router import Router
from moe_vision.routing.types import Array, Context, View, as_state, declared

G, T, D, F, CLASSES, N = 3, 8, 16, 32, 4, 4
VALID = np.ones((G, T), bool)
VALID[0, [1, 4]], VALID[2] = False, False  # some padding, none, and a group of nothing else
SUPPLIED = {'labels', 'domain', 'image', 'map', 'attention', 'bank'}  # of what routers may need


@dataclasses.dataclass(frozen=True)
class Given:
    """What a router or a loss is judged with.

    Attributes:
      num_experts, k: E and K.
      layers: routed layers of the network.
      kinds, expert, expert_args: the experts that it may read, as in `MoE`.
    """

    num_experts: int = 4
    k: int = 2
    layers: int = 2
    kinds: tuple[Kind, ...] = ()
    expert: str = 'mlp'
    expert_args: Any = None

    def place(self, router: str) -> Place:
        """The first routed place: among patches if the router reads attention, else images."""
        entry = registry.entry('router', registry.ROUTERS, router) if router else None
        return Place(
            self.num_experts,
            self.k,
            T,
            layers=self.layers,
            tokens_per_image=N if entry and 'attention' in entry.needs else 1,
            kinds=kind_of_id(self.kinds),
            skips=skips(self.kinds),
        )

    @property
    def is_map(self) -> bool:
        """Whether the experts take maps."""
        names = [k.expert or self.expert for k in true_kinds(self.kinds)] or [self.expert]
        return any(
            'map' in needs and 'vector' not in needs
            for needs in (registry.entry('expert', registry.EXPERTS, n).needs for n in names)
        )

    def narrowed(self) -> tuple[Kind, ...]:
        """The kinds, for the few channels that there are here."""
        return tuple(
            dataclasses.replace(k, args=narrow(k.expert, k.args), hidden=0)
            if k.expert and k.expert != SKIP
            else k
            for k in self.kinds
        )

    def view(self, place: Place, params: Any, state: Any) -> View:
        """What losses, and routers that need 'bank', see of these experts."""
        own = narrow(self.expert, self.expert_args)
        experts = make_experts(self.narrowed(), self.expert, own, D, F)
        for kind, _ in experts.parts(self.num_experts):
            declared(f'{type(kind).__name__}.shapes', kind.shapes())
        bank = {
            name: drawn({name: (shape, init)}, count)[name]
            for name, (count, shape, init) in experts.bank_shapes(self.num_experts).items()
        }
        return View(place, None, params, state, tokens_of(self.is_map), bank, experts)


GIVEN = Given()


def tokens_of(is_map: bool) -> Array:
    """Tokens [G, T, D], or maps [G, T, 4, 4, D]."""
    return normal(1, G, T, *((4, 4) if is_map else ()), D)


def params_of(made: Router) -> dict[str, Array]:
    """What a router learns, by itself and with the routers of other layers."""
    declares = type(made).__name__
    own = declared(f'{declares}.params', made.params(D))
    return drawn(own | declared(f'{declares}.shared_params', made.shared_params()))


def state_of(made: Router) -> dict[str, Array]:
    """What a router keeps at first, by itself and with the routers of other layers."""
    declares = type(made).__name__
    own = as_state(f'{declares}.init_state', made.init_state())
    return own | as_state(f'{declares}.init_shared_state', made.init_shared_state())


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


def features_of(made: Router, params: Any, tokens: Array) -> Array:
    """Features [G, T, D'] as a router gets them: the mean over space, or pooled by itself."""
    if made.pool is None:
        return tokens.mean(tuple(range(2, tokens.ndim - 1)))
    extras = {n: v.reshape(-1, *v.shape[2:]) for n, v in context().extras.items()}
    extras['image'] = normal(4, G * T, 8, 8, 3)
    return made.pool(params, tokens.reshape(G * T, *tokens.shape[2:]), extras).reshape(G, T, -1)


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
