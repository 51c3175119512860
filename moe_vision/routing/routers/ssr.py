"""Routes by a balanced transport plan in a few steps (Selective Sinkhorn Routing, SSR).

A step of training is balanced with probability p. Then Sinkhorn's plan P (`routing.sinkhorn`)
between the tokens of a group and the experts, for the scores S = logits or softmax(logits), takes
the place of the router's own choices:

    choices: the k largest of P[t],    gate = P[t, choice] / sum of P[t] over the choices

All other steps, and evaluation, are those of `top_k` with the same arguments, noise included. No
loss balances anything. With `renormalize`, gates sum to 1 in all steps; without it those of
ordinary steps sum to less, so the branch grows in a balanced step.

This project's own choices: whether a step is balanced is drawn once for each routed layer, from the
key of the step. The gradient of the gates goes through S and not through the iterations. With k = 1
the gate would always be 1, so it is the softmax of the logits there. In a balanced step
`noisy_logits` are those of the choices that were replaced. Source: arXiv 2511.08972; xi is 0.05 for
softmax scores and 0.5 to 1 for logits, p 0.001 to 0.01.

Axes: G groups, T tokens, E experts, K choices.
"""

import dataclasses

import jax

from moe_vision.common.streams import SsrStream
from moe_vision.routing.routers.top_k import TopK
from moe_vision.routing.sinkhorn import log_plan
from moe_vision.routing.types import Array, Context, Routing, pick, top_k_ids


class Ssr(TopK):
    def choose(self, params, state, features, context: Context) -> Routing:
        routing = super().choose(params, state, features, context)
        p = self.args.probability
        if not context.train or p == 0:
            return routing
        drawn = jax.random.bernoulli(context.layer_key(SsrStream.BALANCED), p)
        balanced = context.unless_settled(drawn, False)
        ids, gate = jax.lax.cond(
            balanced,
            lambda: self._balanced(routing, context),
            lambda: (routing.expert_of_choice, routing.gate),
        )
        return dataclasses.replace(routing, expert_of_choice=ids, gate=gate)

    def _balanced(self, routing: Routing, context: Context) -> tuple[Array, Array]:
        """Choices and gates by the plan, [G, T, K] each."""
        a = self.args
        scores = routing.logits if a.cost == 'linear' else routing.probs
        plan = log_plan(scores, context.valid, a.xi, a.iterations)
        ids = top_k_ids(plan, self.k)
        gate = jax.nn.softmax(pick(plan, ids)) if self.k > 1 else pick(routing.probs, ids)
        return ids, gate * a.gate_scale
