"""What is counted while routing, and the rates that follow from the counts.

`count` runs on the device and returns sums, which may be added over groups, micro-batches, batches
and devices. `summarize` turns sums into rates on the host.

Axes: G groups, T tokens, K choices, N ids (null experts included), E experts, L classes.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from moe_vision.common import limits
from moe_vision.routing.plan import IndexPlan
from moe_vision.routing.soft_plan import SoftPlan
from moe_vision.routing.temperature import entropy
from moe_vision.routing.types import Array, Context, Routing, SoftRouting


def count(
    routing: Routing | SoftRouting, plan: IndexPlan | SoftPlan, context: Context
) -> dict[str, Array]:
    """Sums over the tokens of each group, [G, ...], float32. `summarize` says what they mean."""
    valid = context.valid
    temperature = jnp.asarray(routing.temperature, jnp.float32)
    sums = {
        'tokens': valid.sum(1),
        'entropy': jnp.where(valid, entropy(routing.probs), 0.0).sum(1),
        'probs': jnp.where(valid[..., None], routing.probs, 0.0).sum(1),
        'temperature': jnp.where(valid, temperature, 0.0).sum(1),
    }
    if isinstance(routing, SoftRouting):
        weights = jnp.where(valid[..., None], routing.combine.sum(-1), 0.0).sum(1)
        zero = jnp.zeros_like(sums['entropy'])
        sums |= {
            'chosen': weights,
            'kept': weights,
            'choices': sums['tokens'],
            'dropped': zero,
            'orphans': zero,
            'slots': sums['tokens'],
        }
    else:
        assert isinstance(plan, IndexPlan)
        dropped = plan.wants & ~plan.keep
        orphan = jnp.any(routing.active, -1) & jnp.all(dropped | ~routing.active, -1)
        ids = jax.nn.one_hot(routing.expert_of_choice, routing.probs.shape[-1])
        experts, _, slots = plan.filled.shape
        sums |= {
            'chosen': (ids * routing.active[..., None]).sum((1, 2)),
            'kept': plan.filled.sum(2).T,
            'choices': plan.wants.sum((1, 2)),
            'dropped': dropped.sum((1, 2)),
            'orphans': orphan.sum(1),
            'slots': jnp.where(valid.any(1), experts * slots, 0),
        }
    return {name: value.astype(jnp.float32) for name, value in sums.items()}


def by_class(
    routing: Routing | SoftRouting,
    labels: Array,
    context: Context,
    num_classes: int,
    patches: int = 1,
) -> Array:
    """Choices before capacity by id and class, [G, N, L] float32; labels [G, T] int32.

    Args:
      patches: how many tokens in a row have the label of one image. Their choices are counted
        first, so that no array [G, T, L] is written. A group may hold a part of them.
    """
    if isinstance(routing, SoftRouting):
        truth = jax.nn.one_hot(labels, num_classes) * context.valid[..., None]
        return jnp.einsum('gte,gtl->gel', routing.combine.sum(-1), truth)
    groups, tokens = labels.shape
    same = math.gcd(tokens, patches)  # tokens in a row of one group and one image
    ids = jax.nn.one_hot(routing.expert_of_choice, routing.probs.shape[-1])
    active = routing.active & context.valid[..., None]
    chosen = (ids * active[..., None]).sum(2).reshape(groups, tokens // same, same, -1).sum(2)
    truth = jax.nn.one_hot(labels[:, ::same], num_classes)
    # exact: by default, some devices round counts above 256
    return jnp.einsum('gtn,gtl->gnl', chosen, truth, precision=jax.lax.Precision.HIGHEST)


def summarize(sums: dict[str, Any]) -> dict[str, Any]:
    """Rates from sums of `count` (and `by_class`, [N, L], where given), as plain Python numbers.

    How many experts the layer has, E, is told by `kept`, which counts true experts alone.

    load: each true expert's share of the choices before capacity, [E]; load_kept: after, [E].
    drop_rate: dropped choices over choices of true experts.
    orphan_rate: share of tokens whose choices were all dropped.
    effective_experts: 1 / sum q^2 of the load q. max_over_mean: E max q.
    dead_experts: how many have a load below 1 % of an equal share.
    gate_entropy: H(p) of the router's probabilities, mean over tokens, nats.
    router_information: H(mean p) - mean H(p), nats; zero if all tokens have the same p.
    utilisation: share of the slots that are filled.
    null_rate: share of choices of null experts. choices_per_token: of true experts.
    mutual_information: I(expert; class), nats, with the Miller-Madow correction.
    """
    s = {k: np.asarray(v, np.float64) for k, v in sums.items()}
    num_experts = len(s['kept'])
    tokens = max(float(s['tokens']), 1.0)
    chosen = s['chosen'][:num_experts]
    total = chosen.sum()
    q = chosen / total if total else np.full(num_experts, np.nan)
    kept = s['kept'] / s['kept'].sum() if s['kept'].sum() else np.full(num_experts, np.nan)
    mean_p = s['probs'] / tokens
    with_null = s['chosen'].sum()
    out = {
        'load': q.tolist(),
        'load_kept': kept.tolist(),
        'drop_rate': float(s['dropped'] / max(float(s['choices']), 1.0)),
        'orphan_rate': float(s['orphans'] / tokens),
        'effective_experts': float(1 / np.square(q).sum()),
        'max_over_mean': float(num_experts * q.max()),
        'dead_experts': int((~(q >= limits.DEAD / num_experts)).sum()),
        'gate_entropy': float(s['entropy'] / tokens),
        'router_information': float(entropy_of(mean_p) - s['entropy'] / tokens),
        'temperature': float(s['temperature'] / tokens),
        'utilisation': float(s['kept'].sum() / max(float(s['slots']), 1.0)),
        'null_rate': float((with_null - total) / with_null) if with_null else 0.0,
        'choices_per_token': float(s['choices'] / tokens),
    }
    if 'by_class' in s:
        out['mutual_information'] = mutual_information(s['by_class'][:num_experts])
    return out


def mutual_information(counts: np.ndarray) -> float:
    """I(expert; class) in nats of counts [E, L], less the bias (E-1)(L-1)/2N of Miller and Madow.

    The correction leaves out rows and columns without any count. The result is never below zero.
    """
    n = counts.sum()
    if n == 0:
        return float('nan')
    p = counts / n
    uncorrected = entropy_of(p.sum(0)) + entropy_of(p.sum(1)) - entropy_of(p.ravel())
    rows, columns = (counts.sum(1) > 0).sum(), (counts.sum(0) > 0).sum()
    return float(max(uncorrected - (rows - 1) * (columns - 1) / (2 * n), 0.0))


def entropy_of(p: np.ndarray) -> float:
    """Shannon entropy in nats of these shares."""
    p = p[p > 0]
    return float(-(p * np.log(p)).sum())
