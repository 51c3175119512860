"""A router that remembers how the layers before routed a token (RMoE, Qiu et al. 2024).

    r_l = x_l W1_l,   h_l = GRU(r_l, h_{l-1}),   logits_l = h_l W2_l,   h before the first layer = 0

The state h goes from layer to layer with its token (`Routing.carry`): with an image where images
are routed, whatever size maps have, and with a patch in a ViT. All layers share one GRU unless
`shared` is False. The k largest probabilities are renormalised. As in the authors' code W1 and W2
have no bias, and the GRU has two, as in cuDNN:

    z, u = sigmoid(r V + b + h U + c),   n = tanh(r V' + b' + z * (h U' + c')),
    h <- (1 - u) n + u h

Features are normalised unless the args say not: that is this project's choice, as for its other
routers. So are initial values: a standard deviation of width^-1/2, and biases of zero.

Axes: G groups, T tokens, D width of features, P width of the state, N ids.
"""

import jax
import jax.numpy as jnp

from moe_vision.routing.linear import linear
from moe_vision.routing.router import Router
from moe_vision.routing.types import Array, Context, Routing, pick, top_k_ids


class Rmoe(Router):
    def params(self, width):
        p, init = self.args.width, jax.nn.initializers.normal
        own = {
            'in_kernel': ((width, p), init(width**-0.5)),
            'kernel': ((p, self.num_ids), init(p**-0.5)),
        }
        return own if self.args.shared else own | self._cell()

    def shared_params(self):
        return self._cell() if self.args.shared else {}

    def _cell(self):
        p, init = self.args.width, jax.nn.initializers.normal
        gates = 3 * p if self.args.cell == 'gru' else p
        return {
            'input': ((p, gates), init(p**-0.5)),
            'recurrent': ((p, gates), init(p**-0.5)),
            'input_bias': ((gates,), jax.nn.initializers.zeros),
            'recurrent_bias': ((gates,), jax.nn.initializers.zeros),
        }

    def step(self, params, r: Array, h: Array) -> Array:
        """The state [G, T, P] after h [G, T, P] and the projected features r [G, T, P]."""
        new = linear(r, params['input'], normalize=False) + params['input_bias']
        old = linear(h, params['recurrent'], normalize=False) + params['recurrent_bias']
        if self.args.cell == 'rnn':
            return jnp.tanh(new + old)
        (z, u, n), (of_z, of_u, of_n) = (jnp.split(a, 3, axis=-1) for a in (new, old))
        z, u = jax.nn.sigmoid(z + of_z), jax.nn.sigmoid(u + of_u)
        return (1 - u) * jnp.tanh(n + z * of_n) + u * h

    def choose(self, params, state, features, context: Context) -> Routing:
        a = self.args
        r = linear(features, params['in_kernel'], normalize=a.normalize_inputs)
        h = self.step(params, r, jnp.zeros_like(r) if context.carry is None else context.carry)
        logits = linear(h, params['kernel'], normalize=False)
        probs = jax.nn.softmax(logits)
        ids = top_k_ids(logits, self.k)
        gate = pick(probs, ids)
        return self.routing(context, logits, ids, gate, probs=probs, carry=h)
