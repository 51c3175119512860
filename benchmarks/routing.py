"""What a routed layer costs beside its floor, forward and backward.

    python -m benchmarks.routing                # the table
    python -m benchmarks.routing --quick        # the first row of each kind
    python -m benchmarks.routing --json=F       # and as JSON

Each row compares in one interleaved run:
    layer   router, plan, dispatch, experts, combine
    floor   the experts alone on buffers of the same padded size
    dense   a dense block of the FLOPs of k experts (MLP), or k dense blocks (convolution)
    einsum  dispatch and combine by one-hot products (MLP, small T only)
Ratios are medians over medians; memory is the compiler's count of temporaries.

Axes: T tokens of the one group, D width, F hidden, E experts, k choices, cf capacity factor.
"""

import argparse
import json
import platform
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.timing import compiled, medians, temporary_mb
from moe_vision import registry
from moe_vision.layers.experts import Conv, Expert, Mlp
from moe_vision.layers.moe import make_router
from moe_vision.routing.capacity import capacity
from moe_vision.routing.plan import IndexPlan, index_plan
from moe_vision.routing.types import Context

MLP_ROWS = [  # T, D, F, E, k, cf
    (8192, 256, 1024, 8, 2, 1.0), (8192, 256, 1024, 8, 2, 1.25), (8192, 256, 1024, 8, 1, 1.25),
    (8192, 256, 1024, 32, 2, 1.25), (4096, 256, 1024, 8, 2, 1.25), (1024, 256, 1024, 8, 2, 1.25)]
CONV_ROWS = [  # T, side, D, E, k, cf
    (128, 8, 64, 8, 2, 1.25), (128, 16, 32, 8, 2, 1.25), (128, 8, 128, 8, 1, 1.25)]
EINSUM_LIMIT = 4096  # beyond this many tokens the one-hot products need gigabytes


def routed(expert: Expert, num_experts: int, k: int, slots: int) -> Callable:
    """(router params, bank, x [1, T, *]) -> y, as the MoE layer does it."""
    router = make_router('top_k', None, num_experts, k)

    def layer(params, bank, x):
        t = x.shape[1]
        context = Context(valid=jnp.ones((1, t), bool), key=jax.random.key(0),
                          group=jnp.zeros(1, jnp.int32))
        features = x.astype(jnp.float32).mean(tuple(range(2, x.ndim - 1)))
        routing = router(params, {}, features, context)
        plan = index_plan(routing, num_experts, slots)
        return plan.apply(x, lambda s: expert.apply_stacked(bank, s))

    return layer


def by_einsum(plan_of: Callable, expert: Expert, slots: int) -> Callable:
    """The same layer with one-hot dispatch [T, E, C]."""
    def layer(params, bank, x):
        plan: IndexPlan = plan_of(params, x)
        e, _, c = plan.filled.shape
        place = jnp.where(plan.keep, plan.slot, e * c)
        hot = jax.nn.one_hot(place[0], e * c, dtype=x.dtype)  # [T, K, E*C]
        buffers = jnp.einsum('tks,td->sd', hot, x[0]).reshape(e, c, -1)
        out = expert.apply_stacked(bank, buffers).reshape(e * c, -1)
        return jnp.einsum('tks,tk,sd->td', hot, plan.gate[0], out)[None]
    return layer


def row(kind: str, shape: tuple, rounds: int) -> dict[str, Any]:
    """Times one configuration; the gradient is with respect to everything that learns, and x."""
    payload: tuple[int, ...]
    expert: Expert
    dense: Expert
    if kind == 'mlp':
        t, d, f, e, k, cf = shape
        payload, mlp = (d,), registry.MlpArgs()
        expert, dense = Mlp(mlp, d, f), Mlp(mlp, d, k * f)
    else:
        t, side, d, e, k, cf = shape
        payload, expert = (side, side, d), Conv(registry.ConvArgs(), d, d)
        dense = expert
    slots = capacity(cf, k, t, e)
    keys = iter(jax.random.split(jax.random.key(0), 20))
    draw = lambda ex, lead: {n: jax.random.normal(next(keys), (*lead, *s)) * 0.05  # noqa: E731
                             for n, (s, _) in ex.shapes().items()}
    bank, params = draw(expert, (e,)), {'kernel': jax.random.normal(next(keys), (d, e)) * d**-0.5}
    x = jax.random.normal(next(keys), (1, t, *payload))
    buffers = jax.random.normal(next(keys), (e, slots, *payload))
    rows = t if kind == 'mlp' else k * t
    dense_x = jax.random.normal(next(keys), (rows, *payload))
    fns: dict[str, Callable] = {
        'layer': routed(expert, e, k, slots),
        'floor': expert.apply_stacked,
        'dense': dense.apply,
    }
    args: dict[str, tuple] = {'layer': (params, bank, x), 'floor': (bank, buffers),
                              'dense': (draw(dense, ()), dense_x)}
    if kind == 'mlp' and t <= EINSUM_LIMIT:
        router = make_router('top_k', None, e, k)

        def plan_of(params, x):
            context = Context(valid=jnp.ones((1, t), bool), key=jax.random.key(0),
                              group=jnp.zeros(1, jnp.int32))
            return index_plan(router(params, {}, x, context), e, slots)

        fns['einsum'] = by_einsum(plan_of, expert, slots)
        args['einsum'] = (params, bank, x)
    gradients = {n: _with_gradient(fn) for n, fn in fns.items()}
    forward = medians({n: compiled(f, *args[n]) for n, f in fns.items()}, args, rounds)
    programs = {n: compiled(f, *args[n]) for n, f in gradients.items()}
    both = medians(programs, args, rounds)
    memory = {n: temporary_mb(p) for n, p in programs.items()}
    return {'kind': kind, 'shape': shape, 'capacity': slots, 'forward_ms': _ms(forward),
            'both_ms': _ms(both), 'memory_mb': memory}


def _with_gradient(fn: Callable) -> Callable:
    def loss(*args):
        return jnp.sum(jnp.square(fn(*args)))
    return lambda *args: jax.grad(loss, argnums=tuple(range(len(args))))(*args)


def _ms(seconds: dict[str, float]) -> dict[str, float]:
    return {n: 1000 * s for n, s in seconds.items()}


def _ratio(values: dict[str, float], other: str) -> str:
    return f'{values["layer"] / values[other]:.2f}' if other in values else '–'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--quick', action='store_true')
    parser.add_argument('--rounds', type=int, default=9)
    parser.add_argument('--json', default='')
    given = parser.parse_args()
    device = jax.devices()[0]
    print(f'{device.device_kind} ({device.platform}), {platform.machine()}, jax {jax.__version__}')
    print('\n| kind | shape | layer ms | / floor | / dense | / einsum | forward / floor '
          '| MB layer | MB floor |\n|---|---|---|---|---|---|---|---|---|')
    done = []
    for kind, shapes in (('mlp', MLP_ROWS), ('conv', CONV_ROWS)):
        for shape in shapes[:1] if given.quick else shapes:
            r = row(kind, shape, given.rounds)
            done.append(r)
            names = 'T D F E k cf' if kind == 'mlp' else 'T side D E k cf'
            text = ' '.join(f'{n}={v}' for n, v in zip(names.split(), shape, strict=True))
            both, memory = r['both_ms'], r['memory_mb']
            print(f'| {kind} | {text} | {both["layer"]:.1f} | {_ratio(both, "floor")} '
                  f'| {_ratio(both, "dense")} | {_ratio(both, "einsum")} '
                  f'| {_ratio(r["forward_ms"], "floor")} | {memory["layer"]:.0f} '
                  f'| {memory["floor"]:.0f} |', flush=True)
    if given.json:
        with open(given.json, 'w') as f:
            json.dump({'device': str(device), 'jax': jax.__version__, 'rows': done}, f, indent=1)


if __name__ == '__main__':
    main()
