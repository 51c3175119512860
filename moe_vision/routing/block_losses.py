"""Losses of groups that teach a router which experts do a token's work, for experts that are the
parts of one block (surgery `split`).

They run all experts on every token, without gradient: E passes for each token. So all experts must
be on one device (`View.bank`). Evaluation reports no losses, so its compiled program does without.

Axes: G groups, T tokens, E experts, D width, F hidden units of an expert, `*` payload of a token.
"""

import jax
import jax.numpy as jnp
import numpy as np

from moe_vision.common.errors import UserError
from moe_vision.routing.types import Array, Context, Routing, View, top_k_ids


def prior_approximate(routing: Routing, context: Context, view: View) -> Array:
    """KL(p || q) of the router's probabilities p to what its experts are worth, mean of a group,
    [G].

        q = softmax(y),  y_e = 1 for the k experts with the least |f_e(x) - k/E f(x)|^2, else 0

    f is the block of which experts are the parts: the sum of all f_e(x). If experts stand still
    (transform `freeze_experts`) that is the block that was split; else it moves with them, where
    the authors keep the block beside.

    Source: the prior-approximate router of FactorLLM, arXiv 2408.11855.

    Raises:
      UserError: experts lie on several devices.
    """
    bank, x = _read('prior_approximate', context, view)
    flat = x.reshape(-1, *x.shape[2:])  # [G T, *]
    e, k = view.num_experts, min(view.place.k, view.num_experts)
    each = view.expert.run_stacked(bank, jnp.broadcast_to(flat, (e, *flat.shape)))
    each = each.reshape(e, flat.shape[0], -1).astype(jnp.float32)
    error = jnp.square(each - each.sum(0) * (k / e)).mean(-1)  # [E, G T]
    best = jax.nn.one_hot(top_k_ids(-error.T, k), e).sum(1).reshape(*x.shape[:2], e)
    log_p = jax.nn.log_softmax(routing.logits[..., :e])
    return _mean((jnp.exp(log_p) * (log_p - jax.nn.log_softmax(best))).sum(-1), context)


def unit_overlap(routing: Routing, context: Context, view: View) -> Array:
    """Cross-entropy of the router to where the hidden units are that a token excites most, mean of
    a group, [G].

        z_e = scale (o_e - mean of o),  o_e = mean over shares s of the part of the most active
              s E F hidden units that belongs to expert e
        hard CE(smoothed one-hot of argmax z) + (1 - hard) CE(softmax(z))

    A hidden unit is as active as the absolute value of its activation, on average over a map. Units
    as active as the last of the s E F are among them.

    Source: the router of Read-ME, arXiv 2410.19123, whose experts are masks of units that may
    share some; which thresholds its code takes was not confirmed, so `shares` is this project's.

    Raises:
      UserError: experts lie on several devices.
    """
    bank, x = _read('unit_overlap', context, view)
    args, e = view.args, view.num_experts
    flat = x.reshape(-1, *x.shape[2:])
    units = jax.vmap(view.expert.units, (0, None))(bank, flat)  # [E, G T, *, F]
    active = jnp.abs(units.astype(jnp.float32))
    active = active.reshape(e, flat.shape[0], -1, active.shape[-1]).mean(2).swapaxes(0, 1)
    active = active.reshape(flat.shape[0], -1)
    counts = np.asarray([max(round(s * active.shape[-1]), 1) for s in args.shares])
    least = jnp.sort(active)[:, -counts]  # of the most active units, [G T, shares]
    among = active[:, None] >= least[..., None]  # [G T, shares, E F]
    part = among.reshape(flat.shape[0], len(counts), e, -1).sum(-1) / among.sum(-1, keepdims=True)
    overlap = part.mean(1).reshape(*x.shape[:2], e)
    z = args.scale * (overlap - overlap.mean(-1, keepdims=True))
    best = jax.nn.one_hot(z.argmax(-1), e)
    label = (1 - args.smoothing) * best + args.smoothing / e
    label = args.hard * label + (1 - args.hard) * jax.nn.softmax(z)
    log_p = jax.nn.log_softmax(routing.logits[..., :e])
    if routing.allowed is not None:  # the others are as good as not there
        allowed = routing.allowed[:, None, :e]
        label = jnp.where(allowed, label, 0.0)
        label = label / jnp.maximum(label.sum(-1, keepdims=True), 1e-9)
        log_p = jnp.where(allowed, log_p, 0.0)
    return _mean(-(label * log_p).sum(-1), context)


def _read(name: str, context: Context, view: View) -> tuple[dict[str, Array], Array]:
    """The experts' parameters, and the tokens with zeros for padding, without gradient."""
    if view.bank is None or view.tokens is None:
        raise UserError(
            f"loss '{name}' runs all experts on every token, but they lie on several devices; set "
            'mesh.expert to 1, or the loss to 0.'
        )
    x = view.tokens
    x = jnp.where(context.valid.reshape(context.valid.shape + (1,) * (x.ndim - 2)), x, 0)
    return jax.lax.stop_gradient(view.bank), jax.lax.stop_gradient(x)


def _mean(each: Array, context: Context) -> Array:
    """The mean of [G, T] over valid tokens, [G]."""
    count = jnp.maximum(context.valid.sum(-1), 1).astype(jnp.float32)
    return jnp.where(context.valid, each, 0.0).sum(-1) / count
