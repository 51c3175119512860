"""What a router learns and keeps, as variables of Linen."""

import flax.linen as nn
import jax

from moe_vision.routing.router import Router
from moe_vision.routing.types import as_state, declared

Array = jax.Array


class RouterVariables(nn.Module):
    """What a router learns (collection 'params') and keeps (collection 'router_state').

    With width 0 it is what all routers of the network share. A layer that is alone, outside a
    network that shares, has that to itself.
    """

    router: Router
    width: int
    alone: bool = False

    @nn.compact
    def __call__(self) -> tuple[dict[str, Array], dict[str, Array]]:
        shapes, initial = {}, {}
        of = type(self.router).__name__
        if self.width:
            shapes = declared(f'{of}.params', self.router.params(self.width))
            initial = as_state(f'{of}.init_state', self.router.init_state())
        if self.alone or not self.width:
            shapes = shapes | declared(f'{of}.shared_params', self.router.shared_params())
            shared = self.router.init_shared_state()
            initial = initial | as_state(f'{of}.init_shared_state', shared)
        params = {name: self.param(name, init, shape) for name, (shape, init) in shapes.items()}
        state = {
            name: self.variable('router_state', name, lambda v=value: v).value
            for name, value in initial.items()
        }
        return params, state
