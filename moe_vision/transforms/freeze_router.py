"""Freezes all routers for the rest of training.

From a step on, the parameters of routers keep their bits, and so does the state of routers. The
noise of routers and the losses of routing are off from then on, so the routes of a given image
change with its features alone.

Source: Li et al. 2024 (arXiv 2406.16437), whose theory says that a router with noise must stop
learning once it has explored. The paper stops it when the gates of all experts are apart by more
than a threshold. A step or a share of training is this project's own choice, and so is that the
state of routers stands still. A temperature schedule goes on: it changes gates and no choices. An
average of weights (`train.ema_decay`) still approaches the frozen router.
"""

import jax.numpy as jnp

from moe_vision.common.errors import UserError
from moe_vision.transforms.types import Transform, of_router, require


class FreezeRouter(Transform):
    routed = True

    def __init__(self, args, steps):
        super().__init__(args, steps)
        self._at = args.step
        if args.at == 'fraction':
            self._at = min(round(args.fraction * steps), steps - 1)
        if self._at >= steps:
            raise UserError(
                f'step is {self._at}, but the run takes {steps} steps; freeze earlier, or leave '
                'the transform out.'
            )

    def init(self, params):
        require(of_router, "'/router/'", params)
        return {'frozen': jnp.zeros((), jnp.int32)}  # 1 stays, also if the run is made longer

    def settled(self, *, step, state):
        return (step >= self._at) | (state['frozen'] == 1)

    def moves(self, path, param, *, step, state):
        return ~self.settled(step=step, state=state) if of_router(path) else True

    def update(self, updates, params, *, step, state):
        return updates, {'frozen': self.settled(step=step, state=state).astype(jnp.int32)}
