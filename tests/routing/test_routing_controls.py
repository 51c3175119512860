"""Controls of routing: shuffled routes, a random second expert, a supervised router.

Axes: G groups, T tokens, K choices, E experts, L classes, D width.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from routing_cases import D, E, G, context, inputs, jit, make, normal, view

from moe_vision.common.errors import UserError
from moe_vision.routing import losses, telemetry
from moe_vision.routing.plan import index_plan

T = 40
X = normal(0, G, T, D)
VALID = np.random.default_rng(0).random((G, T)) < 0.7


def kernel(router, seed=1):
    return {
        n: normal((seed, i), *shape) for i, (n, (shape, _)) in enumerate(router.params(D).items())
    }


def route(name, args=None, k=2, ctx=None, seed=1):
    router = make((name, tuple((args or {}).items())), k=k)
    ctx = ctx or context(VALID, tokens=T)
    return jax.device_get(
        jit(lambda params, x, ctx: router(params, {}, x, ctx))(kernel(router, seed), X, ctx)
    )


def routes(routing, g, valid):
    """The valid tokens' routes of a group, sorted: a multiset."""
    each = zip(
        routing.expert_of_choice[g][valid].tolist(), routing.gate[g][valid].tolist(), strict=True
    )
    return sorted(map(str, each))


@pytest.mark.parametrize('train', [True, False])
def test_shuffled_routes_are_a_permutation_among_the_valid_tokens_of_a_group(train):
    ctx = context(VALID, tokens=T, train=train)
    learned, shuffled = route('top_k', ctx=ctx), route('shuffled', ctx=ctx)
    for g in range(G):
        assert routes(shuffled, g, VALID[g]) == routes(learned, g, VALID[g])
        moved = (shuffled.gate[g] != learned.gate[g]).any(-1)
        assert not moved[~VALID[g]].any()
        assert moved[VALID[g]].mean() > 0.8  # about one of n stays where it was
    assert not shuffled.active[~VALID].any() and shuffled.active[VALID].all()
    np.testing.assert_array_equal(shuffled.probs, learned.probs)


@pytest.mark.parametrize('train', [True, False])
def test_random_routes_can_have_the_gates_of_a_learned_router(train):
    ctx = context(VALID, tokens=T, train=train)
    even, learned = route('random', ctx=ctx), route('random', {'gate': 'softmax'}, ctx=ctx)
    np.testing.assert_array_equal(even.expert_of_choice, learned.expert_of_choice)
    assert (even.gate == 0.5).all()
    believed = route('top_k', ctx=ctx).probs  # with the same kernel
    np.testing.assert_allclose(learned.probs, believed, rtol=1e-6)
    np.testing.assert_allclose(
        learned.gate, np.take_along_axis(believed, learned.expert_of_choice, -1), rtol=1e-6
    )


def test_shuffling_is_uniform_and_drawn_anew_at_each_step():
    """A valid token gets the route of each of n = 4 with probability 1/n: 2000 draws."""
    router = make(('shuffled', ()), num_experts=4, k=1)
    valid = np.array([[True, False, True, True, True]])
    x = jnp.eye(4)[jnp.array([0, 0, 1, 2, 3])][None]  # the valid ones go to one expert each
    params = {'kernel': jnp.eye(4)}

    def experts(key):
        ctx = dataclasses.replace(context(valid, groups=1, tokens=5), key=key)
        return router(params, {}, x, ctx).expert_of_choice[0, :, 0]

    found = np.asarray(jit(jax.vmap(experts))(jax.random.split(jax.random.key(0), 2000)))
    for token in np.flatnonzero(valid):
        share = np.bincount(found[:, token], minlength=4) / 2000
        np.testing.assert_allclose(share, 0.25, atol=0.04)  # sd 0.0097
    assert (np.sort(found[:, valid[0]]) == np.arange(4)).all()
    assert (found[:, 1] == found[0, 1]).all()  # padding keeps its own


def test_shuffling_hides_the_class_and_keeps_loads_and_losses():
    """Each class has its own expert; after the shuffle experts tell nothing of the class."""
    labels = np.tile(np.arange(400) % E, (G, 1))
    x = 3 * jnp.eye(D)[labels] + 0.01 * normal(3, G, 400, D)
    params = {'kernel': jnp.eye(D)[:, :E]}
    found = {}
    for name in ('top_k', 'shuffled'):
        router, ctx = make((name, ()), k=1), context(tokens=400)

        @jit
        def run(params, x, ctx, router=router):
            routing = router(params, {}, x, ctx)
            counts = telemetry.count(routing, index_plan(routing, E, 120), ctx)
            return (
                telemetry.by_class(routing, jnp.asarray(labels), ctx, E).sum(0),
                counts,
                losses.importance(routing, ctx, view()),
                losses.switch(routing, ctx, view()),
            )

        found[name] = jax.device_get(run(params, x, ctx))
    assert telemetry.mutual_information(found['top_k'][0]) == pytest.approx(np.log(E), abs=0.01)
    assert telemetry.mutual_information(found['shuffled'][0]) < 0.02
    for name in ('chosen', 'kept', 'dropped', 'entropy'):
        np.testing.assert_allclose(found['shuffled'][1][name], found['top_k'][1][name], rtol=1e-6)
    np.testing.assert_allclose(found['shuffled'][2:], found['top_k'][2:], rtol=1e-5)


def test_gates_of_shuffled_routes_teach_the_token_they_came_from():
    """The gradient of sum(w * gate) is that of the gates put back in their place."""
    router, ctx = make(('shuffled', ()), k=1), context(VALID, tokens=T)
    plain = make(('top_k', ()), k=1)
    w = normal(5, G, T, 1)
    learned, shuffled = route('top_k', k=1), route('shuffled', k=1)
    back = np.zeros((G, T, 1), np.float32)
    for g in range(G):
        place = {gate: t for t, gate in enumerate(learned.gate[g, :, 0].tolist())}
        for t, gate in enumerate(shuffled.gate[g, :, 0].tolist()):
            back[g, place[gate]] = w[g, t]

    def gradient(router, w):
        return jit(jax.grad(lambda p: jnp.sum(w * router(p, {}, X, ctx).gate)))(kernel(plain))

    np.testing.assert_allclose(
        gradient(router, w)['kernel'], gradient(plain, back)['kernel'], rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize('train', [True, False])
def test_the_second_expert_may_be_any_other(train):
    ctx = context(tokens=T, train=train)
    plain = route('top_k', k=1, ctx=ctx)
    routing = route('top_k', {'second_choice': 'random_expert'}, ctx=ctx)
    first, second = np.moveaxis(routing.expert_of_choice, -1, 0)
    np.testing.assert_array_equal(first, plain.expert_of_choice[..., 0])
    np.testing.assert_array_equal(routing.gate[..., 0], plain.gate[..., 0])
    assert routing.active.all() and (first != second).all()
    own = np.take_along_axis(routing.probs, second[..., None], -1)[..., 0]
    np.testing.assert_allclose(routing.gate[..., 1], own, rtol=1e-6)  # its own probability
    best = np.argsort(-routing.probs, -1)[..., 1]
    assert 0.1 < (second == best).mean() < 0.6  # one of three, by chance


def test_the_second_expert_is_drawn_uniformly():
    router = make(('top_k', (('second_choice', 'random_expert'),)))
    x = jnp.broadcast_to(X[:1, :1], (1, 3000, D))
    routing = jit(lambda p: router(p, {}, x, context(groups=1, tokens=3000)))(kernel(router))
    first, second = np.moveaxis(np.asarray(routing.expert_of_choice[0]), -1, 0)
    share = np.bincount(second, minlength=E) / 3000
    want = np.where(np.arange(E) == first[0], 0, 1 / 3)
    np.testing.assert_allclose(share, want, atol=0.035)  # sd 0.0086


def test_load_counts_the_choices_that_follow_the_scores():
    """With a random second expert, the probability to be first: that of k = 1."""
    ctx, noise = context(tokens=T), {'noise': 'gaussian', 'noise_scale': 4.0}
    one = route('top_k', noise, k=1, ctx=ctx)
    both = route('top_k', noise | {'second_choice': 'random_expert'}, ctx=ctx)
    two = route('top_k', noise, ctx=ctx)
    load = [np.asarray(losses.load(routing, ctx, view())) for routing in (one, both, two)]
    np.testing.assert_array_equal(load[1], load[0])
    assert (load[2] < load[0]).all()


def test_supervised_superclasses_are_a_partition_of_the_classes():
    ctx = context(tokens=T)
    labels = np.asarray(ctx.labels)
    np.testing.assert_array_equal(route('supervised', ctx=ctx).superclass, labels % E)
    of = (3, 1, 0, 2, 1, 0)
    found = route('supervised', {'superclasses': of}, ctx=ctx).superclass
    np.testing.assert_array_equal(found, np.array(of)[labels])


def test_supervised_loss_is_the_cross_entropy_to_the_superclass():
    ctx = context(VALID, tokens=T)
    routing = route('supervised', ctx=ctx)
    target = np.asarray(ctx.labels) % E
    picked = np.take_along_axis(routing.probs, target[..., None], -1)[..., 0]
    want = [-np.log(picked[g][VALID[g]]).mean() for g in range(G)]
    np.testing.assert_allclose(losses.supervised(routing, ctx, view()), want, rtol=1e-5)
    # Equal logits know nothing: ln E.
    zero = dataclasses.replace(routing, logits=jnp.zeros_like(routing.logits))
    np.testing.assert_allclose(losses.supervised(zero, ctx, view()), np.log(E), rtol=1e-6)


def test_without_the_loss_a_supervised_router_is_a_learned_one():
    plain, taught = route('top_k'), route('supervised')
    for name in ('probs', 'expert_of_choice', 'gate', 'active'):
        np.testing.assert_array_equal(getattr(taught, name), getattr(plain, name))


@pytest.mark.parametrize('train', [True, False])
def test_no_label_reaches_the_routes(train):
    """Labels teach by the loss alone, so the routes of evaluation are those that were learned."""
    ctx = dataclasses.replace(context(tokens=T), train=train)
    routes = [
        route('supervised', ctx=dataclasses.replace(ctx, labels=labels))
        for labels in (ctx.labels, ctx.labels[:, ::-1], *([] if train else [None]))
    ]
    for other in routes[1:]:
        for name in ('probs', 'expert_of_choice', 'gate', 'active'):
            np.testing.assert_array_equal(getattr(other, name), getattr(routes[0], name))


def test_supervised_loss_teaches_the_superclass():
    router, ctx = make(('supervised', ()), k=1), context(tokens=T)
    x = normal(9, 6, D)[np.asarray(ctx.labels)] + 0.1 * X

    def loss(params):
        routing = router(params, {}, x, ctx)
        return losses.supervised(routing, ctx, view()).sum(), routing

    def step(params, _):
        grads, routing = jax.grad(loss, has_aux=True)(params)
        right = (routing.expert_of_choice[..., 0] == routing.superclass).mean()
        return jax.tree.map(lambda p, g: p - 2.0 * g, params, grads), right

    _, right = jit(lambda p: jax.lax.scan(step, p, None, length=150))(kernel(router))
    assert right[0] < 0.7 and right[-1] == 1


def test_supervision_wants_labels_while_training():
    blind = dataclasses.replace(context(tokens=T), labels=None)
    with pytest.raises(UserError, match='labels'):
        route('supervised', ctx=blind)
    with pytest.raises(UserError, match="router 'supervised'"):
        losses.supervised(route('top_k'), context(tokens=T), view())
    evaluation = dataclasses.replace(blind, train=False)
    routing = route('supervised', ctx=evaluation)
    assert (np.asarray(losses.supervised(routing, evaluation, view())) == 0).all()


@pytest.mark.parametrize('gate', ['even', 'softmax'])
def test_the_oracle_goes_by_the_domain_alone(gate):
    """Choice j of domain d is expert (d + j) mod E; E = 4, K = 2."""
    given = inputs(('oracle', (('gate', gate),)))
    domain = jnp.array([[0, 1, 2, 3, 4, 5, 3, 0]] * G)
    ctx = dataclasses.replace(given['context'], extras={'domain': domain})
    router = make(('oracle', (('gate', gate),)))
    routing = router(given['params'], {}, given['features'], ctx)
    expected = [[0, 1], [1, 2], [2, 3], [3, 0], [0, 1], [1, 2], [3, 0], [0, 1]]
    assert routing.expert_of_choice.tolist() == [expected] * G
    if gate == 'even':
        assert (routing.gate == 0.5).all()
    else:
        np.testing.assert_allclose(
            routing.gate,
            np.take_along_axis(np.asarray(routing.probs), np.array([expected] * G), -1),
            rtol=1e-6,
        )


def test_a_router_without_what_it_needs_is_an_error_of_one_line():
    given = inputs(('oracle', ()))
    ctx = dataclasses.replace(given['context'], extras={'map': given['features']})
    with pytest.raises(
        UserError, match="Oracle needs 'domain', but .* give labels, map; put it into"
    ):
        make(('oracle', ()))(given['params'], {}, given['features'], ctx)
