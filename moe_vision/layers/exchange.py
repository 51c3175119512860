"""Routing over a mesh: where groups lie, and what devices exchange.

The mesh axes are ('data', 'expert'). Tokens are split over both, expert weights over 'expert' only.

Where each device holds whole groups, slots are exchanged: a routed layer runs two all-to-alls
forward (slots to the experts, outputs back) and two backward.

Where a group has tokens on several devices of the expert axis, tokens are exchanged: each of these
devices gathers all tokens of the group, makes the same plan and runs its own experts; then the
outputs are summed and each device gets those of its own tokens. The backward pass does the same in
reverse. The sum is an all-to-all of the parts, which are added where they arrive, because compilers
for TPU turn a reduce-scatter of feature maps into an all-reduce, which sends twice as much.

With one device on the expert axis nothing is exchanged.
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
from moe_vision.routing.types import at_most

TOKENS = P(('data', 'expert'))  # leading axis over all devices
EXPERTS = P('expert')
REPLICATED = P()


def spans(tokens: int, group_size: int, mesh_shape: Mapping[str, int]) -> bool:
    """Whether a group has tokens on several devices of the expert axis.

    Args:
      tokens: B, of the whole batch.
      group_size: T.
      mesh_shape: devices on each of the axes 'data' and 'expert'.

    Raises:
      ValueError: the devices of one expert axis do not hold whole groups together.
    """
    devices = math.prod(mesh_shape.values())
    if tokens % devices == 0 and tokens // devices % group_size == 0:
        return False
    if tokens % devices or tokens // mesh_shape['data'] % group_size:
        raise ValueError(
            f'{tokens} tokens on a mesh of {dict(mesh_shape)} do not make whole '
            f'groups of {group_size} on the devices of an expert axis'
        )
    return True


def over_groups(fn: Callable, mesh: Mesh | None, tokens: int, group_size: int) -> Callable:
    """Makes `fn`, which handles groups of T tokens, run on the devices where the tokens lie.

    Args:
      fn: (shared, experts, group [G], rows [G, T, *]) -> (partial [G, T, *], per_token [G, T, *],
        per_group [G, *]), each a tree. Where groups span devices, each of these devices calls it
        with all tokens of its groups and with its own experts; then `partial` is summed over them.
      tokens: B, of the whole batch.
      group_size: T.

    Returns:
      A function of (shared, experts, group [B / T], rows [B, *]), all global arrays, that returns
      the three trees: the first two with a leading B, the last with a leading B / T.
    """

    def split(a):
        return a.reshape(-1, group_size, *a.shape[1:])

    def merge(a):
        return a.reshape(-1, *a.shape[2:])

    def whole(shared, experts, group, rows):
        partial, per_token, per_group = fn(shared, experts, group, jax.tree.map(split, rows))
        return *jax.tree.map(merge, (partial, per_token)), per_group

    def spanning(shared, experts, group, rows):
        rows = jax.tree.map(_gather, rows)
        partial, per_token, per_group = whole(shared, experts, group, rows)
        return jax.tree.map(_sum_back, partial), jax.tree.map(own_part, per_token), per_group

    def own_part(a):
        count = a.shape[0] // mesh.shape['expert']
        return jax.lax.dynamic_slice_in_dim(a, jax.lax.axis_index('expert') * count, count)

    if mesh is None or mesh.size == 1:  # one device needs no shard_map
        return whole
    across = spans(tokens, group_size, mesh.shape)
    groups = P('data') if across else TOKENS
    return jax.shard_map(
        spanning if across else whole,
        mesh=mesh,
        in_specs=(REPLICATED, EXPERTS, groups, TOKENS),
        out_specs=(TOKENS, TOKENS, groups),
        check_vma=False,
    )


@jax.custom_vjp
def _gather(a):
    return jax.lax.all_gather(a, 'expert', tiled=True)


@jax.custom_vjp
def _sum_back(a):
    parts = a.reshape(jax.lax.axis_size('expert'), -1, *a.shape[1:])
    return jax.lax.all_to_all(parts, 'expert', split_axis=0, concat_axis=0, tiled=True).sum(0)


_gather.defvjp(
    lambda a: (_gather(a), None),
    lambda _, g: (None if g.dtype == jax.dtypes.float0 else _sum_back(g),),
)
_sum_back.defvjp(lambda a: (_sum_back(a), None), lambda _, g: (_gather(g),))


def run_plan(
    plan: IndexPlan | SoftPlan,
    x: jax.Array,
    expert: Expert,
    bank: dict[str, jax.Array],
    num_experts: int,
    mesh: Mesh | None,
    across: bool,
    train: bool,
) -> jax.Array:
    """`plan.apply` inside `over_groups`: each expert runs on the device that has its weights.

    In inference, if this device has all experts and there are no more choices than experts, the
    weights of the chosen experts are looked up instead: buffers would hold a slot of every expert.

    Args:
      x: [G, T, *].
      bank: parameters of this device's experts: [E / n, ...] with n devices on the expert axis, or
        an n-th of each kind.
      num_experts: E.
      across: what `spans` returned. If True the result has the outputs of this device's experts
        alone, for `over_groups` to sum.

    Returns:
      [G, T, *].
    """
    count = num_experts // (1 if mesh is None else mesh.shape['expert'])
    experts = functools.partial(expert.run_stacked, bank)
    if mesh is None or mesh.shape['expert'] == 1:
        if not train and isinstance(plan, IndexPlan) and at_most(plan.gate.size, count):
            return plan.apply_each(x, functools.partial(expert.run_one, bank))
        return plan.apply(x, experts)
    if across:
        return plan.for_experts(jax.lax.axis_index('expert') * count, count).apply(x, experts)

    def exchanged(slots):
        slots = jax.lax.all_to_all(slots, 'expert', split_axis=0, concat_axis=1, tiled=True)
        out = experts(slots)
        return jax.lax.all_to_all(out, 'expert', split_axis=1, concat_axis=0, tiled=True)

    return plan.apply(x, exchanged)


def expected(
    mesh_shape: Mapping[str, int], across: bool = False, remat: bool = False
) -> Counter[str]:
    """How many collectives of each kind a training step runs on what experts of a routed layer read
    and write.

    Where groups span devices, small arrays are gathered beside the features and are not counted
    here: whether a token is valid and, where the router reads them, labels and the carry.

    Args:
      mesh_shape: devices on each axis.
      across: what `spans` returned.
      remat: whether the backward pass computes blocks again. It then repeats all collectives of the
        forward pass but the last sum, whose result it does not need.
    """
    if mesh_shape.get('expert', 1) == 1:
        return Counter()
    passes = 3 if remat else 2
    if across:
        return Counter({'all-gather': passes, 'all-to-all': 2})
    return Counter({'all-to-all': 2 * passes})


def param_spec(path: tuple[Any, ...]) -> P:
    """How the array of the train state with this path is split: only expert banks are."""
    return (
        EXPERTS
        if any(getattr(k, 'key', getattr(k, 'name', None)) == 'experts' for k in path)
        else REPLICATED
    )
