"""A differentiable selection of at most k experts (DSelect-k, Hazimeh et al. 2021).

Each of k selectors names an expert by log2 E binary digits, which a smooth step makes of z = Z x:

    S(t) = 0 for t <= -gamma/2, 1 for t >= gamma/2, else -2 t^3 / gamma^3 + 3 t / (2 gamma) + 1/2
    r_j(z) = product over digits b of S(z_b) where b is 1 in j, and of 1 - S(z_b) where it is 0
    gate of expert j = sum over selectors i of softmax(alpha(x))_i r_j(z_i)

The gates sum to 1. Where all |z| >= gamma/2, each selector has chosen one expert, and a token takes
at most k. Before that it takes up to all E, which is dense: an expert takes part where its gate is
above zero. Loss `selector_entropy` makes selectors choose.

Source: arXiv 2106.03760, the gate that depends on the input. Its code sums all experts; here a
token's experts take slots in the order of their gates, so with capacity_factor = E / k the output
is the paper's, and with less room the smallest gates are dropped first. This project's own choices:
features are normalised unless the args say not; E is a power of 2. As in the paper's code z and
alpha have biases, and z starts so small that all experts are alike; here alpha does, too.

Axes: G groups, T tokens, S selectors, B digits, E experts, K choices, D width.
"""

import math

import jax
import jax.numpy as jnp

from moe_vision.routing.linear import linear
from moe_vision.routing.router import Router
from moe_vision.routing.temperature import entropy
from moe_vision.routing.types import Array, Context, Routing, pick, top_k_ids


class DSelectK(Router):
    def __init__(self, args, place):
        super().__init__(args, place)
        args.check_experts(place.num_experts)
        self.digits = int(math.log2(self.num_experts))

    @property
    def _most(self) -> int:
        """K, the most experts of a token."""
        return min(self.num_experts, self.args.max_choices or self.num_experts)

    def params(self, width):
        small = jax.nn.initializers.uniform(0.02 * self.args.gamma)
        codes = self.k * self.digits

        def init(key, shape):
            return small(key, shape) - 0.01 * self.args.gamma

        shapes = {'weights': ((width, self.k), init), 'weights_bias': ((self.k,), init)}
        if codes:  # a single expert has no digits
            shapes |= {'codes': ((width, codes), init), 'codes_bias': ((codes,), init)}
        return shapes

    def choose(self, params, state, features, context: Context) -> Routing:
        a, normalize = self.args, self.args.normalize_inputs
        alpha = linear(features, params['weights'], normalize=normalize) + params['weights_bias']
        shape = (*alpha.shape, self.digits)  # [G, T, S, B]
        z = jnp.zeros(shape, jnp.float32)
        if self.digits:
            z = linear(features, params['codes'], normalize=normalize) + params['codes_bias']
        selected = experts_of_digits(smooth_step(z.reshape(shape), a.gamma))  # [G, T, S, E]
        gates = jnp.sum(jax.nn.softmax(alpha)[..., None] * selected, 2)
        ids = top_k_ids(gates, self._most)
        gate = pick(gates, ids)
        return self.routing(
            context,
            jnp.log(jnp.maximum(gates, 1e-30)),
            ids,
            gate,
            probs=gates,
            active=(gate > 0) & context.valid[..., None],
            aux={'selector_entropy': entropy(selected)},
        )


def smooth_step(t: Array, gamma: float) -> Array:
    """From 0 at -gamma/2 to 1 at gamma/2 by a cubic, with a continuous derivative."""
    cubic = -2 / gamma**3 * t**3 + 3 / (2 * gamma) * t + 0.5
    return jnp.where(t <= -gamma / 2, 0.0, jnp.where(t >= gamma / 2, 1.0, cubic))


def experts_of_digits(ones: Array) -> Array:
    """The share of each expert, [..., 2^B], from the share of a 1 in each digit [..., B].

    The first digit counts most.
    """
    shares = jnp.ones((*ones.shape[:-1], 1), ones.dtype)
    for b in range(ones.shape[-1]):
        digit = jnp.stack([1 - ones[..., b], ones[..., b]], -1)
        shares = (shares[..., None] * digit[..., None, :]).reshape(*shares.shape[:-1], -1)
    return shares
