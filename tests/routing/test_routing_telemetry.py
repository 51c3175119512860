"""Telemetry: what is counted, and the identities of what the counts say."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from routing_cases import E, T, context, jit, make, normal

from moe_vision.layers import Step
from moe_vision.models.branch import per_patch
from moe_vision.routing import telemetry
from moe_vision.routing.plan import index_plan
from moe_vision.routing.telemetry import mutual_information, summarize


def sums(chosen, *, tokens=100.0, probs=None, **more):
    """Sums as `count` gives them, for counts of choices before capacity."""
    chosen = np.asarray(chosen, float)
    zero = dict.fromkeys(('dropped', 'orphans', 'entropy', 'temperature'), 0.0)
    return (
        zero
        | {
            'tokens': tokens,
            'chosen': chosen,
            'kept': chosen,
            'choices': chosen.sum(),
            'slots': 2 * chosen.sum(),
            'probs': tokens * chosen / chosen.sum() if probs is None else probs,
        }
        | more
    )


@pytest.mark.parametrize('experts', [1, 2, 8])
def test_uniform_and_collapsed_load(experts):
    uniform = summarize(sums(np.full(experts, 12)))
    assert uniform['effective_experts'] == pytest.approx(experts)
    assert uniform['max_over_mean'] == pytest.approx(1)
    assert uniform['dead_experts'] == 0 and uniform['utilisation'] == 0.5
    collapsed = summarize(sums(np.eye(experts)[0]))
    assert collapsed['effective_experts'] == pytest.approx(1)
    assert collapsed['max_over_mean'] == pytest.approx(experts)
    assert collapsed['dead_experts'] == experts - 1


def test_effective_experts_and_squared_variation_are_one_number():
    q = np.random.default_rng(0).dirichlet(np.ones(6))
    rates = summarize(sums(1000 * q))
    assert rates['effective_experts'] == pytest.approx(6 / (1 + q.var() / q.mean() ** 2))
    np.testing.assert_allclose(rates['load'], q)


def test_dead_means_below_a_hundredth_of_a_share():
    # Shares of 4 experts; a hundredth of an equal one is 1/400 = 0.0025.
    assert summarize(sums([499, 499, 0.9, 1.1]))['dead_experts'] == 2
    assert summarize(sums([500, 494, 2.4, 3.6]))['dead_experts'] == 1


def test_router_information():
    # Every token told the same: H(mean p) = mean H(p).
    p = np.array([0.7, 0.2, 0.1])
    same = sums([7, 2, 1], probs=100 * p, entropy=-100 * (p * np.log(p)).sum())
    assert summarize(same)['router_information'] == pytest.approx(0, abs=1e-12)
    # Each token sure, evenly split: ln 3 - 0.
    sure = summarize(sums([5, 5, 5]))
    assert sure['router_information'] == pytest.approx(math.log(3))
    assert sure['gate_entropy'] == 0


def test_mutual_information_by_hand():
    # Experts are classes: ln 2, less (2 - 1)(2 - 1) / (2 * 200) = 0.0025.
    assert mutual_information(np.diag([100, 100])) == pytest.approx(math.log(2) - 0.0025)
    assert mutual_information(np.full((3, 4), 10)) == 0  # independent
    assert mutual_information(np.array([[50, 70, 80], [0, 0, 0]])) == 0  # one expert
    assert math.isnan(mutual_information(np.zeros((2, 2))))


@pytest.mark.parametrize('experts, classes', [(2, 10), (8, 3), (5, 5)])
def test_mutual_information_is_bounded(experts, classes):
    rng = np.random.default_rng(experts)
    for _ in range(20):
        counts = rng.poisson(rng.gamma(0.2, 30, (experts, classes)))
        assert 0 <= mutual_information(counts) <= math.log(min(experts, classes)) + 1e-9


def test_mutual_information_of_routes_that_ignore_the_label():
    rng = np.random.default_rng(0)
    routes, labels = rng.integers(0, 8, (200, 500)), rng.integers(0, 10, (200, 500))
    counts = np.stack(
        [
            np.histogram2d(a, b, (8, 10), ((0, 8), (0, 10)))[0]
            for a, b in zip(routes, labels, strict=True)
        ]
    )
    p = counts / 500
    plain = [(q * np.log(np.maximum(q, 1e-30) / np.outer(q.sum(1), q.sum(0)))).sum() for q in p]
    assert np.mean(plain) == pytest.approx(7 * 9 / 1000, rel=0.1)  # the bias: 0.063
    # 2 N I is chi-squared with 63 degrees of freedom: I has deviation sqrt(126) / 1000 = 0.011, of
    # which the clipping at zero leaves 0.4 in the mean: 0.0045, were the correction exact.
    assert np.mean([mutual_information(c) for c in counts]) < 0.009


def test_sums_add_up_over_groups():
    """Rates of a whole are those of the sums of its parts, however it is cut."""
    router = make(('top_k', ()), E, 2)
    features, kernel = normal(0, 6, T, 5), normal(1, 5, E)
    labels = jnp.asarray(np.random.default_rng(0).integers(0, 3, (6, T)))

    @jit
    def count(features, labels):
        ctx = context(groups=features.shape[0], tokens=T)
        routing = router({'kernel': kernel}, {}, features, ctx)
        found = telemetry.count(routing, index_plan(routing, E, 3), ctx)
        found['by_class'] = telemetry.by_class(routing, labels, ctx, 3)
        return jax.tree.map(lambda v: v.sum(0), found)

    whole = count(features, labels)
    parts = [count(features[:2], labels[:2]), count(features[2:], labels[2:])]
    added = jax.tree.map(lambda *v: sum(v), *parts)
    chex.assert_trees_all_close(summarize(whole), summarize(added), rtol=1e-5)
    np.testing.assert_array_equal(whole['by_class'].sum(1), whole['chosen'])
    np.testing.assert_array_equal(
        whole['by_class'].sum(0), 2 * np.bincount(np.asarray(labels).ravel(), minlength=3)
    )


@pytest.mark.parametrize('tokens', [1, 2, 4, 6, 8, 24])
def test_choices_of_images_are_counted_by_class_however_groups_cut_them(tokens):
    """Six images of 4 patches, of which the third is padding."""
    drawn = np.random.default_rng(tokens).integers(0, 500, 6)
    step = per_patch(Step(valid=jnp.arange(6) != 2, labels=jnp.asarray(drawn)), 4)
    labels, valid = (np.asarray(x).reshape(-1, tokens) for x in (step.labels, step.valid))
    router, ctx = make(('top_k', ()), E, 2), context(valid, groups=len(labels), tokens=tokens)
    features, params = normal(0, *labels.shape, 5), {'kernel': normal(1, 5, E)}

    def count(features, patches):
        routing = router(params, {}, features, ctx)
        return telemetry.by_class(routing, jnp.asarray(labels), ctx, 500, patches), routing

    found, routing = jax.jit(count, static_argnums=1)(features, step.patches)
    want = np.zeros((len(labels), E, 500))
    for group, token in zip(*np.nonzero(valid), strict=True):
        for expert in np.asarray(routing.expert_of_choice)[group, token]:
            want[group, expert, labels[group, token]] += 1
    np.testing.assert_array_equal(found, want)

    def largest(patches):
        program = jax.make_jaxpr(lambda x: count(x, patches)[0])(features)
        return max(v.aval.size for line in program.eqns for v in line.outvars)

    if tokens == 24:  # 6 images in place of 24 tokens
        assert largest(1) == 24 * 500 and largest(step.patches) == 6 * 500
