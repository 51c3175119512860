"""Every router of the table with its settings, run through every priority; shared by the tests.

Axes: G groups, T tokens, K choices, E experts, N ids, C capacity, D width, F output width.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from moe_vision import registry
from moe_vision.routing import losses, telemetry
from moe_vision.routing.plan import index_plan, soft_plan
from moe_vision.routing.types import Context, SoftRouting

G, T, D, F, E, K, C = 2, 8, 5, 3, 4, 2, 3  # 16 choices for 12 slots: some are dropped
PRIORITIES = ('token', 'gate', 'random')

# Settings besides the defaults. A router that is new in the table runs with its defaults.
_MORE = {
    'top_k': [
        {'noise': 'gaussian', 'gate': 'top_k_softmax'}, {'noise': 'learned', 'gate': 'sigmoid'},
        {'noise': 'jitter', 'renormalize': True, 'second_choice': 'random'},
        {'temperature': 'entropy_floor'}],
    'bias_balanced': [{'score': 'softmax', 'renormalize': False}],
    'null_experts': [{'null_experts': 3, 'renormalize': False}],
    'soft': [{'axis': 'tokens', 'slots_per_expert': 2}, {'axis': 'batch'}],
}
CASES = [(name, tuple(args.items())) for name in registry.ROUTERS
         for args in [{}, *_MORE.get(name, [])]]

# Unoptimised code compiles faster.
jit = functools.partial(jax.jit, compiler_options={'xla_backend_optimization_level': 0})


def case_id(case):
    return '-'.join([case[0], *(str(v) for _, v in case[1])])


def make(case, num_experts=E, k=K):
    entry = registry.entry('router', registry.ROUTERS, case[0])
    return registry.load(entry.path)(entry.args(**dict(case[1])), num_experts, k)


def draws(case):
    """Whether this router draws random numbers while training."""
    args = dict(case[1])
    return (case[0] == 'random' or args.get('noise', 'none') != 'none'
            or args.get('second_choice') == 'random')


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def context(valid=None, *, groups=G, tokens=T, key=0, group=None, fraction=0.3, train=True):
    return Context(
        valid=jnp.ones((groups, tokens), bool) if valid is None else jnp.asarray(valid),
        key=jax.random.key(key), fraction=jnp.float32(fraction), train=train,
        group=jnp.arange(groups) if group is None else jnp.asarray(group))


def inputs(case, seed=0, num_experts=E, k=K):
    """Everything `compiled(case)` takes, all values drawn, none at its initial value."""
    router = make(case, num_experts, k)
    return {
        'params': {n: 1.5 * normal((seed, i), *shape) + (len(shape) == 0)
                   for i, (n, (shape, _)) in enumerate(router.params(D).items())},
        'state': {n: 0.1 * normal((seed, 50 + i), *v.shape)
                  for i, (n, v) in enumerate(router.init_state().items())},
        'features': normal((seed, 90), G, T, D), 'x': normal((seed, 91), G, T, D),
        'weights': (normal((seed, 92), num_experts, D, F), normal((seed, 93), num_experts, 1, F)),
        'context': context(),
    }


def experts(weights):
    """[E, S, D] to [E, S, F]; an empty slot gives something that is not zero."""
    kernel, bias = weights
    return lambda slots: jnp.tanh(jnp.einsum('esd,edf->esf', slots, kernel)) + bias


def losses_of(routing, ctx, num_experts=E):
    """The losses of the table that this routing can have, [G] each."""
    names = [n for n in registry.LOSSES
             if not (n == 'switch' and isinstance(routing, SoftRouting))
             and not (n == 'load' and getattr(routing, 'noise_std', None) is None)]
    return {n: getattr(losses, n)(routing, ctx, num_experts) for n in names}


@functools.cache
def compiled(case, num_experts=E, k=K, capacity=C):
    """`run(inputs) -> (gradients, outputs)`; one compiled program for a case."""
    router = make(case, num_experts, k)

    def loss(learned, state, ctx):
        params, features, x, weights = learned
        routing = router(params, state, features, ctx)
        if isinstance(routing, SoftRouting):
            plans = {'soft': soft_plan(routing, ctx.valid)}
        else:
            plans = {p: index_plan(routing, num_experts, capacity, p, ctx.keys(9))
                     for p in PRIORITIES}
        y = {p: plan.apply(x, experts(weights)) for p, plan in plans.items()}
        out = {'routing': routing, 'plans': plans, 'y': y,
               'losses': losses_of(routing, ctx, num_experts),
               'counts': {p: telemetry.count(routing, plan, ctx) for p, plan in plans.items()}}
        first = jnp.where(ctx.valid[..., None], next(iter(y.values())), 0.0)
        total = jnp.sum(jnp.sin(first)) + sum(jnp.sum(v) for v in out['losses'].values())
        return total, out

    @jit
    def run(given):
        learned = tuple(given[n] for n in ('params', 'features', 'x', 'weights'))
        grads, out = jax.grad(loss, has_aux=True)(learned, given['state'], given['context'])
        return dict(zip(('params', 'features', 'x', 'weights'), grads, strict=True)), out

    return run


def one_hot_oracle(x, weights, ids, gate, active, rank, capacity):
    """The plan as einsums over [T, E, C], for one group; `rank` [T] says whose turn it is.

    Choice by choice, tokens in the order of their rank, each takes its expert's next slot.
    """
    e = weights[0].shape[0]
    dispatch, combine, taken = 0.0, 0.0, jnp.zeros(e)
    before = rank[None, :] < rank[:, None]  # [T, T]: that token comes before this one
    for choice in range(ids.shape[-1]):
        assign = jax.nn.one_hot(ids[:, choice], e) * active[:, choice, None]  # null ids: all zero
        position = taken + jnp.einsum('ts,se->te', before.astype(jnp.float32), assign)
        taken = taken + assign.sum(0)
        here = assign[..., None] * jax.nn.one_hot(position, capacity)  # past C: all zero
        dispatch, combine = dispatch + here, combine + gate[:, choice, None, None] * here
    out = experts(weights)(jnp.einsum('tec,td->ecd', dispatch, x, precision='highest'))
    return jnp.einsum('tec,ecf->tf', combine, out, precision='highest'), dispatch


def equations(jaxpr):
    """All equations of a jaxpr and of the programs inside it."""
    for eqn in jaxpr.eqns:
        yield eqn
        for value in jax.tree.leaves(list(eqn.params.values()), is_leaf=_is_jaxpr):
            if _is_jaxpr(value):
                yield from equations(getattr(value, 'jaxpr', value))


def _is_jaxpr(value):
    return hasattr(value, 'eqns') or hasattr(getattr(value, 'jaxpr', None), 'eqns')
