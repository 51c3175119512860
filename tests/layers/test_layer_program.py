"""What the traced layer consists of: gathers, no large float scatter, nothing of size T E C."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from layer_cases import TRAIN, expert_args, init, jit, moe, tokens
from routing_cases import equations
from slow import except_for

from moe_vision.common import flops
from moe_vision.config import registry
from moe_vision.layers import Step
from moe_vision.layers.moe import make_expert

B, D, E = 256, 32, 8  # one group of 256 tokens
LARGE = B * D // 2  # payload is B * D and more; tables are at most E * B choices, E * C = 640 slots

CASES = [(name, {}) for name in registry.ROUTERS] + [
    ('top_k', {'noise': 'learned', 'gate': 'sigmoid', 'renormalize': True}),
    ('top_k', {'noise': 'gaussian', 'gate': 'top_k_softmax', 'second_choice': 'random'}),
    ('top_k', {'noise': 'jitter', 'temperature': 'entropy_floor'}),
    ('soft', {'axis': 'batch'}),
]


def traced(layer, x, step=TRAIN):
    """All equations of the layer's forward and backward, and the shapes of its choices."""

    def loss(variables, x):
        y, info = layer.apply(variables, x, step)
        loss = jnp.sum(jnp.sin(y)) + sum(info['losses'].values())
        return loss, (info['telemetry'], info['choices'])

    variables = jax.eval_shape(lambda x: layer.init(jax.random.key(0), x, step), x)
    both = jax.value_and_grad(loss, (0, 1), has_aux=True, allow_int=True)
    program, ((_, (_, choices)), _) = jax.make_jaxpr(both, return_shape=True)(variables, x)
    return list(equations(program.jaxpr)), choices


def losses(router, args):
    """All that this router can have."""
    offers = set() if router == 'soft' else {'choices'}
    offers |= {'noise'} if args.get('noise') in ('gaussian', 'learned') else set()
    expert = registry.EXPERTS['conv' if 'map' in registry.ROUTERS[router].needs else 'mlp']
    offers |= {'bank', *registry.ROUTERS[router].supplies, *expert.supplies}
    offers -= {'coefficient'}  # a network makes it
    return {n: 1.0 for n, entry in registry.LOSSES.items() if offers >= set(entry.needs)}


@pytest.mark.parametrize(
    'router, args, priority',
    [
        *((name, args, 'token') for name, args in CASES),
        ('top_k', {}, 'gate'),
        ('top_k', {}, 'random'),
    ],
    ids=str,
)
def test_floats_are_not_scattered(router, args, priority):
    expert = 'conv' if 'map' in registry.ROUTERS[router].needs else 'mlp'
    layer = moe(
        E,
        2,
        B,
        router=router,
        router_args=args,
        priority=priority,
        losses=losses(router, args),
        expert=expert,
    )
    x, image = tokens(expert, B, D), jnp.zeros(B, jnp.int32)
    extras = {'domain': image, 'attention': jnp.full((B, 4), 0.25)}
    images = jnp.zeros((B, 4, 4, 3))
    step = dataclasses.replace(TRAIN, extras=extras, labels=image, images=images)
    found, choices = traced(layer, x, step)
    k = choices['expert'].shape[-1]
    scatters = [
        v.aval for eqn in found if eqn.primitive.name.startswith('scatter') for v in eqn.outvars
    ]
    assert all(a.dtype in (jnp.int32, bool) and a.size <= k * B for a in scatters), scatters
    made_by_gather = [eqn.outvars[0].aval for eqn in found if eqn.primitive.name == 'gather']
    gathers = [a for a in made_by_gather if a.dtype == jnp.float32 and a.size >= LARGE]
    if router == 'soft':
        assert not gathers
        return
    # Forward: slots from tokens, and k tokens from slots; backward: their transposes.
    assert len(gathers) == 2 * (1 + k)


@pytest.mark.parametrize('expert', registry.EXPERTS)
def test_no_expert_scatters(expert):
    x = jax.ShapeDtypeStruct(tokens(expert, 16).shape, jnp.float32)
    found, _ = traced(moe(4, 1, 8, expert=expert), x)
    large = [
        eqn
        for eqn in found
        if eqn.primitive.name == 'gather' and eqn.outvars[0].aval.size >= x.size
    ]
    assert len(large) == 4  # k = 1: out and back, forward and backward
    for eqn in found:
        assert not eqn.primitive.name.startswith('scatter') or all(
            v.aval.dtype in (jnp.int32, bool) for v in eqn.outvars
        ), eqn


def test_nothing_is_as_large_as_tokens_times_experts_times_slots():
    e, t = 32, 512
    layer = moe(e, 2, t, hidden=8, capacity_factor=4.0, losses={'importance': 1.0, 'switch': 1.0})
    step = Step(train=True, labels=jnp.zeros(t, jnp.int32), num_classes=10)
    found, _ = traced(layer, tokens('mlp', t, 8), step)
    largest = max(v.aval.size for eqn in found for v in eqn.outvars if hasattr(v.aval, 'size'))
    # C = 4 * 2 * 512 / 32 = 128: T E C is 2,097,152; buffers E C D and choices K T E are 32,768.
    assert largest <= 32768


@pytest.mark.parametrize('expert', except_for(('mlp', 'conv'), registry.EXPERTS))
def test_few_tokens_run_the_experts_that_they_chose_and_no_other(expert):
    layer = moe(num_experts=4, k=2, group_size=2, expert=expert, capacity_factor=2.0)
    x = tokens(expert, count=2)
    variables = init(layer, x)

    def chosen(variables, x):
        return layer.apply(variables, x, Step())[0]

    def buffers(variables, x):
        return layer.apply(variables, x, Step(train=True, key=jax.random.key(5)))[0]

    one = make_expert(expert, expert_args(expert), 8, 16)
    params = {n: w[0] for n, w in variables['params']['experts'].items()}
    of_one = flops.total(flops.count(one.apply, params, x[:1]))
    router = flops.total(flops.count(chosen, variables, x)) - 4 * of_one  # two tokens, two each
    assert router == 2 * 2 * 8 * 4
    assert flops.total(flops.count(buffers, variables, x)) >= 8 * of_one  # two slots of each
    np.testing.assert_allclose(jit(chosen)(variables, x), jit(buffers)(variables, x), atol=1e-5)
