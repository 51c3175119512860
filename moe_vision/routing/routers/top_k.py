"""Token choice by the k largest logits. Settings make it the router of several papers.

Learned noise: Shazeer et al. 2017. Jitter on the input: Switch, Fedus et al. 2021. Random second
choice: GShard, Lepikhin et al. 2020. Noise of standard deviation 1/E on the logits, softmax before
top-k, gates that are not renormalised: V-MoE, Riquelme et al. 2021. None of these papers
has a norm of its own before the router: that is `normalize_inputs=False`. A router that is taught
the superclass of an image: Mobile V-MoE, Daxberger et al. 2023. This project's own choices: the
sigmoid gate, and a second choice that is a random expert, which is a control.

Axes: G groups, T tokens, E experts, K choices, D width.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from moe_vision.common.streams import TopKStream
from moe_vision.routing.interventions import shuffle
from moe_vision.routing.linear import linear
from moe_vision.routing.router import Router
from moe_vision.routing.temperature import schedule, with_entropy_floor
from moe_vision.routing.types import Context, Routing, pick, top_k_ids


class TopK(Router):
    """A linear router without bias, in float32, on features normalised unless the args say not."""

    @property
    def draws(self):
        """The second choice is drawn in evaluation, too."""
        return self.args.second_choice == 'random_expert' and self.k == 2

    def params(self, width):
        shapes = super().params(width)
        if self.args.noise == 'learned':
            shapes['noise_kernel'] = ((width, self.num_ids), jax.nn.initializers.zeros)
        return shapes

    def choose(self, params, state, features, context: Context) -> Routing:
        a, train = self.args, context.train
        jitter = None
        if a.noise == 'jitter' and train:
            jitter = _per_group(
                context,
                TopKStream.JITTER,
                jax.random.uniform,
                features.shape[1:],
                minval=1 - 0.01 * a.noise_scale,
                maxval=1 + 0.01 * a.noise_scale,
            )
            jitter = context.unless_settled(jitter, 1.0)
        product = functools.partial(linear, features, normalize=a.normalize_inputs)
        logits = product(params['kernel'], jitter)
        tau = schedule(a.temperature, a.temperature_start, a.temperature_end, context.fraction)
        if a.temperature == 'entropy_floor':
            tau = with_entropy_floor(logits, tau, a.entropy_floor)
        logits = logits / (tau if tau.ndim == 0 else tau[..., None])

        noisy, std = logits, None
        if a.noise == 'gaussian':
            std = jnp.float32(a.noise_scale / self.num_experts)
        elif a.noise == 'learned':
            std = a.noise_scale * jax.nn.softplus(product(params['noise_kernel']))
        if std is not None and train:
            noisy = logits + std * _per_group(
                context, TopKStream.NOISE, jax.random.normal, logits.shape[1:]
            )
            noisy = context.unless_settled(noisy, logits)

        probs = jax.nn.softmax(logits)
        ids, scored = top_k_ids(noisy, self.k), None
        if a.second_choice == 'random_expert' and self.k == 2:
            ids, scored = _with_random_second(ids[..., 0], self.num_ids, context), 1
        if a.gate == 'softmax_top_k':
            gate = pick(jax.nn.softmax(noisy), ids)
        elif a.gate == 'top_k_softmax':
            gate = jax.nn.softmax(pick(noisy, ids))
        else:
            gate = pick(jax.nn.sigmoid(noisy), ids)
        if a.renormalize:
            gate = gate / (gate.sum(-1, keepdims=True) + 1e-9)
        active = jnp.broadcast_to(context.valid[..., None], ids.shape)
        if a.second_choice == 'random' and train and self.k == 2:
            share = gate[..., 1] / (gate.sum(-1) + 1e-9)
            drawn = _per_group(
                context, TopKStream.SECOND_CHOICE_MADE, jax.random.uniform, share.shape[1:]
            )
            made = context.unless_settled(drawn < 2 * share, True)
            active = active.at[..., 1].set(active[..., 1] & made)
        return Routing(
            probs=probs,
            logits=logits,
            expert_of_choice=ids,
            gate=gate * a.gate_scale,
            active=active,
            noisy_logits=noisy,
            noise_std=std,
            temperature=tau,
            scored=scored,
        )


class FrozenRandom(TopK):
    """A control whose router never learns, so its routes follow the features alone.

    The features do learn, because gradients of losses and gates pass through the frozen weights.
    """

    def choose(self, params, state, features, context: Context) -> Routing:
        return super().choose(jax.lax.stop_gradient(params), state, features, context)


class Shuffled(TopK):
    """A control that learns routes and then permutes them among the tokens of a group.

    Loads, gates and probabilities are those of a learned router, but tokens go elsewhere.
    """

    draws = compares = True

    def choose(self, params, state, features, context: Context) -> Routing:
        routing = super().choose(params, state, features, context)
        return shuffle(routing, context, TopKStream.SHUFFLE)


class Supervised(TopK):
    """A router to which loss `supervised` teaches the superclass of a token's image."""

    needs = ('labels',)

    def choose(self, params, state, features, context: Context) -> Routing:
        routing = super().choose(params, state, features, context)
        if context.labels is None:
            return routing
        superclass = context.labels % self.place.num_experts
        if self.args.superclasses:
            superclass = jnp.asarray(self.args.superclasses, jnp.int32)[context.labels]
        return dataclasses.replace(routing, superclass=superclass)


def _with_random_second(first, num_ids: int, context: Context):
    """first [G, T] and one of the other ids, drawn uniformly: [G, T, 2]."""
    step = _per_group(
        context,
        TopKStream.SECOND_EXPERT,
        jax.random.randint,
        first.shape[1:],
        minval=1,
        maxval=num_ids,
    )
    return jnp.stack([first, (first + step) % num_ids], -1)


def _per_group(context: Context, stream: int, draw, shape, **kwargs):
    """Calls `draw` with the key of each group: [G, *shape]."""
    return jax.vmap(lambda key: draw(key, shape, **kwargs))(context.keys(stream))
