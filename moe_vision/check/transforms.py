"""Judges transforms: by shape those of a config, and one by its values on a small tree.

Axes: E experts, D width, F hidden width, S seeds.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from input_pipeline import DatasetInfo
from moe_vision import models
from moe_vision.check import shapes
from moe_vision.common.errors import UserError
from moe_vision.config import registry, typed
from moe_vision.config.rules import total_steps
from moe_vision.config.schema import Config, Train
from moe_vision.layers import Step
from moe_vision.routing.types import expect
from moe_vision.transforms.chain import Transforms, held
from moe_vision.transforms.types import Array, Transform, Tree, by_path, paths, router_of

_E, _D, _F, _STEPS = 4, 6, 5, 8


def of_config(
    config: Config, params: Tree, steps: int, loads: Callable[[], Mapping[str, int]]
) -> Transforms:
    """The transforms of a config for these parameters, checked by shape.

    Args:
      params: of which paths, shapes and types are read.
      steps: optimizer steps of the run.
      loads: tells the routed layers by path, and how many experts each has; not called if there is
        no transform.

    Raises:
      UserError: a transform does not fit the parameters or the run, or returns what it must not.
    """
    own = {n: n for n in config.train.transforms if n not in registry.TRANSFORMS}
    with shapes.named({f'train.transforms.{n}': n for n in own}):
        made = Transforms(config, steps)
        state = jax.eval_shape(made.init, params)
        step = jax.ShapeDtypeStruct((), jnp.int32)
        experts = loads() if made else {}
        for name, each in made.items():
            _shapes(f"transform '{name}'", each, params, step, state[name], experts)
    return made


def check(config: Config, info: DatasetInfo) -> None:
    """`of_config` for the network and the run that a config describes; raises what that raises."""
    if not config.train.transforms:
        return
    net, key = models.build(config.model, info.num_classes), jax.random.key(0)
    images = 1 if config.model.moe.placement == 'none' else config.model.moe.group_size
    x = jax.ShapeDtypeStruct((images, *info.image_shape), jnp.float32)
    variables = jax.eval_shape(lambda x: net.init(key, x, Step.example(images)), x)
    steps = total_steps(config, info.split_sizes['train'])
    of_config(config, variables['params'], steps, lambda: loads_of(net, variables, x))


def loads_of(net: nn.Module, variables: Tree, x: jax.ShapeDtypeStruct) -> dict[str, int]:
    """The routed layers of a network on images x [B, H, W, C], each with its number of experts."""
    known = {'train': True, 'key': jax.random.key(0), 'labels': jnp.zeros(x.shape[0], jnp.int32)}
    step = Step.example(x.shape[0], **known)
    infos = jax.eval_shape(
        lambda v, x: net.apply(v, x, step, mutable=['batch_stats'])[0][1], variables, x
    )
    return {layer: info['telemetry']['kept'].shape[0] for layer, info in infos.items()}


def _shapes(
    what: str, each: Transform, params: Tree, step: Any, state: Tree, loads: Mapping[str, int]
) -> None:
    """Raises UserError for the first value whose shape or type is not the one that is due."""

    def is_number(path: str, array: Any) -> None:
        if not (jnp.issubdtype(array.dtype, jnp.floating) or array.dtype.kind in 'iu'):
            raise UserError(
                f'{what}: init: {path} is {array.dtype}; a state holds numbers, so write int32 '
                'for True and False.'
            )

    def fits(path: str, param: Any) -> None:
        given = jax.eval_shape(
            lambda p, n, s: each.moves(path, p, step=n, state=s), param, step, state
        )
        shape, dtype = getattr(given, 'shape', ()), getattr(given, 'dtype', None)
        try:
            right = str(dtype) == 'bool' and np.broadcast_shapes(shape, param.shape) == param.shape
        except ValueError:
            right = False
        if not right:
            told = f'{dtype}{list(shape)}' if dtype else type(given).__name__
            raise UserError(
                f'{what}: moves of {path} is {told}; expected True, or bools that broadcast to '
                f'{list(param.shape)}.'
            )

    by_path(is_number, state)
    by_path(fits, params)
    out = jax.eval_shape(lambda p, n, s: each.update(p, p, step=n, state=s), params, step, state)
    if not (isinstance(out, tuple) and len(out) == 2):
        given = type(out).__name__
        raise UserError(f'{what}: update returned a {given}; expected (updates, state).')
    _same(f'{what}: updates', params, out[0], 'as the parameter')
    _same(f'{what}: state', state, out[1], 'as init made it')
    compared = jax.eval_shape(lambda n, s: each.compared(step=n, state=s), step, state)
    _routers(f'{what}: compared', compared, params)
    after = jax.eval_shape(
        lambda r, p, n, s: each.observe(r, p, step=n, state=s),
        _routes(loads, bool(compared)),
        params,
        step,
        state,
    )
    _same(f'{what}: state', state, after, 'as init made it')
    settled = jax.eval_shape(lambda n, s: each.settled(step=n, state=s), step, state)
    if isinstance(settled, dict) and '' not in settled:
        raise UserError(f"{what}: settled names {', '.join(settled)}, but not '', all others.")
    if settled is not None:
        by_layer = settled if isinstance(settled, dict) else {'': settled}
        for layer, value in by_layer.items():
            where = f' of {layer}' if layer else ''
            expect(f'{what}: settled{where}', value, (), bool, 'a scalar, or None')


def _routers(what: str, compared: Any, params: Tree) -> None:
    """Raises UserError unless these are parameters of routers, by layer and name."""
    due = {path: array for path, array in zip(paths(params), jax.tree.leaves(params), strict=True)}
    for layer, given in compared.items():
        for name, array in given.items():
            path = f'{layer}/router/{name}'.removeprefix('/')
            if path not in due:
                have = ', '.join(p for p in due if router_of(p) is not None) or 'none'
                raise UserError(f"{what} names '{path}'; the routers' parameters are {have}.")
            expect(f'{what}: {path}', array, due[path].shape, due[path].dtype, 'as the parameter')


def _routes(loads: Mapping[str, int], compared: bool) -> dict[str, dict[str, Array]]:
    """What `observe` gets of routed layers: of 4 tokens, one changed its expert."""
    changed = {'changed': jnp.float32(1)} if compared else {}
    return {
        layer: {'tokens': jnp.float32(4), 'load': jnp.ones(experts, jnp.float32)} | changed
        for layer, experts in loads.items()
    }


def _same(what: str, due: Tree, given: Tree, meaning: str) -> None:
    """Raises UserError unless a tree has the structure, shapes and types that are due."""
    if str(jax.tree.structure(due)) != str(jax.tree.structure(given)):
        odd = sorted(set(paths(due)) ^ set(paths(given)))
        where = f', which differ in {", ".join(odd[:4])}' if odd else ''
        raise UserError(
            f'{what} are a {type(given).__name__}; expected a tree as it was given{where}.'
        )
    by_path(lambda path, a, b: expect(f'{what}: {path}', b, a.shape, a.dtype, meaning), due, given)


def transform(name: str, args: Any = None) -> None:
    """Checks a transform: a name in TRANSFORMS or 'module:Class'.

    Shapes and types are kept, values are finite, routes that are settled stay so, and seeds
    together do what each does alone. The parameters are those of a network with one routed layer,
    `block_1`, which has 4 experts; the run takes 8 steps.

    Raises:
      UserError: the first thing that does not hold.
    """
    what, entry = (
        f"transform '{name}'",
        registry.entry('transform', registry.TRANSFORMS, name),
    )
    built = typed.build(entry.args, args or {}, 'args', f'argument of {what}')
    config = dataclasses.replace(Config(), train=Train(transforms={name: built}))
    seeds = [_params(0), _params(1)]
    made = of_config(config, jax.eval_shape(lambda: seeds[0]), _STEPS, lambda: {'block_1': _E})

    def take(params: Tree, state: Tree, step: Array) -> tuple[Tree, Tree, Array]:
        told = {'step': step, 'state': state}
        moves, settled = made.moves(params, **told), list(made.settled(**told).values())
        gradients = held(jax.tree.map(jnp.cos, params), moves)
        updates = jax.tree.map(lambda g: -0.1 * g, gradients)
        updates, state = made.update(updates, params, **told)
        after = jax.tree.map(jnp.add, params, held(updates, moves))
        changed = {n: jnp.float32(1) for n in made.compared(**told)}
        counts = {'tokens': jnp.float32(4), 'chosen': jnp.ones(_E), 'kept': jnp.ones(_E)}
        state = made.observe(
            {'block_1': counts}, {'block_1': changed}, params, step=step, state=state
        )
        return after, state, jnp.asarray(settled or [False])

    alone, together = jax.jit(take), jax.jit(jax.vmap(take, in_axes=(0, 0, None)))
    params, state, flags = seeds[0], made.init(seeds[0]), []
    both = jax.tree.map(lambda *x: jnp.stack(x), *seeds)
    states = jax.vmap(made.init)(both)
    for step in range(_STEPS):
        params, state, settled = alone(params, state, jnp.int32(step))
        both, states, _ = together(both, states, jnp.int32(step))
        flags.append(np.asarray(settled))
    if not all(np.isfinite(x).all() for x in jax.tree.leaves((params, state))):
        raise UserError(f'{what}: a parameter or the state is not finite after {_STEPS} steps.')
    if (np.diff(np.asarray(flags, int), axis=0) < 0).any():
        raise UserError(
            f'{what}: settled is True and then False again; routes that are settled stay so, so '
            'keep it in the state.'
        )
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(both), strict=True):
        if not np.allclose(a, b[0], rtol=1e-5, atol=1e-6):
            raise UserError(
                f'{what}: a seed gets other parameters when another is trained beside it.'
            )


def _params(seed: int) -> Tree:
    """The parameters of a small network with a routed layer, drawn at random."""
    sizes = {
        'stem': {'kernel': (3, 3, 1, _D)},
        'block_0': {'kernel': (_D, _D), 'bias': (_D,)},
        'block_1': {
            'router': {'kernel': (_D, _E)},
            'experts': {'in_kernel': (_E, _D, _F), 'in_bias': (_E, _F), 'out_kernel': (_E, _F, _D)},
        },
        'classifier': {'kernel': (_D, 3), 'bias': (3,)},
    }
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda shape: jnp.asarray(rng.normal(size=shape), jnp.float32),
        sizes,
        is_leaf=lambda x: isinstance(x, tuple),
    )
