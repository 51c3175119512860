"""Routes a token by its neighbours' probabilities, too (Similarity- and Attention-aware SMoE).

    r_t = softmax(x_t W),    r~ = (1 - mix) r + mix A r,    A row-stochastic over tokens

The k experts with the largest r~ are chosen, and r~ is the gate. So tokens that are alike, or that
attend to each other, take the same experts. A is

    similarity_aware   softmax over s of x_t W_s x_s^T / temperature, where W_s is learned and
                       starts as the identity
    attention_aware    the mean over heads of the attention in the same encoder block

Source: arXiv 2505.00792, which averages probabilities and not logits. A token's neighbours are the
tokens of its image. With `graph='group'`, for images that are routed whole, they are the images of
the group, in training alone: then no prediction depends on other images.

This project's own choices: in the similarity x has unit length, and the temperature is 0.1, unless
the args say otherwise. At unit variance a token's product with itself is D, and at temperature 1 A
would be the identity. Padding is nobody's neighbour.

Axes: G groups, T tokens, I images of a group, N tokens of an image, E experts, K choices, D width.
"""

import functools

import jax
import jax.numpy as jnp

from moe_vision.common.errors import UserError
from moe_vision.routing.linear import linear, normalized
from moe_vision.routing.router import Router
from moe_vision.routing.types import Array, Context, Routing, pick, top_k_ids

_product = functools.partial(jnp.einsum, precision='highest')


class _Graph(Router):
    def choose(self, params, state, features, context: Context) -> Routing:
        a = self.args
        logits = linear(features, params['kernel'], normalize=a.normalize_inputs)
        probs = jax.nn.softmax(logits)
        weights = self.weights(params, features, context)
        if weights is not None:
            g, t, e = probs.shape
            own = probs.reshape(*weights.shape[:3], e)  # [G, I, N, E]
            around = _product('gits,gise->gite', weights, own)
            probs = ((1 - a.mix) * own + a.mix * around).reshape(g, t, e)
        ids = top_k_ids(probs, self.k)
        gate = pick(probs, ids)
        return self.routing(context, logits, ids, gate, probs=probs)

    def weights(self, params, features: Array, context: Context) -> Array | None:
        """A, [G, I, N, N] float32; None for the identity."""
        raise NotImplementedError


class SimilarityAware(_Graph):
    def params(self, width):
        eye = lambda key, shape: jnp.eye(*shape)  # noqa: E731
        return super().params(width) | {'similarity': ((width, width), eye)}

    def weights(self, params, features, context):
        a = self.args
        if a.graph == 'group' and not context.train:
            return None
        g, t, d = features.shape
        n = t if a.graph == 'group' else self.place.tokens_per_image
        if t % n:
            raise UserError(f'a group of {t} tokens cuts images of {n} tokens; see group_size.')
        x = features.astype(jnp.float32).reshape(g, t // n, n, d)
        if a.normalize_inputs:
            x = normalized(x) * d**-0.5
        scores = _product('gitd,de,gise->gits', x, params['similarity'], x) / a.temperature
        return jax.nn.softmax(jnp.where(_seen(context.valid, n), scores, -jnp.inf))


class AttentionAware(_Graph):
    needs = ('attention',)

    def weights(self, params, features, context):
        attention = context.extras['attention']  # [G, T, N]
        g, t, n = attention.shape
        weights = attention.reshape(g, t // n, n, n)
        if self.args.stop_gradient:
            weights = jax.lax.stop_gradient(weights)
        # without padding it is as it was: its rows sum to 1
        weights = jnp.where(_seen(context.valid, n), weights, 0.0)
        return weights / jnp.maximum(weights.sum(-1, keepdims=True), 1e-9)


def _seen(valid: Array, n: int) -> Array:
    """Which neighbours count, [G, I, 1, N]: all that are valid, or all where none is."""
    valid = valid.reshape(valid.shape[0], -1, 1, n)
    return valid | ~valid.any(-1, keepdims=True)
