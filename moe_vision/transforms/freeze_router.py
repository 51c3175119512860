"""Freezes routers for the rest of training: at a step, or each one once its routes have converged.

The parameters of a frozen router keep their bits, and so does its state. Its noise and the losses
of its layer are off, so the routes of a given image change with its features alone.

By convergence (`at='convergence'`), training is cut into windows of `window` steps, the first of
which begins after `step` steps. In each step of a window but the first, a layer counts

    c = share of tokens whose most probable expert is another one than with the router's parameters
        at the start of the window,
    l = load of the expert that was chosen least, as a share of the mean load.

A window is calm if the mean of c is at most `change` and that of l at least `least_load`. After
`windows` calm ones in a row the router is frozen for good. Where layers share parameters of their
routers, these are frozen by the mean of c and l over layers, and a layer is settled once both its
own and the shared ones are.

Source: Li et al. 2024 (arXiv 2406.16437), whose theory says that a router with noise must stop
learning once it has explored. The paper stops it when the gates of all experts are apart by more
than a threshold. This project's own choices: a step or a share of training; to measure convergence
by changed routes, all of them of the same tokens, state and features, so that only what the router
learns counts; and that the state of routers stands still. A temperature schedule goes on: it
changes gates and no choices. An average of weights (`train.ema_decay`) still approaches the frozen
router.

Axes: L routers, in the order of their layers' paths; '' is what layers share.
"""

import jax
import jax.numpy as jnp

from moe_vision.common.errors import UserError
from moe_vision.common.paths import path_name
from moe_vision.transforms.types import (
    Array,
    Transform,
    Tree,
    by_path,
    of_router,
    paths,
    require,
    router_of,
)


class FreezeRouter(Transform):
    routed = True

    def __init__(self, args, steps):
        super().__init__(args, steps)
        self._converges = args.at == 'convergence'
        self._at = args.step + self._converges * args.windows * args.window
        if args.at == 'fraction':
            self._at = min(round(args.fraction * steps), steps - 1)
        if self._at >= steps:
            what = 'step + windows * window' if self._converges else 'step'
            raise UserError(
                f'{what} is {self._at}, but the run takes {steps} steps; freeze earlier, or leave '
                'the transform out.'
            )

    def init(self, params):
        require(of_router, "'/router/'", params)
        if not self._converges:
            return {'frozen': jnp.zeros((), jnp.int32)}  # 1 stays, also if the run is made longer
        start = by_path(lambda _, p: jnp.zeros(p.shape, p.dtype), _routers(params))
        count, number = len(_layers(start)), jnp.zeros(len(_layers(start)), jnp.float32)
        counted = {'frozen': jnp.zeros(count, jnp.int32), 'calm': jnp.zeros(count, jnp.int32)}
        return counted | {'changed': number, 'least': number, 'start': start}

    def settled(self, *, step, state):
        frozen = state['frozen'] == 1
        if not self._converges:
            return (step >= self._at) | frozen
        own = dict(zip(_layers(state['start']), frozen, strict=True))
        return {layer: f & own.get('', True) for layer, f in own.items()} | {'': frozen.all()}

    def moves(self, path, param, *, step, state):
        if not of_router(path):
            return True
        if not self._converges:
            return ~self.settled(step=step, state=state)
        return state['frozen'][_layers(state['start']).index(router_of(path))] == 0

    def update(self, updates, params, *, step, state):
        if self._converges:
            return updates, state
        return updates, {'frozen': self.settled(step=step, state=state).astype(jnp.int32)}

    def compared(self, *, step, state):
        found = {}
        for path, array in jax.tree_util.tree_leaves_with_path(state.get('start', {})):
            layer = router_of(path_name(path))
            found.setdefault(layer, {})[path_name(path[-1:])] = array
        return found

    def observe(self, routes, params, *, step, state):
        if not self._converges:
            return state
        a, place = self.args, (step - self.args.step) % self.args.window
        begun, first = step >= a.step, (step >= a.step) & (place == 0)
        means = {
            layer: (r['changed'] / jnp.maximum(r['tokens'], 1.0), _least(r['load']))
            for layer, r in routes.items()
        }
        of_all = [sum(x) / len(means) for x in zip(*means.values(), strict=True)]
        each = [means.get(layer, of_all) for layer in _layers(state['start'])]
        sums = {
            name: jnp.where(first, 0.0, state[name] + jnp.where(begun, jnp.stack(values), 0.0))
            for name, values in zip(('changed', 'least'), zip(*each, strict=True), strict=True)
        }
        counted = a.window - 1
        calm = (sums['changed'] <= a.change * counted) & (sums['least'] >= a.least_load * counted)
        calm = jnp.where(
            begun & (place == counted), jnp.where(calm, state['calm'] + 1, 0), state['calm']
        )
        frozen = jnp.maximum(state['frozen'], (calm >= a.windows).astype(jnp.int32))
        start = jax.tree.map(
            lambda new, old: jnp.where(first, new, old), _routers(params), state['start']
        )
        return sums | {'calm': calm, 'frozen': frozen, 'start': start}


def _least(load: Array) -> Array:
    """The smallest of the loads [E] as a share of their mean; 0 if there are none."""
    return load.min() / jnp.maximum(load.mean(), 1e-9)


def _layers(routers: Tree) -> list[str]:
    """The paths of the layers that have these parameters of routers."""
    return sorted({router_of(path) or '' for path in paths(routers)})


def _routers(params: Tree, above: str = '') -> Tree:
    """The part of a nested dictionary of parameters that routers learn."""
    found = {}
    for name, value in params.items():
        inner = _routers(value, f'{above}{name}/') if isinstance(value, dict) else value
        if of_router(f'{above}{name}') if inner is value else inner:
            found[name] = inner
    return found
