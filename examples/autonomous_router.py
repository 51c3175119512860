"""A router of your own that reads the experts: those that find most in a token take it.

After Autonomy of Experts (Lv et al. 2025, arXiv 2501.13074): the norm of x W_e, with the first
matrix W_e of expert e, is its score. There is nothing to learn but the experts: gates are a softmax
of the scores, and by them the gradient reaches W_e. The paper factors W_e so that this costs less;
here it costs 2 E D F for each token.

    PYTHONPATH=. python main.py --config=configs/digits_k2.py --workdir=W \
        --config.model.moe.router=examples.autonomous_router:Autonomous \
        --config.model.moe.router_args={} --config.model.moe.losses={}

Axes: G groups, T tokens, E experts, D width, F hidden width.
"""

import jax
import jax.numpy as jnp

from moe_vision.routing.router import Router
from moe_vision.routing.types import Context, Routing, pick, top_k_ids


class Autonomous(Router):
    needs = ('bank',)

    def params(self, width):
        return {}

    def choose(self, params, state, features, context: Context) -> Routing:
        view = context.view
        first = view.expert.first_matrix(view.bank)  # [E, D, F]
        found = jnp.einsum('gtd,edf->gtef', features, first, precision='highest')
        logits = jnp.sqrt(jnp.mean(jnp.square(found), -1) + 1e-6)  # [G, T, E]
        ids = top_k_ids(logits, self.k)
        return self.routing(context, logits, ids, pick(jax.nn.softmax(logits), ids))
