"""Routes by a balanced transport plan in training (S-BASE, Clark et al. 2022).

In training a token takes the k experts with the most mass in its row of Sinkhorn's plan
(`routing.sinkhorn`) between the tokens of the group and the experts, whose loads the plan makes
equal. In evaluation it takes those with the largest logits, as a linear router does. Gates are
those of the linear router in both: softmax or sigmoid of the logits. So the plan has no gradient,
and no loss balances anything.

xi = 1 and a softmax over exp(logits) are what Megatron-LM takes; the paper's own xi is not known
here. Iterations are fixed in number; the paper iterates to a tolerance.

Axes: G groups, T tokens, E experts, K choices, D width.
"""

import jax

from moe_vision.routing.linear import linear
from moe_vision.routing.router import Router
from moe_vision.routing.sinkhorn import log_plan
from moe_vision.routing.types import Context, Routing, pick, top_k_ids


class Sinkhorn(Router):
    def choose(self, params, state, features, context: Context) -> Routing:
        a = self.args
        logits = linear(features, params['kernel'], normalize=a.normalize_inputs)
        probs = jax.nn.softmax(logits)
        ids = top_k_ids(
            log_plan(logits, context.valid, a.xi, a.iterations) if context.train else logits, self.k
        )
        gate = pick(probs if a.gate == 'softmax' else jax.nn.sigmoid(logits), ids)
        return self.routing(context, logits, ids, gate, probs=probs)
