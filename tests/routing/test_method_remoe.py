"""ReLU routing and its coefficient (arXiv 2412.14711). Axes: G groups, T tokens, E experts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from routing_cases import context, jit, normal

from moe_vision.common.errors import UserError
from moe_vision.common.place import Place
from moe_vision.config import registry
from moe_vision.config.method_args import RemoeArgs
from moe_vision.layers.moe import make_router
from moe_vision.routing import losses
from moe_vision.routing.plan import index_plan
from moe_vision.routing.types import Context, View

T, E, K = 64, 8, 2
STATE = {'coefficient': jnp.float32(0.5)}


def routed(logits, max_choices=0, k=1):
    """The router on features that are the logits themselves, [T, E]."""
    logits = jnp.asarray(logits)
    router = make_router(
        'remoe',
        {'normalize_inputs': False, 'max_choices': max_choices},
        Place(logits.shape[-1], k, len(logits)),
    )
    params = {'kernel': jnp.eye(logits.shape[-1])}
    ctx = context(groups=1, tokens=len(logits))
    return router, ctx, router(params, STATE, logits[None], ctx)


LOGITS = [[1.0, -1.0], [3.0, 2.0], [-2.0, -1.0]]


def test_an_expert_is_chosen_where_its_gate_is_above_zero():
    _, _, routing = routed(LOGITS)
    np.testing.assert_array_equal(routing.expert_of_choice[0], [[0, 1], [0, 1], [0, 1]])
    np.testing.assert_array_equal(routing.gate[0], [[1, 0], [3, 2], [0, 0]])
    np.testing.assert_array_equal(routing.active[0], [[True, False], [True, True], [False] * 2])
    np.testing.assert_allclose(routing.probs[0], [[1, 0], [0.6, 0.4], [0.5, 0.5]], atol=1e-5)
    _, _, bounded = routed(LOGITS, max_choices=1)
    np.testing.assert_array_equal(bounded.gate[0], [[1], [3], [0]])
    assert routed(LOGITS, max_choices=9)[2].gate.shape == (1, 3, 2)  # there are no more experts


def test_the_loss_by_hand():
    """Mean gates (4/3, 2/3); of 3 tokens 2 and 1 choose: 1/2 * (4/3 * 2/3 + 2/3 * 1/3) * 2 / k."""
    router, ctx, routing = routed(LOGITS)
    view = View(router.place, state=STATE)
    assert float(losses.remoe(routing, ctx, view)[0]) == pytest.approx(10 / 9)
    two = View(Place(2, 2), state=STATE)
    assert float(losses.remoe(routing, ctx, two)[0]) == pytest.approx(5 / 9)


def test_the_loss_needs_the_state():
    router, ctx, routing = routed(LOGITS)
    with pytest.raises(UserError, match="loss 'remoe' needs the coefficient"):
        losses.remoe(routing, ctx, View(router.place))
    assert set(registry.LOSSES['remoe'].needs) <= set(registry.ROUTERS['remoe'].supplies)


def test_the_coefficient_rises_while_tokens_take_more_than_k():
    """3 of 6 gates are above zero; k = 1 of E = 2 would be as many, k = 2 twice as many."""
    router, ctx, routing = routed(LOGITS)
    assert float(router.observe(routing, ctx)['excess'][0]) == 0
    two, _, _ = routed(LOGITS, k=2)
    assert float(two.observe(routing, ctx)['excess'][0]) == -1.5
    bounded, _, one = routed(LOGITS, max_choices=1)
    assert float(bounded.observe(one, ctx)['excess'][0]) == 0  # whatever is among the K largest
    padded = context([[True, True, False]], groups=1, tokens=3)
    assert float(router.observe(routing, padded)['excess'][0]) == 0.5  # 3 of 4, and not 2

    def after(*excess):
        sums = [{'excess': jnp.float32(x)} for x in excess]
        return float(router.update_shared_state(STATE, sums)['coefficient'])

    assert after(2.0, -1.0) == pytest.approx(0.5 * 1.2)  # of two layers
    assert after(2.0, -3.0) == pytest.approx(0.5 / 1.2)
    assert after(1.0, -1.0) == pytest.approx(0.5)
    least = {'coefficient': jnp.float32(1e-30)}
    sums = [{'excess': jnp.float32(-1.0)}]
    assert float(router.update_shared_state(least, sums)['coefficient']) == np.float32(1e-30)


def test_it_brings_the_number_of_experts_to_k():
    """Gates learn targets that are all above zero; the loss leaves k = 2 of E = 8 of them."""
    router = make_router('remoe', None, Place(E, K, T))
    x, target = normal(0, 1, T, 32), jnp.abs(normal(1, 1, T, E))
    ctx = context(groups=1, tokens=T)

    @jit
    def trained(kernel):
        def loss(kernel, state):
            routing = router({'kernel': kernel}, state, x, ctx)
            gates = jax.nn.relu(routing.logits)
            view = View(router.place, state=state)
            l1 = losses.remoe(routing, ctx, view)[0]
            return jnp.square(gates - target).sum(-1).mean() + l1, routing

        def step(carry, _):
            kernel, state = carry
            grad, routing = jax.grad(loss, has_aux=True)(kernel, state)
            sums = {n: v.sum(0) for n, v in router.observe(routing, ctx).items()}
            state = router.update_shared_state(state, [sums])
            taken = routing.active.sum() / T
            return (kernel - 0.1 * grad, state), (taken, state['coefficient'])

        return jax.lax.scan(step, (kernel, router.init_shared_state()), length=400)[1]

    taken, coefficient = trained(0.2 * normal(2, 32, E))
    assert taken[:20].mean() > 3  # about half of the gates are above zero at first
    assert abs(taken[-100:].mean() - K) < 0.3
    assert coefficient[0] == np.float32(1.2e-8) and coefficient[-1] > 0.1


def test_the_output_is_continuous_and_that_of_top_k_is_not():
    """The largest jump along a line: four times as many points make a continuous one a quarter."""
    ends, weights = 2 * normal(8, 2, 5), normal(4, 4, 5, 3)

    @functools.partial(jax.jit, static_argnames=('name', 'points'))
    def jump(kernel, name, points):
        along = jnp.linspace(0, 1, points)[:, None]
        x = (ends[0] + along * (ends[1] - ends[0]))[None]
        ctx = Context(jnp.ones((1, points), bool), None, jnp.zeros(1, jnp.int32))
        router = make_router(name, {'normalize_inputs': False}, Place(4, 1, points))
        routing = router({'kernel': kernel}, STATE, x, ctx)
        plan = index_plan(routing, 4, points)
        y = plan.apply(x, lambda slots: jnp.einsum('esd,edf->esf', slots, weights))
        return jnp.abs(jnp.diff(y[0], axis=0)).max()

    kernel = 2 * normal(5, 5, 4)
    for name, continuous in (('remoe', True), ('top_k', False)):
        coarse, fine = (float(jump(kernel, name, n)) for n in (101, 401))
        assert (coarse / fine > 3) == continuous, name


def test_wrong_arguments():
    for args, part in (
        ({'rate': 1.0}, 'above 1'),
        ({'max_choices': -1}, 'not be negative'),
        ({'coefficient': 0.0}, 'positive'),
    ):
        with pytest.raises(UserError, match=part):
            RemoeArgs(**args)
