"""Plans: which choice sits in which slot, and how outputs come back.

The index plan moves tokens by gathers only, forward and backward: the transpose of the gather that
fills the slots is the gather that reads them. One integer sort per group builds the tables, so the
cost does not grow with E or C.

Axes: G groups, T tokens, K choices, E experts, C capacity, `*` payload (a vector [D] or a
feature map [H, W, D]). Slot (e, g, c) is row (e * G + g) * C + c of the flat buffers.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

from moe_vision.routing.types import Array, Routing, pick

Experts = Callable[[Array], Array]  # [E, slots, *] -> [E, slots, *out]
Priority = Literal['token', 'gate', 'random']


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class IndexPlan:
    """A plan for token choice: tables from choices to slots and from slots to choices.

    A dropped choice still knows its expert.
    """

    expert_of_choice: Array  # [G, T, K] int32
    gate: Array  # [G, T, K] float32
    wants: Array  # [G, T, K] bool: active, and of a true expert
    keep: Array  # [G, T, K] bool: wants, and found a slot
    slot: Array  # [G, T, K] int32, row of the flat buffers; 0 where not kept
    src_token: Array  # [E, G, C] int32, row of x [G*T]; 0 where empty
    src_choice: Array  # [E, G, C] int32
    filled: Array  # [E, G, C] bool

    @property
    def capacity(self) -> int:
        return self.filled.shape[-1]

    def apply(self, x: Array, experts: Experts) -> Array:
        """Runs tokens x [G, T, *] through their experts: [G, T, *out].

        A token's output is the sum of gate * output over its kept choices.
        """
        g, t = x.shape[:2]
        e = self.filled.shape[0]
        buffers = _dispatch(x.reshape(g * t, *x.shape[2:]), self._tables())
        with jax.named_scope('experts'):
            out = experts(buffers.reshape(e, g * self.capacity, *x.shape[2:]))
        rows = out.reshape(e * g * self.capacity, *out.shape[2:])
        return _combine(rows, self.gate, self._tables())

    def apply_each(self, x: Array, expert: Callable[[Array, Array], Array]) -> Array:
        """`apply` for few choices: runs each choice by itself, without buffers.

        If experts have room for all tokens, no choice is dropped and the slots are never computed;
        they would take a tenth of the time of a small network.

        Args:
          expert: (id [], token [1, *]) -> [1, *out].
        """
        g, t, k = self.gate.shape
        ids = jnp.minimum(self.expert_of_choice, self.filled.shape[0] - 1).reshape(g * t, k)
        tokens = x.reshape(g * t, 1, *x.shape[2:])
        rows = [expert(ids[n, j], tokens[n]) for n in range(g * t) for j in range(k)]
        out = jnp.concatenate(rows).reshape(g, t, k, *rows[0].shape[1:])
        gate = self.gate.reshape(g, t, k, *(1,) * (out.ndim - 3))
        kept = self.wants if self.capacity >= t else self.keep
        return masked(kept, gate * out).sum(2).astype(x.dtype)

    def for_experts(self, first: Array, count: int) -> 'IndexPlan':
        """The plan of `count` experts from `first` on. Choices of other experts are not kept."""
        _, g, c = self.filled.shape
        ids = self.expert_of_choice
        keep = self.keep & (ids >= first) & (ids < first + count)
        slot = jnp.where(keep, self.slot - first * g * c, 0)
        tables = {
            name: jax.lax.dynamic_slice_in_dim(getattr(self, name), first, count)
            for name in ('src_token', 'src_choice', 'filled')
        }
        return dataclasses.replace(self, keep=keep, slot=slot, **tables)

    def _tables(self):
        return self.slot, self.keep, self.src_token, self.src_choice, self.filled


def index_plan(
    routing: Routing,
    num_experts: int,
    capacity: int,
    priority: Priority = 'token',
    keys: Array | None = None,
) -> IndexPlan:
    """Gives each choice a slot or drops it. All first choices come before all second choices.

    Args:
      routing: the choices; its `active` already excludes padding.
      num_experts: E; ids >= E take no slot.
      capacity: C, slots per expert and group.
      priority: the order among first choices, and among second choices: 'token' is the order of
        tokens, 'gate' the largest gate first, 'random' a random order. Where gates are equal, the
        largest probability comes first: at k = 1 a gate may be 1 whatever the router knows.
      keys: [G] random keys, for priority 'random'.

    Raises:
      ValueError: (E + 1) * K * T does not fit 31 bits.
    """
    ids = routing.expert_of_choice
    g, t, k = ids.shape
    e, c = num_experts, capacity
    if (e + 1) * k * t >= 2**31:
        raise ValueError(f'a group of {t} tokens with {k} choices of {e} experts is too large')
    wants = routing.active & (ids < e)
    rank, token_of_rank = _order(routing, priority, keys)

    # One sort key per choice: expert, then first or second choice, then the token's rank. Choices
    # that want no slot go last.
    place = jnp.arange(k) * t + (jnp.arange(t)[:, None] if rank is None else rank[..., None])
    sort_key = jnp.where(wants, ids, e) * (k * t) + place
    in_order = jnp.sort(sort_key.reshape(g, t * k), axis=-1)
    bounds = jnp.arange(e + 1) * (k * t)
    starts = _first_at_least(in_order, bounds)

    # From slots to choices: slot c of an expert has the c-th choice after the expert's start.
    wanted = starts[:, :-1, None] + jnp.arange(c)  # [G, E, C]
    filled = wanted < starts[:, 1:, None]
    entry = _rows(in_order, jnp.minimum(wanted, t * k - 1).reshape(g, e * c)).reshape(g, e, c)
    src_choice, src_rank = jnp.divmod(entry % (k * t), t)
    src = (
        src_rank
        if token_of_rank is None
        else _rows(token_of_rank, src_rank.reshape(g, e * c)).reshape(g, e, c)
    )
    src = jnp.where(filled, src + jnp.arange(g)[:, None, None] * t, 0)

    # From choices to slots: a choice has its place in the order, less the start of its expert.
    choice_major = in_order % (k * t)
    rank_in_order = (
        jnp.zeros((g, t * k), jnp.int32)
        .at[jnp.arange(g)[:, None], choice_major]
        .set(
            jnp.broadcast_to(jnp.arange(t * k, dtype=jnp.int32), (g, t * k)),
            unique_indices=True,
            mode='promise_in_bounds',
        )
    )
    start = _rows(starts, jnp.where(wants, ids, e).reshape(g, t * k)).reshape(g, t, k)
    position = _rows(rank_in_order, jnp.broadcast_to(place, (g, t, k)).reshape(g, t * k))
    position = position.reshape(g, t, k) - start
    keep = wants & (position < c)
    row = (ids * g + jnp.arange(g)[:, None, None]) * c + position
    return IndexPlan(
        expert_of_choice=ids,
        gate=routing.gate,
        wants=wants,
        keep=keep,
        slot=jnp.where(keep, row, 0).astype(jnp.int32),
        src_token=jnp.moveaxis(src, 1, 0).astype(jnp.int32),
        src_choice=jnp.moveaxis(src_choice, 1, 0).astype(jnp.int32),
        filled=jnp.moveaxis(filled, 1, 0),
    )


def _order(routing: Routing, priority: Priority, keys: Array | None):
    """The rank of each token, [G, T], and the token of each rank; None, None for token order."""
    ids = routing.expert_of_choice
    t = ids.shape[1]
    if priority == 'token':
        return None, None
    if priority == 'gate':
        values = routing.gate, pick(routing.probs, ids)
        by_gate, by_prob = (-jnp.max(jnp.where(routing.active, v, -jnp.inf), -1) for v in values)
        order: tuple[Array, ...] = by_prob, by_gate  # the last one counts first
    elif priority == 'random':
        if keys is None:
            raise ValueError("priority 'random' needs keys")
        order = (jax.vmap(lambda key: jax.random.uniform(key, (t,)))(keys),)
    else:
        raise ValueError(f'unknown priority {priority!r}')
    token_of_rank = jnp.lexsort(jax.lax.stop_gradient(order), axis=-1)  # stable
    rank = jnp.argsort(token_of_rank, axis=-1)
    return rank.astype(jnp.int32), token_of_rank.astype(jnp.int32)


def _first_at_least(in_order: Array, bounds: Array) -> Array:
    """How many entries of each sorted row [G, N] are below each bound [M]: [G, M], by bisection.

    It replaces `jnp.searchsorted`, which from jax 0.12 on hides its operations from a walk over the
    traced program.
    """
    g, n = in_order.shape
    below = jnp.zeros((g, bounds.shape[0]), jnp.int32)
    for bit in reversed(range(n.bit_length())):
        more = below + 2**bit
        fits = (more <= n) & (_rows(in_order, jnp.minimum(more, n) - 1) < bounds)
        below = jnp.where(fits, more, below)
    return below


def _rows(table: Array, index: Array) -> Array:
    """table [G, N] at index [G, M]: [G, M]."""
    return jax.vmap(lambda a, i: a.at[i].get(mode='promise_in_bounds'))(table, index)


def _take(rows: Array, index: Array) -> Array:
    return rows.at[index].get(mode='promise_in_bounds')


def masked(mask: Array, values: Array) -> Array:
    """values, but zero where the mask is False, even if the value there is not finite."""
    mask = mask.reshape(mask.shape + (1,) * (values.ndim - mask.ndim))
    return jnp.where(mask, values, jnp.zeros((), values.dtype))


@jax.custom_vjp
def _dispatch(x: Array, tables) -> Array:
    """Moves x [G*T, *] to buffers [E, G, C, *]. Empty slots are zero."""
    _, _, src_token, _, filled = tables
    return masked(filled, _take(x, src_token))


def _dispatch_fwd(x, tables):
    return _dispatch(x, tables), tables


def _dispatch_bwd(tables, d_buffers):
    slot, keep, *_ = tables
    rows = d_buffers.reshape(-1, *d_buffers.shape[3:])
    parts = [masked(keep[..., k], _take(rows, slot[..., k])) for k in range(slot.shape[-1])]
    dx = functools.reduce(jnp.add, parts)
    return dx.reshape(-1, *dx.shape[2:]), None


_dispatch.defvjp(_dispatch_fwd, _dispatch_bwd)


@jax.custom_vjp
def _combine(rows: Array, gate: Array, tables) -> Array:
    """Moves rows [E*G*C, *] to tokens [G, T, *]: the gated sum over kept choices, in float32."""
    slot, keep, *_ = tables
    payload = (1,) * (rows.ndim - 1)
    parts = [
        masked(
            keep[..., k],
            gate[..., k].reshape(*gate.shape[:2], *payload) * _take(rows, slot[..., k]),
        )
        for k in range(slot.shape[-1])
    ]
    return functools.reduce(jnp.add, parts).astype(rows.dtype)


def _combine_fwd(rows, gate, tables):
    return _combine(rows, gate, tables), (rows, gate, tables)


def _combine_bwd(saved, dy):
    rows, gate, (slot, keep, src_token, src_choice, filled) = saved
    e, g, c = filled.shape
    dy_slot = _take(dy.reshape(-1, *dy.shape[2:]), src_token)  # [E, G, C, *]
    gate_slot = _take(gate.reshape(-1), src_token * gate.shape[-1] + src_choice)
    gate_slot = gate_slot.reshape(e, g, c, *(1,) * (rows.ndim - 1))
    d_rows = masked(filled, gate_slot * dy_slot).astype(rows.dtype)
    d_gate_slot = jnp.einsum(  # not a product and a sum, because XLA sums rows slowly on a CPU
        'sd,sd->s',
        dy_slot.reshape(e * g * c, -1),
        rows.reshape(e * g * c, -1),
        preferred_element_type=jnp.float32,
    )
    d_gate = masked(keep, _take(d_gate_slot, slot)).astype(gate.dtype)
    return d_rows.reshape(rows.shape), d_gate, None


_combine.defvjp(_combine_fwd, _combine_bwd)
