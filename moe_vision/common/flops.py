"""Counts the FLOPs of a traced program by name scope, in a walk over its jaxpr.

Units: 2 FLOPs per multiply-accumulate; only dot_general, ragged_dot and convolutions count.
The program counts as it was traced: padded buffers count in full, and so does code that a compiler
would drop. Kernels of a library (ffi_call, cuDNN's attention) count nothing, so `count` traces the
form that calls none.

    loop         FLOPs of the body × trip count
    cond         FLOPs of the largest branch
    shard_map    FLOPs of a device × devices along the manual axes
    convolution  every kernel position of every output element, also where it reads padding, but
                 not the holes of lhs dilation (transposed convolutions, and input gradients of
                 strided ones)
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import jax
from jax.extend.core import Jaxpr, JaxprEqn, jaxprs_in_params

from moe_vision.common import platform
from moe_vision.common.errors import UserError

Scope = tuple[str, ...]
Counts = dict[Scope, int]

# Primitives that run the program in their parameters once (scan: `length` times).
_CALLS = {
    'jit',
    'pjit',
    'closed_call',
    'core_call',
    'remat2',
    'checkpoint',
    'custom_jvp_call',
    'custom_vjp_call',
    'custom_vmap_call',
    'scan',
}


def count(fn: Callable, *args, **kwargs) -> Counts:
    """Counts the FLOPs of `fn(*args, **kwargs)` without running it.

    Args:
      fn: any traceable function: forward, gradient, jitted, vmapped, sharded.
      *args, **kwargs: pytrees. Leaves with a shape and a dtype (arrays, `jax.ShapeDtypeStruct`)
        are traced; other leaves (`train=True`, `mutable=['state']`) reach `fn` as they are.

    Returns:
      `{scope: FLOPs}`, exact ints whose sum is the total. A scope is the path of Linen module
      names and `jax.named_scope`s from the outside in, e.g. `('ViT', 'block_0', 'mlp', 'Dense_1')`.
      It leaves out transformations (`jvp(...)`), the marker of rematerialised code and the method
      in a Linen scope (`mlp.encode` is `mlp`), so a gradient adds to its forward pass's scopes.

    Raises:
      UserError: there are FLOPs inside a `while` loop of unknown trip count, or inside a
        primitive that repeats an unknown number of times; names the scope.
    """
    leaves, tree = jax.tree.flatten((args, kwargs))
    traced = {i: x for i, x in enumerate(leaves) if hasattr(x, 'shape') and hasattr(x, 'dtype')}

    def call(arrays: dict[int, jax.Array]) -> list[jax.Array]:
        filled = [arrays.get(i, x) for i, x in enumerate(leaves)]
        call_args, call_kwargs = tree.unflatten(filled)
        out = fn(*call_args, **call_kwargs)
        return [x for x in jax.tree.leaves(out) if isinstance(x, jax.Array)]

    with platform.plain():
        return of_program(jax.make_jaxpr(call)(traced).jaxpr)


def of_program(jaxpr: Jaxpr) -> Counts:
    """The same as `count`, for a program that is already traced."""
    return _walk(jaxpr, ())


def total(counts: Counts) -> int:
    """Sums the result of `count`."""
    return sum(counts.values())


def _walk(jaxpr: Jaxpr, outer: Scope) -> Counts:
    return _sum(_equation(eqn, outer) for eqn in jaxpr.eqns)


def _sum(parts: Iterable[Counts], times: int = 1) -> Counts:
    counts: Counter[Scope] = Counter()
    for part in parts:
        counts.update(part)  # adds
    return {scope: times * flops for scope, flops in counts.items()}


def _equation(eqn: JaxprEqn, outer: Scope) -> Counts:
    name, params = eqn.primitive.name, eqn.params
    scope = outer + _names(eqn)  # an inner program's names start at its call
    if name in ('dot_general', 'ragged_dot_general', 'conv_general_dilated'):
        return {scope: _conv(eqn) if name == 'conv_general_dilated' else _dot(eqn)}
    if name == 'call_hi_primitive':  # jax 0.12 leaves the program of some functions to be asked for
        asked = params['_prim']
        args = jax.tree.unflatten(asked.in_tree, asked.in_avals_flat)
        return _walk(jax.make_jaxpr(asked.expand)(*args).jaxpr, scope)
    inner = [_walk(jaxpr, scope) for jaxpr in jaxprs_in_params(params)]
    if name == 'cond':
        return max(inner, key=total)
    times = params['length'] if name == 'scan' else 1
    if name == 'shard_map':  # inner shapes are per device
        times = math.prod(params['mesh'].shape[axis] for axis in params['newly_manual_axes'])
    elif name not in _CALLS and any(inner):
        why = (
            'a while loop of unknown trip count: use lax.scan, or fori_loop with static bounds'
            if name == 'while'
            else f"'{name}', whose repetitions are unknown"
        )
        raise UserError(f"cannot count the FLOPs in scope '{'/'.join(scope)}' inside {why}")
    return _sum(inner, times)


def _names(eqn: JaxprEqn) -> Scope:
    """The scope names of one equation, relative to its program."""
    names: list[str] = []
    backward = eqn.params.get('differentiated', False)
    for item in eqn.source_info.name_stack.stack:
        if type(item).__name__ == 'Transform':  # jvp, transpose, vmap
            backward |= item.name == 'transpose'
        elif item.name != 'rematted_computation':
            module, dot, method = item.name.partition('.')
            if not (dot and module.isidentifier() and method.isidentifier()):
                names.append(item.name)
            elif names[-1:] != [module]:  # otherwise a module calls its own method
                names.append(module)
    if backward:  # under remat and custom_jvp jax repeats outer names: a/b/a/b/c means a/b/c
        n = len(names) // 2
        while n:
            repeats = names[:n] == names[n : 2 * n]
            names, n = (names[n:], (len(names) - n) // 2) if repeats else (names, n - 1)
    return tuple(names)


def _shape(value: Any) -> tuple[int, ...]:
    return value.aval.shape


def _dot(eqn: JaxprEqn) -> int:
    """Every element of lhs meets every free element of rhs: 2·m·k·n, also for ragged groups."""
    lhs, rhs = _shape(eqn.invars[0]), _shape(eqn.invars[1])
    if eqn.primitive.name == 'dot_general':
        numbers, groups = eqn.params['dimension_numbers'], ()
    else:
        ragged = eqn.params['ragged_dot_dimension_numbers']
        numbers, groups = ragged.dot_dimension_numbers, ragged.rhs_group_dimensions
    (_, contract), (_, batch) = numbers
    shared = {*contract, *batch, *groups}
    return 2 * math.prod(lhs) * math.prod(n for d, n in enumerate(rhs) if d not in shared)


def _conv(eqn: JaxprEqn) -> int:
    """2 · out batch · out features · (Cin / feature groups) · Π over space (outputs × taps)."""
    p, dims = eqn.params, eqn.params['dimension_numbers']
    kernel, out = _shape(eqn.invars[1]), _shape(eqn.outvars[0])
    flops = 2 * out[dims.out_spec[0]] * out[dims.out_spec[1]] * kernel[dims.rhs_spec[1]]
    for i, (o, k) in enumerate(zip(dims.out_spec[2:], dims.rhs_spec[2:], strict=True)):
        stride, hole, low = p['window_strides'][i], p['lhs_dilation'][i], p['padding'][i][0]
        flops *= (
            out[o] * kernel[k]
            if hole == 1
            else sum(
                (a * stride + b * p['rhs_dilation'][i] - low) % hole == 0
                for a in range(out[o])
                for b in range(kernel[k])
            )
        )
    return flops
