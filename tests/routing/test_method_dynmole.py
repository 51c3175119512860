"""Routing by entropy (arXiv 2504.00661). Axes: G groups, T tokens, E experts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from routing_cases import context, jit, normal, view

from moe_vision.common.errors import UserError
from moe_vision.common.place import Place
from moe_vision.config.loss_args import TsallisArgs
from moe_vision.config.method_args import DynmoleArgs
from moe_vision.layers.moe import make_router
from moe_vision.routing import losses
from moe_vision.routing.temperature import entropy, tsallis, tsallis_share
from moe_vision.routing.types import Routing

P = np.array([[0.6, 0.3, 0.05, 0.05], [0.25] * 4, [0.97, 0.01, 0.01, 0.01]], np.float32)


@functools.cache
def compiled(k, args):
    router = make_router('dynmole', dict(args) | {'normalize_inputs': False}, Place(4, k, 8))

    @jit
    def run(probs, ctx):
        return router({'kernel': jnp.eye(4)}, {}, jnp.log(probs)[None], ctx)

    return run


def routed(probs, k=1, valid=None, **args):
    """The choices of tokens with these probabilities [T, 4]."""
    valid = None if valid is None else np.asarray(valid)[None]
    ctx = context(valid, groups=1, tokens=len(probs))
    return compiled(k, tuple(sorted(args.items())))(jnp.asarray(probs), ctx)


def test_tsallis_entropy_at_its_ends():
    assert float(tsallis(jnp.asarray([1.0, 0.0, 0.0]), 1.1)) == 0
    for q in (0.5, 1.1, 2.0):  # the most is that of equal shares
        most = (1 - 4 ** (1 - q)) / (q - 1)
        np.testing.assert_allclose(tsallis(jnp.full(4, 0.25), q), most, rtol=1e-6)
    p = jax.nn.softmax(normal(0, 50, 4))
    assert (tsallis(p, 1.1) < (1 - 4**-0.1) / 0.1).all()
    np.testing.assert_allclose(tsallis(p, 2.0), 1 - jnp.square(p).sum(-1), rtol=1e-5)
    np.testing.assert_allclose(tsallis(p, 1.0), entropy(p), rtol=1e-6)
    np.testing.assert_allclose(tsallis(p, 1.00001), entropy(p), rtol=1e-4)
    for q in (0.5, 1.0, 1.1):
        assert np.isfinite(jax.grad(tsallis)(jnp.asarray([1.0, 0.0, 0.0]), q)).all()


def test_the_most_is_that_of_equal_shares():
    for n in (1, 2, 8):
        share = tsallis_share(jnp.full(n, 1 / n), 1.1)
        np.testing.assert_allclose(share, float(n > 1), atol=1e-6)
    np.testing.assert_allclose(
        tsallis_share(jnp.asarray(P), 1.0), entropy(P) / np.log(4), rtol=1e-6
    )
    p = np.array([0.6, 0.3, 0.05, 0.05])
    by_hand = (1 - (p**1.1).sum()) / (1 - 4**-0.1)
    np.testing.assert_allclose(tsallis_share(jnp.asarray(P[0]), 1.1), by_hand, rtol=1e-5)


def test_at_a_threshold_of_1_nobody_takes_all():
    for q in (0.5, 1.0, 1.1, 2.0):
        routing = routed(P, threshold=1.0, q=q)
        np.testing.assert_array_equal(routing.active[0].sum(-1), [2, 3, 1])


def test_who_takes_all_and_who_takes_few():
    """With q = 2 the entropies are 1 - sum p^2: 0.545, 0.75 and 0.0588, at most 0.75."""
    routing = routed(P, threshold=0.73, q=2.0)
    want = [[True, True, False, False], [True] * 4, [True, False, False, False]]
    np.testing.assert_array_equal(routing.active[0], want)
    np.testing.assert_allclose(routing.gate[0], np.where(want, P, 0), atol=1e-6)  # not normalised
    two = routed(P, k=2, threshold=0.73, q=2.0)
    np.testing.assert_array_equal(two.active[0].sum(-1), [2, 4, 2])  # two at least
    padded = routed(P, valid=[True, False, True], threshold=0.73, q=2.0)
    np.testing.assert_array_equal(padded.active[0].sum(-1), [2, 0, 1])


def test_the_set_is_the_smallest_that_has_the_mass():
    p = np.asarray(jax.nn.softmax(2 * normal(1, 200, 4)))
    routing = routed(p, threshold=1.0)
    active, ids = np.asarray(routing.active[0]), np.asarray(routing.expert_of_choice[0])
    chosen = np.take_along_axis(p, ids, -1) * active
    assert (chosen.sum(-1) >= 0.75 - 1e-6).all()
    without_least = chosen.sum(-1) - np.where(active, chosen, 9).min(-1)
    assert (without_least < 0.75 + 1e-6).all()
    assert set(active.sum(-1)) == {1, 2, 3}


def test_the_loss_is_the_mean_over_valid_tokens():
    fill = jnp.zeros((1, 3, 1))
    routing = Routing(jnp.asarray(P)[None], fill, fill.astype(int), fill, fill > 0)
    ctx = context(np.array([[True, True, False]]), groups=1, tokens=3)
    value = losses.tsallis(routing, ctx, view(4, TsallisArgs(q=2.0)))
    np.testing.assert_allclose(value, [(0.545 / 0.75 + 1) / 2], rtol=1e-5)
    of_nobody = context(np.zeros((1, 3), bool), groups=1, tokens=3)
    assert losses.tsallis(routing, of_nobody, view(4, TsallisArgs())) == 0


def test_it_counts_as_many_experts_as_find_room():
    router = make_router('dynmole', None, Place(4, 2, 8))
    assert router.choices(5) == 2.5 and router.choices(99) == 4  # 4 * 5 slots for 8 tokens


def test_wrong_arguments():
    for args, part in (({'top_p': 1.5}, '0 < top_p <= 1'), ({'q': 0.0}, 'positive')):
        with pytest.raises(UserError, match=part):
            DynmoleArgs(**args)
