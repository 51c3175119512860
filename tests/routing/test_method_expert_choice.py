"""Expert Choice against its equations, and that nothing but training's capacity decides its routes.

Axes: G groups, T tokens, E experts, C capacity, D width, F output width.
"""

import dataclasses
import functools
import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from layer_cases import TRAIN, init, moe
from model_cases import config as model_of
from routing_cases import context, experts, jit, normal

import input_pipeline
from configs import base
from moe_vision import leverage
from moe_vision.common.errors import UserError
from moe_vision.common.place import Place
from moe_vision.config import check as config_lib
from moe_vision.config.places import moe_at, with_eval_capacity
from moe_vision.layers import Step
from moe_vision.layers.moe import make_router
from moe_vision.layers.route import slots_of
from moe_vision.predict import model as predict
from moe_vision.routing import telemetry
from moe_vision.routing.plan import index_plan

RAW = {'normalize_inputs': False}


def routed(logits, capacity, valid=None, **args):
    """The routing of tokens with these logits [T, E]: features are logits, the kernel is one."""
    valid = np.ones(len(logits), bool) if valid is None else valid
    return compiled(logits, jnp.asarray(valid), capacity, tuple(args.items()))


def route(logits, valid, capacity, args=()):
    t, e = logits.shape
    router = make_router('expert_choice', RAW | dict(args), Place(e, 1, t))
    ctx = dataclasses.replace(context(valid[None], groups=1, tokens=t), capacity=capacity)
    routing = router({'kernel': jnp.eye(e)}, {}, logits[None], ctx)
    plan = index_plan(routing, e, capacity)
    return routing, plan, telemetry.count(routing, plan, ctx)


compiled = functools.partial(jit, static_argnums=(2, 3))(route)


def test_by_hand():
    # S[:, 0] is sigmoid of the difference: 1/2, 0.7311, 0.2689, 1/2; S[:, 1] is the rest. Expert 0
    # takes tokens 1 and 0, expert 1 takes 2 and 0: of two equal tokens the first. Nobody takes 3.
    logits = jnp.asarray([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    routing, plan, counts = routed(logits, 2)
    s = 1 / (1 + math.exp(-1))
    np.testing.assert_array_equal(
        routing.active[0], [[True, True], [True, False], [True, False], [False, False]]
    )
    np.testing.assert_array_equal(routing.expert_of_choice[0, :3, 0], [0, 0, 1])
    assert int(routing.expert_of_choice[0, 0, 1]) == 1
    gate = np.asarray(routing.gate[0])
    np.testing.assert_allclose(gate[:3, 0], [0.5, s, s], rtol=1e-6)
    np.testing.assert_allclose(gate[0, 1], 0.5, rtol=1e-6)
    y = plan.apply(
        jnp.ones((1, 4, 1)), lambda slots: slots * jnp.asarray([10.0, 100.0])[:, None, None]
    )
    np.testing.assert_allclose(y[0, :, 0], [55, 10 * s, 100 * s, 0], rtol=1e-6)
    assert {n: float(counts[n][0]) for n in ('choices', 'dropped', 'slots')} == {
        'choices': 4,
        'dropped': 0,
        'slots': 4,
    }


def test_the_output_is_that_of_the_papers_equations():
    """S = softmax(x W); G, I = TopK(S^T, C); P one-hot of I; y = sum_ij P G f(P x)."""
    t, d, f, e, c = 12, 5, 3, 4, 6
    x, kernel = np.asarray(normal(0, t, d)), np.asarray(normal(1, d, e))
    weights = normal(2, e, d, f), normal(3, e, 1, f)
    s = np.exp(x @ kernel)
    s /= s.sum(-1, keepdims=True)
    order = np.argsort(-s.T, axis=-1, kind='stable')[:, :c]  # I [E, C]
    p = np.eye(t)[order]  # [E, C, T]
    said = experts(weights)(jnp.asarray(np.einsum('ect,td->ecd', p, x), jnp.float32))
    want = np.einsum('ect,ec,ecf->tf', p, np.take_along_axis(s.T, order, -1), said)
    router = make_router('expert_choice', RAW, Place(e, 2, t))
    ctx = dataclasses.replace(context(groups=1, tokens=t), capacity=c)

    @jit
    def run(x):
        routing = router({'kernel': jnp.asarray(kernel)}, {}, x, ctx)
        plan = index_plan(routing, e, c)
        return routing, plan.apply(x, experts(weights)), plan.filled

    routing, y, filled = run(jnp.asarray(x)[None])
    np.testing.assert_allclose(y[0], want, rtol=1e-4, atol=1e-5)
    assert filled.all()  # every expert has exactly C tokens, E C in all
    taken = np.asarray(routing.active).sum(-1)
    assert taken.min() < taken.max()  # and tokens have different numbers of experts
    moved = np.random.default_rng(4).permutation(t)
    np.testing.assert_allclose(run(jnp.asarray(x[moved])[None])[1][0], want[moved], atol=1e-5)


def test_padding_is_never_taken_and_frees_no_expert_of_its_load():
    logits, valid = normal(0, 8, 3), np.asarray([1, 1, 0, 1, 0, 0, 1, 0], bool)
    for capacity, load in ((2, 2), (9, 4)):  # more slots than tokens: all of them
        routing, plan, _ = routed(logits, capacity, valid)
        assert not np.asarray(routing.active)[0, ~valid].any()
        assert (np.asarray(plan.filled).sum(-1) == load).all()


def test_a_token_keeps_the_experts_of_its_largest_gates():
    logits = normal(0, 10, 4)
    free, *_ = routed(logits, 5)
    bound, _, counts = routed(logits, 5, max_choices=1)
    np.testing.assert_array_equal(bound.expert_of_choice[..., 0], free.expert_of_choice[..., 0])
    np.testing.assert_array_equal(bound.active[..., 0], free.active[..., 0])
    gates = np.where(free.active, free.gate, -1)
    assert (np.diff(gates, axis=-1) <= 0).all()
    lost = 1 - int(np.asarray(bound.active).sum()) / 20  # of 4 experts with 5 slots each
    rates = telemetry.summarize({n: v.sum(0) for n, v in counts.items()})
    assert lost > 0 and math.isclose(rates['utilisation'], 1 - lost)
    assert rates['drop_rate'] == 0


def test_gates_can_sum_to_one():
    routing, *_ = routed(normal(0, 10, 4), 5, renormalize=True)
    total = np.where(routing.active, routing.gate, 0).sum(-1)[0]
    taken = np.asarray(routing.active)[0].any(-1)
    np.testing.assert_allclose(total[taken], 1, rtol=1e-5)


@pytest.mark.parametrize('capacity, most, choices', [(3, 8, Fraction(3, 2)), (40, 0, 4), (6, 2, 2)])
def test_experts_of_a_token(capacity, most, choices):
    router = make_router('expert_choice', {'max_choices': most}, Place(4, 2, 8))
    assert router.choices(capacity) == choices  # C E / T, with C no more than T = 8


def test_evaluation_has_the_slots_of_training():
    own = {'router': 'expert_choice', 'capacity_factor': 1.0}
    layers = [moe(eval_capacity_factor=factor, **own) for factor in (0.5, math.inf)]
    x = normal(0, 8, 8)
    variables = init(layers[0], x)
    train, *evaluated = (
        jit(lambda x, n=n, s=s: n.apply(variables, x, s)[0])(x)
        for n, s in ((layers[0], TRAIN), (layers[0], Step()), (layers[1], Step()))
    )
    for y in evaluated:
        np.testing.assert_array_equal(y, train)
    model = model_of('vit', router='expert_choice', group_size=4)
    unbounded = with_eval_capacity(model, math.inf)
    assert slots_of(moe_at(unbounded, 0), False) == slots_of(moe_at(model, 0), True) == 4


EXPERT_CHOICE = {
    'model.moe.router': 'expert_choice',
    'model.moe.router_args': {},
    'model.moe.losses': {},
}
VIT = {
    'model.name': 'vit',
    'model.args': {'width': 8, 'depth': 1, 'heads': 2, 'patch_size': 4},
    'model.moe.group_size': 4,
}


def config(**changes):
    c = base.get_config()
    c.update_from_flattened_dict(EXPERT_CHOICE | changes)
    return config_lib.check(c)


@pytest.mark.parametrize(
    'key, value, says',
    [
        ('eval.capacity_factors', (1.0, 2.0), ['capacity_factors is set', "router is 'expert"]),
        ('model.moe.eval_capacity_factor', 1.0, ['eval_capacity_factor is set', 'not read']),
        ('model.moe.priority', 'gate', ['priority is set', 'not read']),
        (
            'model.moe.layers',
            {'0': {'eval_capacity_factor': 1.0}},
            ['layers.0.eval_capacity_factor is set to 1.0', 'not read'],
        ),
        ('model.twin', 'same_drops', ["'same_drops'", 'drops nothing', "'same_width'"]),
        ('model.moe.router_args', {'max_choices': -1}, ['max_choices is -1']),
    ],
)
def test_what_its_routes_do_not_follow_from_is_refused(key, value, says):
    config()
    with pytest.raises(UserError) as error:
        config(**{key: value})
    assert all(part in str(error.value) for part in says) and '\n' not in str(error.value)


def test_one_image_by_itself_is_predicted_only_where_its_patches_compete():
    images = config()
    info = input_pipeline.info(images.dataset)
    with pytest.raises(UserError, match='choose among the images of a group.*mode=eval'):
        predict._refuse(images, info)
    predict._refuse(config(**VIT), info)
    predict._refuse(config(**{'model.twin': 'same_width'}), info)
    with pytest.raises(UserError, match='choose among the images'):  # at the head a token is one
        predict._refuse(config(**VIT | {'model.moe.placement': 'head'}), info)


def test_flops_are_those_of_all_slots():
    c = config(**VIT | {'model.moe.num_experts': 4, 'model.moe.capacity_factor': 1.0})
    cost = leverage.measure(c, input_pipeline.info(c.dataset))
    (block,) = (b for b in cost.blocks if b.routed)
    # 4 tokens of width 8 and 4 experts of hidden width 32 with 2 slots each: 8 of 4 tokens
    assert block.flops_experts == block.flops_experts_executed == 8 * 2 * 2 * 8 * 32
    assert block.flops_router == 4 * 2 * 8 * 4
    (capacity,) = cost.capacities.values()
    assert (capacity.choices, capacity.capacity, capacity.eval_capacity) == (2, 2, 2)
    assert not capacity.can_drop


def test_gradients_reach_the_router_through_the_gates_alone():
    """d y / d W is that of sum over taken of S f: routes do not move."""
    logits = normal(0, 6, 3)
    outputs = normal(1, 6, 3)

    def loss(logits):
        routing, plan, _ = route(logits, jnp.ones(6, bool), 2)
        return jnp.sum(
            routing.gate
            * plan.keep
            * jnp.take_along_axis(outputs[None], routing.expert_of_choice, -1)
        )

    routing, *_ = routed(logits, 2)  # 2 slots of each of 3 experts
    taken = np.zeros((6, 3))
    for t, e in np.argwhere(np.asarray(routing.active[0])):
        taken[t, int(routing.expert_of_choice[0, t, e])] = 1

    def plain(logits):
        return jnp.sum(jax.nn.softmax(logits) * taken * outputs)

    np.testing.assert_allclose(jit(jax.grad(loss))(logits), jax.grad(plain)(logits), atol=1e-6)
