"""Runs every router of the table, with various settings, through every priority.

Axes: G groups, T tokens, K choices, E experts, N ids, C capacity, D width, F output width, M tokens
of an image.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from slow import except_for

from moe_vision.common.place import Place
from moe_vision.common.streams import LayerStream
from moe_vision.config import registry
from moe_vision.routing import telemetry
from moe_vision.routing.plan import index_plan
from moe_vision.routing.soft_plan import soft_plan
from moe_vision.routing.types import Context, Routing, SoftRouting, View

G, T, D, F, E, K, C = 2, 8, 5, 3, 4, 2, 3  # 16 choices for 12 slots: some are dropped
M = 4  # two images in a group
CLASSES = 6
PRIORITIES = ('token', 'gate', 'random')

# Settings besides the defaults. A router that is missing here runs with its defaults only.
_MORE = {
    'top_k': [
        {'noise': 'gaussian', 'gate': 'top_k_softmax'},
        {'noise': 'learned', 'gate': 'sigmoid', 'normalize_inputs': False},
        {
            'noise': 'jitter',
            'renormalize': True,
            'second_choice': 'random',
            'temperature': 'entropy_floor',
        },
        {'second_choice': 'random_expert', 'noise': 'gaussian'},
    ],
    'random': [{'gate': 'softmax'}],
    'bias_balanced': [{'normalize_inputs': False}],
    'oracle': [{'gate': 'softmax'}],
    'shuffled': [{'noise': 'gaussian'}],
    'rmoe': [{'cell': 'rnn', 'shared': False, 'width': 6}],
    'supervised': [{'superclasses': (3, 1, 0, 2, 1, 0)}],
    'ssr': [{'probability': 1.0}, {'probability': 0.5, 'cost': 'linear', 'noise': 'gaussian'}],
    'similarity_aware': [{'graph': 'group', 'temperature': 1.0, 'normalize_inputs': False}],
    'attention_aware': [{'mix': 0.5, 'stop_gradient': True}],
    'dselect_k': [{'max_choices': 2, 'gamma': 4.0, 'normalize_inputs': False}],
    'remoe': [{'max_choices': 2}],
    'dynmole': [{'threshold': 0.7, 'q': 1.0}],
    'dynamoe': [
        {'noise_scale': 0.0, 'rule': 'threshold', 'level': 0.2},
        {'noise_scale': 0.0, 'rule': 'top_p'},
        {'noise_scale': 0.0, 'rule': 'quantile', 'level': 0.5},
    ],
    'duo': [{'random_until': 0.0}, {'random_until': 0.1}],
    'uncertain': [{'calibrate': False, 'passes': 2}],
    'soft': [{'axis': 'tokens', 'slots_per_expert': 2}, {'gate': 'even'}],
}
CASES = [
    (name, tuple(args.items())) for name in registry.ROUTERS for args in [{}, *_MORE.get(name, [])]
]


def _quick_to_compile():
    options = {'xla_backend_optimization_level': 0, 'xla_cpu_use_fusion_emitters': False}
    try:
        jax.jit(lambda: 0, compiler_options=options)()
    except Exception:  # this version of XLA has no such option
        return {}
    return options


jit = functools.partial(jax.jit, compiler_options=_quick_to_compile())


def case_id(case):
    return '-'.join([case[0], *(str(v) for _, v in case[1])])


def parametrized(cases):
    """Parametrises a test by cases. Slow tests are those of a router's further settings, except of
    `top_k`, which most others build upon."""
    quick = [case for case in cases if not case[1] or case[0] == 'top_k']
    return pytest.mark.parametrize('case', except_for(quick, cases), ids=case_id)


def make(case, num_experts=E, k=K):
    entry = registry.entry('router', registry.ROUTERS, case[0])
    place = Place(num_experts, k, T, tokens_per_image=M)
    return registry.load(entry.path)(entry.args(**dict(case[1])), place)


def within_images(case):
    """Whether it matters which tokens of a group belong to one image."""
    args = make(case).args
    return 'attention' in make(case).needs or getattr(args, 'graph', None) == 'image'


NOT_OF_EXPERTS = ('similarity', 'project', 'mean')  # arrays whose last axis is not of experts
FROZEN = ('frozen_random', 'hash')  # routers whose parameters learn nothing


def draws(case):
    """Whether this router draws random numbers while training."""
    args = dict(case[1])
    return (
        case[0] in ('random', 'shuffled', 'uncertain')
        or (case[0] == 'dynamoe' and args.get('noise_scale', 0.1) > 0)
        or args.get('random_until', 0.5 * (case[0] == 'duo')) != 0
        or args.get('noise', 'none') != 'none'
        or args.get('second_choice', 'always') != 'always'
    )


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def context(valid=None, *, groups=G, tokens=T, key=0, group=None, fraction=0.3, train=True):
    return Context(
        valid=jnp.ones((groups, tokens), bool) if valid is None else jnp.asarray(valid),
        key=jax.random.key(key),
        fraction=jnp.float32(fraction),
        train=train,
        group=jnp.arange(groups) if group is None else jnp.asarray(group),
        labels=jnp.arange(groups * tokens).reshape(groups, tokens) % CLASSES,
        extras={
            'domain': jnp.arange(groups * tokens).reshape(groups, tokens) % 3,
            'attention': jax.nn.softmax(normal(7, groups, tokens, M)),
        },
        capacity=C,
    )


def inputs(case, seed=0, num_experts=E, k=K):
    """Everything that a pipeline takes, with drawn values in place of initial ones."""
    router = make(case, num_experts, k)
    params = {
        n: 1.5 * normal((seed, i), *shape) + (len(shape) == 0)
        for i, (n, (shape, _)) in enumerate((router.params(D) | router.shared_params()).items())
    }
    return {
        'params': params,
        'state': {
            n: 0.1 * normal((seed, 50 + i), *v.shape)
            for i, (n, v) in enumerate((router.init_state() | router.init_shared_state()).items())
        },
        'features': features(router, params, seed),
        'x': normal((seed, 91), G, T, D),
        'weights': (normal((seed, 92), num_experts, D, F), normal((seed, 93), num_experts, 1, F)),
        'context': context(),
    }


def features(router, params, seed):
    """Features [G, T, D'] that are drawn, or that the router pools from drawn maps and images."""
    if router.pool is None:
        return normal((seed, 90), G, T, D)
    images = normal((seed, 89), G * T // router.place.tokens_per_image, 8, 8, 3)
    pooled = router.pool(params, normal((seed, 90), G * T, 4, 4, D), {'image': images})
    return pooled.reshape(G, T, -1)


def experts(weights):
    """[E, S, D] to [E, S, F]. The output for an empty slot is not zero."""
    kernel, bias = weights
    return lambda slots: jnp.tanh(jnp.einsum('esd,edf->esf', slots, kernel)) + bias


def view(num_experts=E, args=None, **fields):
    """What a loss may read besides the routing, without tokens unless they are given."""
    return View(Place(num_experts, K, T), args, **fields)


def losses_of(routing, ctx, num_experts=E):
    """The losses of the table that suit this routing, [G] each."""
    offers = set() if isinstance(routing, SoftRouting) else {'choices'}
    offers |= set(routing.aux)
    offers |= set() if getattr(routing, 'noise_std', None) is None else {'noise'}
    offers |= set() if getattr(routing, 'superclass', None) is None else {'superclass'}
    offers |= {'selectors'} if 'selector_entropy' in routing.aux else set()
    return {
        n: registry.load(entry.path)(routing, ctx, view(num_experts, entry.args()))
        for n, entry in registry.LOSSES.items()
        if offers >= set(entry.needs) and not entry.of_layer
    }


class Pipeline:
    """features -> routing -> plan of each priority -> output, losses, counts; and gradients.

    Its pieces are compiled one by one, because what follows the router is the same program for all
    routers. `run(inputs) -> (gradients of sum(sin(y)) + losses, outputs)`, y by the first priority.
    """

    def __init__(self, case):
        self.router = make(case)
        self.forward, self.backward = jit(self._forward), jit(lambda back, d: back(d))

    def _forward(self, params, features, state, ctx):
        """(routing, losses, what takes gradients of both back to params and features)."""

        def run(params, features):
            routing = self.router(params, state, features, ctx)
            losses = losses_of(routing, ctx)
            learned = {n: getattr(routing, n, None) for n in ('combine', 'dispatch', 'gate')}
            return ({n: a for n, a in learned.items() if a is not None}, losses), routing

        (_, losses), back, routing = jax.vjp(run, params, features, has_aux=True)
        return routing, losses, back

    def __call__(self, inputs):
        learned = inputs['params'], inputs['features'], inputs['state'], inputs['context']
        routing, losses, back = self.forward(*learned)
        soft = isinstance(routing, SoftRouting)
        d_routing: dict = {}
        out: dict = {'routing': routing, 'losses': losses, 'y': {}, 'plans': {}, 'counts': {}}
        for priority in ['soft'] if soft else PRIORITIES:
            parts = (
                {n: getattr(routing, n) for n in ('combine', 'dispatch')}
                if soft
                else {
                    n: getattr(routing, n) for n in ('probs', 'expert_of_choice', 'gate', 'active')
                }
            )
            grads, (y, plan) = _execute(
                parts, inputs['x'], inputs['weights'], inputs['context'], priority
            )
            out['y'][priority], out['plans'][priority] = y, plan
            out['counts'][priority] = _count(routing, plan, inputs['context'])
            if not d_routing:
                d_routing = {
                    n: g
                    for n, g in grads[0].items()
                    if n in ('combine', 'dispatch', 'gate') and g is not None
                }
                gradients = {'x': grads[1], 'weights': grads[2]}
        d_losses = jax.tree.map(jnp.ones_like, losses)
        d_params, d_features = self.backward(back, (d_routing, d_losses))
        return jax.device_get((gradients | {'params': d_params, 'features': d_features}, out))


_count = jit(telemetry.count)


@functools.partial(jit, static_argnames='priority')
def _execute(parts, x, weights, ctx, priority):
    @functools.partial(jax.grad, argnums=(0, 1, 2), has_aux=True, allow_int=True)
    def loss(parts, x, weights):
        if priority == 'soft':
            plan = soft_plan(SoftRouting(probs=None, logits=None, **parts), ctx.valid)
        else:
            routing = Routing(logits=None, **parts)
            plan = index_plan(routing, E, C, priority, ctx.keys(LayerStream.PRIORITY))
        y = plan.apply(x, experts(weights))
        return jnp.sum(jnp.where(ctx.valid[..., None], jnp.sin(y), 0.0)), (y, plan)

    return loss(parts, x, weights)


compiled = functools.cache(Pipeline)


def one_hot_oracle(x, weights, ids, gate, active, rank, capacity):
    """The plan of one group as einsums over [T, E, C].

    All first choices come before all second ones. Among the choices of one kind, tokens take the
    next slot of their expert in the order of `rank` [T].
    """
    e = weights[0].shape[0]
    dispatch, combine, taken = 0.0, 0.0, jnp.zeros(e)
    before = rank[None, :] < rank[:, None]  # [T, T]: that token comes before this one
    for choice in range(ids.shape[-1]):
        assign = jax.nn.one_hot(ids[:, choice], e) * active[:, choice, None]  # null ids: all zero
        position = taken + jnp.einsum('ts,se->te', before.astype(jnp.float32), assign)
        taken = taken + assign.sum(0)
        here = assign[..., None] * (position[..., None] == jnp.arange(capacity))  # past C: zero
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
