"""Auxiliary losses: functions of (routing, context, view) with one value per group.

Those of a whole layer, `(view, key) -> scalar`, run once per layer with the weights of all experts.
`routing.types.View` says what either may read.

Balance losses see all ids that may be chosen. Each null expert counts as the mean of the null
experts, so that they need not be balanced among themselves. Padding does not count.

Axes: G groups, T tokens, K choices, N ids, E experts (N = E without null experts).
"""

import dataclasses

import jax
import jax.numpy as jnp

from moe_vision.common.errors import UserError
from moe_vision.routing import temperature as entropies
from moe_vision.routing.types import Array, Context, Routing, SoftRouting, View, pick, top_k_ids


def importance(routing: Routing | SoftRouting, context: Context, view: View) -> Array:
    """CV^2 over experts of the summed probabilities, [G].

    Source: V-MoE, Riquelme et al. 2021: the probabilities are those of all experts, without noise.
    Shazeer et al. 2017 sum the gates instead, which are noisy and zero where nothing is chosen.
    """
    return _cv_squared(_per_id(_tokens(routing.probs, context), view.num_experts), routing)


def load(routing: Routing, context: Context, view: View) -> Array:
    """CV^2 over experts of the smoothed number of choices under the router's noise, [G].

    A choice is smoothed to the probability that the id would be among the k largest if its noise
    were drawn again: Phi((logit - threshold) / std), where the threshold is the k-th largest noisy
    logit of the other ids. With k = N it is zero.

    Source: Shazeer et al. 2017, appendix A. V-MoE takes another threshold, see `load_v_moe`.

    Raises:
      UserError: the router has no noise.
    """
    noisy, k = _noisy('load', routing)
    if k >= noisy.shape[-1]:
        return jnp.zeros(noisy.shape[0], jnp.float32)
    top = pick(noisy, top_k_ids(noisy, k + 1))
    # An id among the k largest competes with the (k+1)-th, any other with the k-th.
    threshold = jnp.where(noisy > top[..., k:], top[..., k:], top[..., k - 1 : k])
    return _smoothed(routing, threshold, context, view.num_experts)


def load_v_moe(routing: Routing, context: Context, view: View) -> Array:
    """`load` with one threshold for all ids of a token: its k-th largest noisy logit, [G].

    Source: V-MoE, Riquelme et al. 2021, and its code. An id that was chosen competes with itself or
    a weaker choice, so this differs from Shazeer's loss.

    Raises:
      UserError: the router has no noise.
    """
    noisy, k = _noisy('load_v_moe', routing)
    threshold = pick(noisy, top_k_ids(noisy, k))[..., k - 1 :]
    return _smoothed(routing, threshold, context, view.num_experts)


def switch(routing: Routing, context: Context, view: View) -> Array:
    """N * sum_e f_e P_e, [G], 1 at balance.

    f_e is the share of id e among all choices that are made, first to k-th, as they were made: with
    noise on the logits. P_e is its mean probability without that noise. So at k = 1 without noise
    this is the loss of Switch (Fedus et al. 2021); `switch_top_1` counts first choices at any k.
    """
    return _switch(routing, context, view.num_experts, choices=routing.expert_of_choice.shape[-1])


def switch_top_1(routing: Routing, context: Context, view: View) -> Array:
    """`switch` where f_e counts first choices alone, [G], 1 at balance.

    Source: GShard, Lepikhin et al. 2020, at k = 2 (times E^2, so that it is 1 at balance); Switch,
    Fedus et al. 2021, at k = 1.
    """
    return _switch(routing, context, view.num_experts, choices=1)


def complementary(routing: Routing, context: Context, view: View) -> Array:
    """`switch` where f_e counts the k experts with the largest logits, [G], 1 at balance.

    Beside a router that balances by a bias it still sees what the scores alone would choose, where
    `switch` sees choices that the bias has evened out. Source: DeepSeek-V3, arXiv 2412.19437, which
    takes it of each sequence; here it is of each group.
    """
    ids = top_k_ids(routing.logits, view.place.k)
    active = jnp.broadcast_to(context.valid[..., None], ids.shape)
    by_score = dataclasses.replace(routing, expert_of_choice=ids, active=active)
    return _switch(by_score, context, view.num_experts, choices=view.place.k)


def z(routing: Routing | SoftRouting, context: Context, view: View) -> Array:
    """Mean squared logsumexp of the logits (ST-MoE), [G]. It keeps logits small."""
    del view
    squared = jnp.square(jax.nn.logsumexp(routing.logits, axis=-1))
    return jnp.where(context.valid, squared, 0.0).sum(-1) / _count(context)


def supervised(routing: Routing, context: Context, view: View) -> Array:
    """Mean cross-entropy between the router's probabilities and the superclass (Mobile V-MoE), [G].

    It is zero in evaluation without labels, where nothing learns from it.

    Raises:
      UserError: the router gives no superclass, or training has no labels.
    """
    del view
    if routing.superclass is None:
        if context.train:
            raise UserError("loss 'supervised' needs router 'supervised' and, in training, labels.")
        return jnp.zeros(routing.logits.shape[0], jnp.float32)
    each = -pick(jax.nn.log_softmax(routing.logits), routing.superclass[..., None])[..., 0]
    return jnp.where(context.valid, each, 0.0).sum(-1) / _count(context)


def selector_entropy(routing: Routing, context: Context, view: View) -> Array:
    """Mean over tokens of the summed entropies of the selectors of `dselect_k`, [G], in nats.

    It is zero where each selector has chosen one expert.

    Source: DSelect-k, Hazimeh et al. 2021.

    Raises:
      UserError: the router has no selectors.
    """
    del view
    if 'selector_entropy' not in routing.aux:
        raise UserError("loss 'selector_entropy' needs router 'dselect_k'; set its weight to 0.")
    each = routing.aux['selector_entropy'].sum(-1)
    return jnp.where(context.valid, each, 0.0).sum(-1) / _count(context)


def remoe(routing: Routing, context: Context, view: View) -> Array:
    """The L1 norm of the gates of router `remoe`, each expert's weighted by its load, [G].

        coefficient * sum_e (mean of ReLU(logit_e)) * E / (k T) * (tokens with a gate of e above 0)

    The coefficient is state of the routers, so the weight of this loss is 1. The load has no
    gradient.

    Source: ReMoE, Wang et al. 2024, which takes the mean over layers where this is added up.

    Raises:
      UserError: the router has no such state.
    """
    if 'coefficient' not in view.state:
        raise UserError(
            "loss 'remoe' needs the coefficient that routers 'remoe' of a network share; take that "
            'router, or set the loss to 0.'
        )
    count = _count(context)[:, None]
    gates = _tokens(jax.nn.relu(routing.logits), context) / count
    load = _tokens((routing.logits > 0).astype(jnp.float32), context) / count
    e, k = routing.logits.shape[-1], view.place.k
    return view.state['coefficient'] * jnp.sum(gates * load, -1) * e / k


def tsallis(routing: Routing | SoftRouting, context: Context, view: View) -> Array:
    """Mean Tsallis entropy of the router's probabilities as a share of its most, [G].

        mean_t H_q(p_t) / H_q(1/E),    H_q(p) = (1 - sum_e p_e^q) / (q - 1)

    It is 1 where all experts are equally likely, and 0 where one is sure. Source: DynMoLE,
    arXiv 2504.00661, and its code, which divides by the most.
    """
    each = entropies.tsallis_share(routing.probs, view.args.q)
    return jnp.where(context.valid, each, 0.0).sum(-1) / _count(context)


def budget(routing: Routing, context: Context, view: View) -> Array:
    """(P - target)^2, P the mean over tokens and layers of the probability of large modules, [G].

    It is that of the last routed layer, which knows P, and zero in the others. Source: Duo-LLM,
    Alizadeh et al. 2024.
    """
    if view.place.layer < view.place.layers - 1:
        return jnp.zeros(context.valid.shape[0], jnp.float32)
    mean = jnp.where(context.valid, routing.aux['large'], 0.0).sum(-1) / _count(context)
    return jnp.where(context.valid.any(-1), jnp.square(mean - view.args.target), 0.0)


def _noisy(name: str, routing: Routing) -> tuple[Array, int]:
    """The noisy logits, and how many of the choices are the largest of them."""
    if routing.noise_std is None or routing.noisy_logits is None:
        raise UserError(
            f"loss '{name}' needs a router with noise, whose Routing has noisy_logits and "
            f'noise_std; set model.moe.losses.{name} to 0.'
        )
    return routing.noisy_logits, routing.scored or routing.expert_of_choice.shape[-1]


def _smoothed(routing: Routing, threshold: Array, context: Context, num_experts: int) -> Array:
    """CV^2 of the summed probabilities to be above a threshold [G, T, 1 or N], [G]."""
    assert routing.noise_std is not None  # `_noisy` has checked it
    std = jnp.maximum(routing.noise_std, 1e-6)
    p = jax.scipy.stats.norm.cdf((routing.logits - threshold) / std)
    return _cv_squared(_per_id(_tokens(p, context), num_experts), routing)


def _switch(routing: Routing, context: Context, num_experts: int, choices: int) -> Array:
    n, active = routing.probs.shape[-1], routing.active[..., :choices]
    chosen = jax.nn.one_hot(routing.expert_of_choice[..., :choices], n) * active[..., None]
    f = chosen.sum((1, 2)) / jnp.maximum(active.sum((1, 2)), 1)[:, None]
    p = _tokens(routing.probs, context) / _count(context)[:, None]
    among = n if routing.allowed is None else routing.allowed.sum(-1)
    return among * jnp.sum(_per_id(f, num_experts) * _per_id(p, num_experts), -1)


def _tokens(values: Array, context: Context) -> Array:
    """Sum of values [G, T, N] over the valid tokens, [G, N]."""
    return jnp.where(context.valid[..., None], values, 0.0).sum(1)


def _count(context: Context) -> Array:
    return jnp.maximum(context.valid.sum(-1), 1).astype(jnp.float32)


def _per_id(values: Array, num_experts: int) -> Array:
    """values [G, N] in which each null expert has the mean of all null experts."""
    if values.shape[-1] == num_experts:
        return values
    null = values[:, num_experts:]
    shared = jnp.broadcast_to(null.mean(-1, keepdims=True), null.shape)
    return jnp.concatenate([values[:, :num_experts], shared], -1)


def _cv_squared(values: Array, routing: Routing | SoftRouting) -> Array:
    """Variance over squared mean of values [G, N] of the ids that may be chosen, [G].

    It is zero if the mean is zero.
    """
    allowed = getattr(routing, 'allowed', None)
    mean = values.mean(-1, where=allowed)
    return jnp.var(values, axis=-1, where=allowed) / jnp.maximum(jnp.square(mean), 1e-12)
