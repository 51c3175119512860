"""Routing over a mesh: where groups lie, and what travels to the devices of the experts.

Mesh axes are ('data', 'expert'). Tokens are laid over both, expert weights over 'expert' alone.
Where a device holds whole groups, slots travel: a routed layer exchanges twice forward (slots out,
outputs back) and twice backward, by all-to-all. Where a group has tokens on several devices of the
expert axis, tokens travel: each of these devices gathers them, makes the same plan, runs its own
experts, and the outputs are summed back to the tokens' devices; backward the same in turn. Summed
means an all-to-all of the parts and a sum where they arrive: compilers for TPU turn a
reduce-scatter of feature maps into an all-reduce, which sends twice as much. With one device on the
expert axis nothing travels.
"""

import functools
import math
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from moe_vision.layers.experts import Expert
from moe_vision.routing.plan import IndexPlan
from moe_vision.routing.soft_plan import SoftPlan

TOKENS = P(('data', 'expert'))  # leading axis over all devices
EXPERTS = P('expert')
REPLICATED = P()


def spans(tokens: int, group_size: int, mesh_shape: Mapping[str, int]) -> bool:
    """Whether a group has tokens on several devices of the expert axis.

    Raises:
      ValueError: the devices that share the experts do not hold whole groups together.
    """
    devices = math.prod(mesh_shape.values())
    if tokens % devices == 0 and tokens // devices % group_size == 0:
        return False
    if tokens % devices or tokens // mesh_shape['data'] % group_size:
        raise ValueError(f'{tokens} tokens on a mesh of {dict(mesh_shape)} do not make whole '
                         f'groups of {group_size} on the devices of an expert axis')
    return True


def over_groups(fn: Callable, mesh: Mesh | None, tokens: int, group_size: int) -> Callable:
    """Runs `fn` where the tokens are, in groups of T.

    Args:
      fn: (shared, experts, group [G], rows [G, T, *]) -> (partial [G, T, *], of_tokens [G, T, *],
        of_groups [G, *]), each a tree. Where groups span devices, each of them calls it with all
        tokens of its groups and its own experts; `partial` is then summed over them.
      tokens: B, of the whole batch.
      group_size: T.

    Returns:
      A function of (shared, experts, group [B / T], rows [B, *]), global arrays, that returns
      the three trees; what is of tokens with leading B.
    """
    split = lambda a: a.reshape(-1, group_size, *a.shape[1:])  # noqa: E731
    merge = lambda a: a.reshape(-1, *a.shape[2:])  # noqa: E731

    def whole(shared, experts, group, rows):
        partial, of_tokens, of_groups = fn(shared, experts, group, jax.tree.map(split, rows))
        return *jax.tree.map(merge, (partial, of_tokens)), of_groups

    def spanning(shared, experts, group, rows):
        rows = jax.tree.map(_gather, rows)
        partial, of_tokens, of_groups = whole(shared, experts, group, rows)
        return jax.tree.map(_sum_back, partial), jax.tree.map(own, of_tokens), of_groups

    def own(a):
        count = a.shape[0] // mesh.shape['expert']
        return jax.lax.dynamic_slice_in_dim(a, jax.lax.axis_index('expert') * count, count)

    if mesh is None or mesh.size == 1:  # one device needs no shard_map
        return whole
    across = spans(tokens, group_size, mesh.shape)
    of_groups = P('data') if across else TOKENS
    return jax.shard_map(
        spanning if across else whole, mesh=mesh,
        in_specs=(REPLICATED, EXPERTS, of_groups, TOKENS), out_specs=(TOKENS, TOKENS, of_groups),
        check_vma=False)


@jax.custom_vjp
def _gather(a):
    return jax.lax.all_gather(a, 'expert', tiled=True)


@jax.custom_vjp
def _sum_back(a):
    parts = a.reshape(jax.lax.axis_size('expert'), -1, *a.shape[1:])
    return jax.lax.all_to_all(parts, 'expert', split_axis=0, concat_axis=0, tiled=True).sum(0)


_gather.defvjp(lambda a: (_gather(a), None), lambda _, g: (
    None if g.dtype == jax.dtypes.float0 else _sum_back(g),))
_sum_back.defvjp(lambda a: (_sum_back(a), None), lambda _, g: (_gather(g),))


def run_plan(plan: IndexPlan | SoftPlan, x: jax.Array, expert: Expert, bank: dict[str, jax.Array],
             mesh: Mesh | None, across: bool, train: bool) -> jax.Array:
    """`plan.apply` inside `over_groups`, each expert run on the device that has its weights.

    In inference, where the experts are here and there are no more choices than experts, weights
    come to the tokens: buffers would have a slot of every expert.

    Args:
      bank: parameters of this device's experts, [E / n, ...] with n devices on the expert axis.
      across: what `spans` says; then the result is partial: of this device's experts alone.
    """
    count = next(iter(bank.values())).shape[0]
    experts = functools.partial(expert.apply_stacked, bank)
    if mesh is None or mesh.shape['expert'] == 1:
        if not train and isinstance(plan, IndexPlan) and plan.gate.size <= count:
            return plan.apply_each(x, lambda e, row: expert.apply(
                {n: jax.lax.dynamic_index_in_dim(w, e, keepdims=False)
                 for n, w in bank.items()}, row))
        return plan.apply(x, experts)
    if across:
        return plan.of_experts(jax.lax.axis_index('expert') * count, count).apply(x, experts)

    def exchanged(slots):
        slots = jax.lax.all_to_all(slots, 'expert', split_axis=0, concat_axis=1, tiled=True)
        out = experts(slots)
        return jax.lax.all_to_all(out, 'expert', split_axis=1, concat_axis=0, tiled=True)

    return plan.apply(x, exchanged)


def expected(mesh_shape: Mapping[str, int], routed_layers: int, across: bool = False,
             first_input_has_gradient: bool = True, remat: bool = False) -> Counter[str]:
    """How often a training step exchanges what experts read and write, by kind of collective.

    Where groups span devices, what is known of a token besides its features is
    gathered, too: whether it is valid, and, where the router reads them, labels and the carry.

    Args:
      first_input_has_gradient: whether anything that learns stands before the first routed layer.
      remat: the backward pass computes blocks again: all but the last sum, which it has no use for.
    """
    if mesh_shape.get('expert', 1) == 1 or routed_layers == 0:
        return Counter()
    forward_and_back, less = 2 * routed_layers, 0 if first_input_has_gradient else 1
    if across:
        return Counter({'all-gather': forward_and_back + remat * routed_layers,
                        'all-to-all': forward_and_back - less})
    return Counter({'all-to-all': (3 if remat else 2) * forward_and_back - less})


def param_spec(path: tuple[Any, ...]) -> P:
    """How an array of the train state lies on the mesh, from its path: expert banks split."""
    return EXPERTS if any(getattr(k, 'key', getattr(k, 'name', None)) == 'experts'
                          for k in path) else REPLICATED
