"""The routed layer beside its floor, forward and backward; plans; routers; growth; vmap and scan.

Names in the table:
    layer    router, plan, dispatch, experts, combine
    floor    only the experts, on buffers of the same padded size
    dense    one dense block with the FLOPs of k experts (MLP), or k dense blocks (convolution)
    einsum   the same layer, with dispatch and combine by one-hot products
    ragged   the same experts without capacity: sorts choices, multiplies by `lax.ragged_dot`
    all      every token through every expert
    grouped, im2col    E convolutions as one in E groups, and as E products of patches

Axes: G groups of T tokens, D width, F hidden, E experts, k choices, cf capacity factor, S seeds.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.forms import (
    CPU,
    GPU,
    MAPS_ON_CPU,
    MAPS_ON_GPU,
    Maps,
    Shape,
    calls_of,
    competitors,
    drawn,
    of_maps,
    on_cpu,
    routed,
    with_gradient,
)
from benchmarks.table import Row, row
from moe_vision.common import chips, flops
from moe_vision.routing.plan import index_plan
from moe_vision.routing.types import Routing


def beside_floor(shape: Shape, rounds: int) -> Row:
    """Times forward and backward of the layer beside everything it is compared with."""
    fns = {n: (with_gradient(fn), args) for n, (fn, args) in competitors(shape).items()}
    calls, programs = calls_of(fns)
    aims = {'floor': 1.10 if on_cpu() else 1.15}
    if shape.side:
        aims = {'dense': 1.20}
    elif shape.cf == 1.0:
        aims['dense'] = 1.15
    if 'einsum' in calls and not on_cpu():
        aims['einsum'] = 0.5
    result = row(
        str(shape),
        calls,
        rounds,
        aims,
        {
            'MB of layer': programs['layer'].temporary_mb,
            'MB of floor': programs['floor'].temporary_mb,
            'compiling s': programs['layer'].seconds,
        },
    )
    if peak := chips.peak(jax.devices()[0].device_kind):
        executed = flops.total(flops.count(fns['layer'][0], *fns['layer'][1]))
        share = executed / peak / (result.milliseconds['layer'] / 1e3)
        result = dataclasses.replace(result, facts={**result.facts, 'share of peak': share})
    return result


def growth(rounds: int) -> Iterator[Row]:
    """Sixteen times the tokens should take at most sixteen times the time and the memory.

    With few tokens, temporaries reuse the memory of the results, which are gradients of weights and
    do not grow with T. Temporaries alone therefore seem to grow faster, so results count as well.
    """
    small, large = (Shape(t, 256, 1024, 8, 2, 1.25) for t in (1024, 16384))
    calls, programs = calls_of(
        {f'T={s.t}': (with_gradient(routed(s)), drawn(s)) for s in (large, small)}
    )
    many, few = programs['T=16384'], programs['T=1024']
    yield row(
        'growth of the layer in T, D=256 E=8 k=2',
        calls,
        rounds,
        {'T=1024': 16.0},
        {
            'times the memory': many.total_mb / few.total_mb,
            'times the temporaries': many.temporary_mb / few.temporary_mb,
        },
    )


def plans(rounds: int) -> Iterator[Row]:
    """The plan alone, from chosen ids: should not depend on E, and be a small part of the layer."""

    def plan_of(shape: Shape) -> tuple[Callable, tuple]:
        ids = jax.random.randint(jax.random.key(0), (shape.g, shape.t, shape.k), 0, shape.e)
        gate = jnp.ones(ids.shape)

        def plan(ids, gate):
            result = index_plan(
                Routing(probs=gate, logits=gate, expert_of_choice=ids, gate=gate, active=ids >= 0),
                shape.e,
                shape.slots,
            )
            return result.slot, result.keep, result.src_token, result.src_choice, result.filled

        return plan, (ids, gate)

    shape = Shape(8192, 256, 1024, 8, 2, 1.25)
    calls, _ = calls_of(
        {'plan': plan_of(shape), 'layer': (with_gradient(routed(shape)), drawn(shape))}
    )
    yield row(f'plan; {shape}', calls, rounds, {'layer': 0.03})
    calls, _ = calls_of(
        {f'E={e}': plan_of(Shape(8192, 256, 1024, e, 2, 1.25)) for e in (256, 32, 8)}
    )
    yield row('plan in E, T=8192 k=2', calls, rounds, {'E=8': 1.5})


def routers(rounds: int) -> Iterator[Row]:
    """Expert choice beside token choice with as many slots, of which it fills all."""
    for e in (8, 64):
        shapes = [
            Shape(8192, 256, 1024, e, 2, 1.0, router=name) for name in ('expert_choice', 'top_k')
        ]
        calls, _ = calls_of({s.router: (with_gradient(routed(s)), drawn(s)) for s in shapes})
        yield row(f'expert_choice; {shapes[0]}', calls, rounds)


def convolutions(maps: Maps, rounds: int) -> Row:
    """Times the forms of the experts' convolutions, forward and backward."""
    args = maps.drawn()
    calls, _ = calls_of({n: (with_gradient(fn), args) for n, fn in of_maps().items()})
    return row(str(maps), calls, rounds)


def seeds_and_scan(rounds: int) -> Iterator[Row]:
    """Maps under vmap over S=4 seeds beside dense blocks, and in a scan beside a loop."""
    shape = Shape(128, 64, 64, 8, 2, 1.25, side=8)
    fns = competitors(shape)
    calls, _ = calls_of(
        {
            n: (jax.vmap(with_gradient(fn)), jax.tree.map(lambda a: jnp.stack([a] * 4), args))
            for n, (fn, args) in fns.items()
        }
    )
    yield row(f'vmap over S=4; {shape}', calls, rounds, {'dense': 1.20})

    params, bank, x = fns['layer'][1]
    gradient, steps = with_gradient(routed(shape)), 4

    def step(bank: Any) -> Any:
        return jax.tree.map(lambda w, d: w - 1e-3 * d, bank, gradient(params, bank, x)[1])

    def scan(bank: Any) -> Any:
        return jax.lax.scan(lambda b, _: (step(b), None), bank, length=steps)[0]

    def loop(bank: Any) -> Any:
        for _ in range(steps):
            bank = step(bank)
        return bank

    calls, _ = calls_of({'scan': (scan, (bank,)), 'loop': (loop, (bank,))})
    yield row(f'{steps} steps in a scan; {shape}', calls, rounds, {'loop': 1.1})


def rows(rounds: int) -> Iterator[Row]:
    for shape in CPU if on_cpu() else GPU:
        yield beside_floor(shape, rounds)
    yield from growth(rounds)
    yield from plans(rounds)
    yield from routers(rounds)
    for maps in MAPS_ON_CPU if on_cpu() else MAPS_ON_GPU:
        yield convolutions(maps, rounds)
    yield from seeds_and_scan(rounds)
