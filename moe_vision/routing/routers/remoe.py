"""ReLU routing, whose number of experts varies and is kept by a loss (ReMoE, Wang et al. 2024).

Axes: G groups, T tokens, K choices, E experts, D width.
"""

import jax
import jax.numpy as jnp

from moe_vision.routing.linear import linear
from moe_vision.routing.router import Router
from moe_vision.routing.types import Array, Context, Routing, pick, top_k_ids


class Remoe(Router):
    """Gates are ReLU(x W), without a softmax; an expert is chosen where its gate is above zero.

    Loss `remoe` with weight 1 pulls the gates down by a coefficient that all routed layers share as
    state. After each optimizer step it becomes

        coefficient * rate^sign((1 - k / E) - S),   S the share of gates that are zero,

    both of them means over layers, so that tokens come to take k experts on average.

    Source: arXiv 2412.14711. Choices of this project: the coefficient stays within 1e-30 and 1e30;
    a token's experts take slots in the order of their gates, so where capacity is short the
    smallest gates are dropped first, and the output is continuous in x only where all find room;
    `probs` are each gate's share of a token's gates, and uniform where all are zero.
    """

    _SMALLEST = 1e-6  # added to each gate before their shares are taken

    @property
    def max_choices(self) -> int:
        """K, the most experts that a token can take."""
        return min(self.args.max_choices or self.num_experts, self.num_experts)

    def init_shared_state(self) -> dict[str, Array]:
        return {'coefficient': jnp.float32(self.args.coefficient)}

    def choose(self, params, state, features: Array, context: Context) -> Routing:
        logits = linear(features, params['kernel'], normalize=self.args.normalize_inputs)
        gates = jax.nn.relu(logits)
        ids = top_k_ids(gates, self.max_choices)
        gate, shares = pick(gates, ids), gates + self._SMALLEST
        return self.routing(
            context,
            logits,
            ids,
            gate,
            probs=shares / shares.sum(-1, keepdims=True),
            active=(gate > 0) & context.valid[..., None],
        )

    def observe(self, routing, context):
        """By how much the share of gates above zero is larger than k / E, times the tokens, [G].

        Gates count whether or not they are among the K largest.
        """
        positive = (routing.logits > 0).sum(-1) - self.k
        excess = jnp.where(context.valid, positive, 0).sum(-1) / self.num_experts
        return {'excess': excess.astype(jnp.float32)}

    def update_shared_state(self, state, sums):
        moved = self.args.rate ** jnp.sign(sum(s['excess'] for s in sums))
        return {'coefficient': jnp.clip(state['coefficient'] * moved, 1e-30, 1e30)}
