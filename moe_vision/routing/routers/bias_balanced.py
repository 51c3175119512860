"""Balances experts by a bias on the selection instead of a loss (DeepSeek-V3).

    s = sigmoid(x W) or softmax(x W);  choices: the k largest of s + b;  gate = s of the choice
    after each optimizer step: b_e += rate * sign(mean load - load_e)

b is router state: it has no gradient, and all devices hold the same copy.

Source: arXiv 2412.19437, whose score is the sigmoid and whose gates are renormalised. This
project's own choices: features are normalised unless the args say not, scores may be a softmax,
and experts have a fixed number of slots, so that choices can be dropped.
"""

import jax
import jax.numpy as jnp

from moe_vision.routing.linear import linear
from moe_vision.routing.router import Router
from moe_vision.routing.types import Context, Routing, pick, top_k_ids


class BiasBalanced(Router):
    def init_state(self):
        return {'bias': jnp.zeros((self.num_experts,), jnp.float32)}

    def choose(self, params, state, features, context: Context) -> Routing:
        a = self.args
        logits = linear(features, params['kernel'], normalize=a.normalize_inputs)
        score = jax.nn.sigmoid(logits) if a.score == 'sigmoid' else jax.nn.softmax(logits)
        # Each score's share of their sum, written so that it is finite even if all underflow.
        probs = jax.nn.softmax(jax.nn.log_sigmoid(logits)) if a.score == 'sigmoid' else score
        ids = top_k_ids(score + state['bias'], self.k)
        gate = pick(score, ids)
        return self.routing(context, logits, ids, gate, probs=probs)

    def update_state(self, state, sums):
        counts = sums['chosen'][: self.num_experts].astype(jnp.float32)
        return {'bias': state['bias'] + self.args.bias_rate * jnp.sign(counts.mean() - counts)}
