"""The routed layer in the shapes that are timed, and the forms it is compared with.

Axes: G groups of T tokens, D width, F hidden, E experts, k choices, cf capacity factor; N maps of
an expert, H W space.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.timing import Compiled, compiled
from moe_vision.common.place import Place
from moe_vision.config import registry
from moe_vision.layers.convolution import convolution
from moe_vision.layers.experts import Conv, Expert, Mlp
from moe_vision.layers.moe import make_router
from moe_vision.routing.capacity import capacity
from moe_vision.routing.plan import IndexPlan, index_plan
from moe_vision.routing.types import Array, Context, Routing

EINSUM_LIMIT = 2**28  # elements of a one-hot mask


@dataclasses.dataclass(frozen=True)
class Shape:
    """Sizes of a layer. Tokens are vectors [D], or maps [side, side, D] where `side` is above 0."""

    t: int
    d: int
    f: int
    e: int
    k: int
    cf: float
    g: int = 1
    side: int = 0
    dtype: str = 'float32'
    router: str = 'top_k'

    @property
    def slots(self) -> int:
        return capacity(self.cf, self.k, self.t, self.e)

    @property
    def payload(self) -> tuple[int, ...]:
        return (self.side, self.side, self.d) if self.side else (self.d,)

    @property
    def expert(self) -> Expert:
        if self.side:
            return Conv(registry.ConvArgs(), self.d, self.f)
        return Mlp(registry.MlpArgs(), self.d, self.f)

    def __str__(self) -> str:
        kind = f'maps {self.side}x{self.side}' if self.side else 'vectors'
        return (
            f'{kind}, {f"G={self.g} " if self.g > 1 else ""}T={self.t} D={self.d} F={self.f} '
            f'E={self.e} k={self.k} cf={self.cf:g}'
        )


CPU = [
    Shape(8192, 256, 1024, 8, 2, 1.0),
    Shape(8192, 256, 1024, 8, 2, 1.25),
    Shape(8192, 256, 1024, 8, 1, 1.25),
    Shape(8192, 256, 1024, 32, 2, 1.25),
    Shape(1024, 256, 1024, 8, 2, 1.25),
    Shape(128, 64, 64, 8, 2, 1.25, side=8),
    Shape(128, 32, 32, 8, 2, 1.25, side=16),
    Shape(128, 128, 128, 8, 1, 1.25, side=8),
]
GPU = [
    Shape(t, d, 4 * d, e, 2, 1.25, g=32768 // t, dtype='bfloat16')
    for d in (384, 768)
    for e in (8, 64)
    for t in (1024, 4096)
]


@dataclasses.dataclass(frozen=True)
class Maps:
    """The 3x3 convolutions inside E experts of maps: each of N maps [side, side, D] to the same."""

    e: int
    n: int
    side: int
    d: int
    dtype: str = 'float32'

    def __str__(self) -> str:
        return f'3x3, E={self.e} N={self.n} maps {self.side}x{self.side} D={self.d}'

    def drawn(self) -> tuple[Array, Array]:
        """Random arguments of `of_maps`: maps [E, N, H, W, D] and kernels [E, 3, 3, D, D]."""
        x, kernel = jax.random.split(jax.random.key(0))
        return (
            jax.random.normal(x, (self.e, self.n, self.side, self.side, self.d), self.dtype),
            jax.random.normal(kernel, (self.e, 3, 3, self.d, self.d), self.dtype) * 0.05,
        )


MAPS_ON_CPU = [Maps(8, 40, 8, 64), Maps(8, 40, 14, 8)]
MAPS_ON_GPU = [Maps(8, 80, 14, 296, 'bfloat16'), Maps(8, 80, 7, 296, 'bfloat16')]  # imagenet_k2


def on_cpu() -> bool:
    return jax.default_backend() == 'cpu'


def context(shape: Shape) -> Context:
    return Context(
        valid=jnp.ones((shape.g, shape.t), bool),
        key=jax.random.key(0),
        group=jnp.arange(shape.g),
        capacity=shape.slots,
    )


def planned(shape: Shape, params: Any, x: Array) -> IndexPlan:
    """Router and plan of x [G, T, *]."""
    features = x.astype(jnp.float32).mean(tuple(range(2, x.ndim - 1)))
    return index_plan(choices(shape, params, features), shape.e, shape.slots)


def choices(shape: Shape, params: Any, features: Array) -> Routing:
    routing = make_router(shape.router, None, Place(shape.e, shape.k, shape.t))(
        params, {}, features, context(shape)
    )
    assert isinstance(routing, Routing)
    return routing


def routed(shape: Shape) -> Callable:
    """The MoE layer as a function (router params, bank, x [G, T, *]) -> y."""
    return lambda params, bank, x: planned(shape, params, x).apply(
        x, functools.partial(shape.expert.apply_stacked, bank)
    )


def by_einsum(shape: Shape) -> Callable:
    """The same layer with one-hot masks [G, T, k, E*C]; vectors only."""

    def layer(params, bank, x):
        plan = planned(shape, params, x)
        g, e, c = shape.g, shape.e, shape.slots
        in_group = plan.slot // (g * c) * c + plan.slot % c  # undoes the order (e, g, c) of slots
        hot = jax.nn.one_hot(jnp.where(plan.keep, in_group, e * c), e * c, dtype=x.dtype)
        buffers = jnp.einsum('gtks,gtd->sgd', hot, x).reshape(e, c, g, -1)
        out = shape.expert.apply_stacked(bank, buffers.swapaxes(1, 2).reshape(e, g * c, -1))
        out = out.reshape(e, g, c, -1).swapaxes(0, 1).reshape(g, e * c, -1)
        return jnp.einsum('gtks,gtk,gsd->gtd', hot, plan.gate.astype(x.dtype), out)

    return layer


def by_ragged_products(shape: Shape) -> Callable:
    """Sorts choices by expert, so that nothing is dropped or padded; vectors only."""

    def layer(params, bank, x):
        routing = choices(shape, params, x.astype(jnp.float32))
        ids = routing.expert_of_choice.reshape(-1)
        order = jnp.argsort(ids, stable=True)
        sizes = jnp.bincount(ids, length=shape.e).astype(jnp.int32)
        tokens = x.reshape(-1, shape.d)[order // shape.k]
        w = {n: p.astype(x.dtype) for n, p in bank.items()}
        expert = ids[order]
        hidden = jax.lax.ragged_dot(tokens, w['in_kernel'], sizes) + w['in_bias'][expert]
        hidden = jax.nn.gelu(hidden)
        out = jax.lax.ragged_dot(hidden, w['out_kernel'], sizes) + w['out_bias'][expert]
        back = out[jnp.argsort(order)].reshape(*x.shape[:2], shape.k, -1)
        return (routing.gate[..., None] * back).sum(2).astype(x.dtype)

    return layer


def everything(shape: Shape) -> Callable:
    """Every token through every expert, weighted by its probability; vectors only."""

    def layer(params, bank, x):
        tokens = x.reshape(1, -1, shape.d)
        out = shape.expert.apply_stacked(
            bank, jnp.broadcast_to(tokens, (shape.e, *tokens.shape[1:]))
        )
        gates = choices(shape, params, x.astype(jnp.float32)).probs.reshape(-1, shape.e)
        return jnp.einsum('ne,end->nd', gates.astype(x.dtype), out).reshape(x.shape)

    return layer


def of_maps() -> dict[str, Callable[[Array, Array], Array]]:
    """Forms of `Maps`: functions (x, kernel) -> y [E, N, H, W, D]. The first is the layer's own."""

    def one(x, kernel):
        numbers = ('NHWC', 'HWIO', 'NHWC')
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), 'SAME', dimension_numbers=numbers)

    def patches(x, kernel):
        e, n, h, w, d = x.shape
        edged = jnp.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1), (0, 0)))
        shifts = [edged[:, :, i : i + h, j : j + w] for i in range(3) for j in range(3)]
        rows = jnp.concatenate(shifts, -1).reshape(e, n * h * w, 9 * d)
        return (rows @ kernel.reshape(e, 9 * d, -1)).reshape(x.shape)

    return {
        'one by one': jax.vmap(convolution),
        'grouped': jax.vmap(one),  # XLA makes one convolution in E groups of it
        'im2col': patches,
    }


def drawn(shape: Shape) -> tuple[Any, Any, Array]:
    """Random arguments of `routed`: (router params, bank, x)."""
    keys = iter(jax.random.split(jax.random.key(0), 20))
    params = {'kernel': jax.random.normal(next(keys), (shape.d, shape.e)) * shape.d**-0.5}
    return (
        params,
        _bank(shape.expert, (shape.e,)),
        jax.random.normal(next(keys), (shape.g, shape.t, *shape.payload), shape.dtype),
    )


def _bank(expert: Expert, lead: tuple[int, ...]) -> dict[str, Array]:
    keys = jax.random.split(jax.random.key(1), 20)
    return {
        n: jax.random.normal(key, (*lead, *s)) * 0.05
        for key, (n, (s, _)) in zip(keys, expert.shapes().items(), strict=False)
    }


def competitors(shape: Shape) -> dict[str, tuple[Callable, tuple]]:
    """The layer, and then what it is compared with: name -> (function, its arguments)."""
    params, bank, x = drawn(shape)
    tokens = shape.g * shape.t
    buffers = jax.random.normal(
        jax.random.key(2), (shape.e, shape.g * shape.slots, *shape.payload), shape.dtype
    )
    if shape.side:
        dense, rows = shape.expert, shape.k * tokens
    else:
        dense, rows = Mlp(registry.MlpArgs(), shape.d, shape.k * shape.f), tokens
    many = jax.random.normal(jax.random.key(3), (rows, *shape.payload), shape.dtype)
    fns: dict[str, tuple[Callable, tuple]] = {
        'layer': (routed(shape), (params, bank, x)),
        'floor': (shape.expert.apply_stacked, (bank, buffers)),
        'dense': (dense.apply, (_bank(dense, ()), many)),
    }
    if not shape.side:
        if tokens * shape.k * shape.e * shape.slots <= EINSUM_LIMIT * (1 if on_cpu() else 16):
            fns['einsum'] = by_einsum(shape), (params, bank, x)
        if not on_cpu() or tokens <= 1024:  # on a CPU both compute E products
            fns['ragged'] = by_ragged_products(shape), (params, bank, x)
            fns['all'] = everything(shape), (params, bank, x)
    return fns


def with_gradient(fn: Callable) -> Callable:
    """The gradient with respect to all arguments, of the sum of squares."""

    def loss(*args):
        return jnp.sum(jnp.square(fn(*args).astype(jnp.float32)))

    return lambda *args: jax.grad(loss, argnums=tuple(range(len(args))))(*args)


def calls_of(
    fns: Mapping[str, tuple[Callable, tuple]],
) -> tuple[dict[str, Any], dict[str, Compiled]]:
    """Compiles; returns, by name, calls without arguments and the compiled programs."""
    programs = {n: compiled(fn, *args) for n, (fn, args) in fns.items()}
    return {n: functools.partial(p, *fns[n][1]) for n, p in programs.items()}, programs
