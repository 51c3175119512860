"""Judges a router inside a layer: seeds trained together, a mesh of devices, and counted FLOPs.

Axes: S seeds, B tokens, G groups, N patches of an image, D width, F hidden width.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType

from moe_vision.check import inputs
from moe_vision.check.inputs import Given
from moe_vision.common import flops, quick
from moe_vision.common.errors import UserError
from moe_vision.config.kinds import SKIP, Kind, true_kinds
from moe_vision.layers import MoE, Step
from moe_vision.routing.router import Router
from moe_vision.routing.types import Array

_B, _T, _D, _F, _N = 16, 4, 16, 8, 4
_VALID = np.arange(_B) != 3


def router(name: str, args: Any, made: Router, given: Given) -> None:
    """Checks a router in a layer. The experts are those that it reads; if it reads none, `conv` for
    maps and `mlp` for vectors.

    Seeds that are trained together, by a vmap, get what each gets alone; devices of a mesh get what
    one device gets, if this process has several; and the FLOPs can be counted.

    Raises:
      UserError: the first thing that does not hold.
    """
    what, reads = f"router '{name}'", 'bank' in made.needs
    is_map = given.is_map if reads else 'map' in made.needs
    if not reads:
        expert = ('conv', {'norm_groups': 4}) if is_map else ('mlp', None)
        given = dataclasses.replace(given, expert=expert[0], expert_args=expert[1])
    kinds = tuple(k if k.expert == SKIP else Kind(count=k.count) for k in given.kinds)
    layer = MoE(
        given.num_experts,
        made.k,
        _T,
        _F,
        router=name,
        router_args=args,
        expert=given.expert,
        expert_args=inputs.narrow(given.expert, given.expert_args),
        kinds=given.narrowed() if reads else kinds,
        tokens_per_image=_N if 'attention' in made.needs else 1,
        eval_capacity_factor=2.0,
    )
    step = _step()
    x = jnp.asarray(_normal(1, _B, *((4, 4) if is_map else ()), _D))
    abstract = jax.eval_shape(lambda x: layer.init(jax.random.key(0), x, step), x)
    both = jax.tree.map(lambda a: _normal(a.size, 2, *a.shape, scale=0.3).astype(a.dtype), abstract)

    def run(variables: Any, x: Array, layer: MoE = layer) -> tuple[Array, Any]:
        y, info = layer.apply(variables, x, step)
        return y, info['choices']

    try:
        flops.count(run, abstract, x)
    except UserError as e:
        raise UserError(f'{what}: its FLOPs cannot be counted: {e}') from e
    alone = [quick.jit(run)(jax.tree.map(lambda a, n=n: a[n], both), x) for n in (0, 1)]
    together = quick.jit(jax.vmap(run, in_axes=(0, None)))(both, x)
    for n, one in enumerate(alone):
        _same(what, one, jax.tree.map(lambda a, n=n: a[n], together), 'trained beside another seed')
    most = 1 if reads else jax.device_count()
    counts = [k.count for k in true_kinds(kinds)] or [given.num_experts]
    size = max(d for d in (1, 2, 4) if d <= most and not any(n % d for n in counts))
    if size > 1:
        auto = (AxisType.Auto, AxisType.Auto)
        mesh = jax.make_mesh((1, size), ('data', 'expert'), auto, devices=jax.devices()[:size])
        spread = layer.clone(mesh=mesh)
        first = jax.tree.map(lambda a: a[0], both)
        _same(what, alone[0], quick.jit(lambda v, x: run(v, x, spread))(first, x), 'on a mesh')


def _step() -> Step:
    return Step(
        valid=jnp.asarray(_VALID),
        key=jax.random.key(2),
        fraction=0.5,
        labels=jnp.arange(_B) % 3,
        extras={
            'domain': jnp.arange(_B) % 2,
            'attention': jnp.full((_B, _N), 1 / _N, jnp.float32),
        },
        images=jnp.ones((_B, 8, 8, 3), jnp.float32),
        train=True,
    )


def _same(what: str, one: Any, other: Any, where: str) -> None:
    (y, choices), (y_other, choices_other) = jax.device_get((one, other))
    for name in choices:
        if not np.allclose(choices[name][_VALID], choices_other[name][_VALID], 1e-4, 1e-5):
            raise UserError(f"{what}: the choices' {name} are others {where}.")
    if not np.allclose(y[_VALID], y_other[_VALID], 1e-3, 1e-4):
        raise UserError(f'{what}: the output is another one {where}.')


def _normal(seed: int, *shape: int, scale: float = 1.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0.0, scale, shape).astype(np.float32)
