"""Rules for the number of experts (arXiv 2603.01697). Axes: G groups, T tokens, E experts."""

import functools
import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from routing_cases import context, jit, normal

from moe_vision.common.errors import UserError
from moe_vision.common.place import Place
from moe_vision.config.method_args import DynamoeArgs
from moe_vision.layers.moe import make_router

T = 40


@functools.cache
def compiled(e, args):
    router = make_router('dynamoe', dict(args) | {'normalize_inputs': False}, Place(e, 2, T))
    return jit(lambda x, ctx: router({'kernel': jnp.eye(e)}, {}, x, ctx)), router


def scores(e, groups=1, seed=0):
    return np.asarray(jax.nn.softmax(1.5 * normal(seed, groups, T, e)))


def taken(p, ctx=None, **args):
    """Who takes whom, [G, T, E] bool, and the routing of tokens with scores p [G, T, E]."""
    args = {'temperature': 1.0, 'noise_scale': 0.0} | args
    run, _ = compiled(p.shape[-1], tuple(sorted(args.items())))
    routing = run(jnp.log(p), ctx or context(groups=len(p), tokens=T))
    ids, active = np.asarray(routing.expert_of_choice), np.asarray(routing.active)
    return (np.eye(p.shape[-1], dtype=bool)[ids] & active[..., None]).any(2), routing


@pytest.mark.parametrize('e, level', [(8, 0.75), (8, 0.5), (5, 0.5), (4, 0.0), (4, 0.99), (1, 0.5)])
def test_the_percentile_rule_of_the_paper_gives_every_token_the_same_number(e, level):
    """The percentile of E different scores of one token has E - 1 - floor((E - 1) l) above it."""
    p = scores(e)
    above = p > np.percentile(p, 100 * level, axis=-1, keepdims=True)
    number = max(e - 1 - math.floor((e - 1) * level), 1)
    if e > 1:
        assert (above.sum(-1) == number).all()
    chosen, routing = taken(p, level=level)
    if e > 1:
        np.testing.assert_array_equal(chosen, above)
    assert routing.gate.shape == (1, T, number)  # so it is top-k, and no bound is needed
    assert make_router('dynamoe', {'level': level}, Place(e, 2, T)).choices(9) == number


def test_a_threshold_and_a_mass_give_tokens_different_numbers():
    p = scores(8).copy()
    p[0, 0] = 1 / 8  # none is above the threshold
    order = np.argsort(-p, -1)
    over, routing = taken(p, rule='threshold', level=0.22)
    want = p > 0.22
    np.put_along_axis(want, order[..., :1], True, -1)  # one at least
    np.testing.assert_array_equal(over, want)
    assert routing.gate.shape[-1] == 4 and set(over.sum(-1).ravel()) >= {1, 2}  # 4 * 0.22 < 1
    mass, routing = taken(p, rule='top_p', level=0.7)
    ranked = np.take_along_axis(p, order, -1).cumsum(-1)
    np.testing.assert_array_equal(mass.sum(-1), (ranked < 0.7).sum(-1) + 1)
    assert routing.gate.shape[-1] == 6 and len(set(mass.sum(-1).ravel())) > 2  # 6 >= 0.7 * 8
    chosen = p * mass
    np.testing.assert_allclose(
        np.take_along_axis(chosen / chosen.sum(-1, keepdims=True), order[..., :6], -1),
        routing.gate,
        atol=1e-6,
    )


def test_a_quantile_of_the_group_fixes_the_mean_number():
    p = scores(8, groups=2)
    valid = np.ones((2, T), bool)
    valid[1, 30:] = False
    chosen, _ = taken(p, context(valid), rule='quantile', level=0.75)
    for g in range(2):
        real = p[g][valid[g]]
        bound = np.sort(real.ravel())[math.floor(0.75 * (real.size - 1))]
        want = (real > bound) | (real == real.max(-1, keepdims=True))
        np.testing.assert_array_equal(chosen[g][valid[g]], want)
        assert (real > bound).sum() / len(real) == pytest.approx(8 * 0.25, abs=0.05)
        assert len(set(want.sum(-1))) > 2
    assert not chosen[1, 30:].any()


def test_noise_is_for_training_and_the_temperature_sharpens():
    p = scores(8)
    args = {'rule': 'quantile', 'noise_scale': 0.5}
    quiet, routing = taken(p, context(groups=1, tokens=T, train=False), **args)
    loud, noisy = taken(p, context(groups=1, tokens=T), **args)
    assert (quiet != loud).any()
    np.testing.assert_array_equal(quiet, taken(p, rule='quantile')[0])
    np.testing.assert_allclose(noisy.probs, p, atol=1e-5)  # without noise
    _, sharp = taken(p, temperature=0.5)
    np.testing.assert_allclose(sharp.probs, p**2 / (p**2).sum(-1, keepdims=True), atol=1e-5)


@pytest.mark.parametrize(
    'rule, level, most, choices',
    [
        ('threshold', 0.25, 3, Fraction(5, 2)),  # 20 slots of 4 experts for 8 tokens
        ('threshold', 0.0, 4, Fraction(5, 2)),
        ('threshold', 0.9, 1, 1),
        ('top_p', 0.75, 3, Fraction(5, 2)),
        ('quantile', 0.5, 4, 2),
        ('quantile', 0.9, 4, 1),
        ('percentile', 0.5, 2, 2),
    ],
)
def test_bounds(rule, level, most, choices):
    router = make_router('dynamoe', {'rule': rule, 'level': level}, Place(4, 2, 8))
    assert (router.max_choices, router.choices(5)) == (most, choices)


def test_wrong_arguments():
    for args, part in (
        ({'level': 1.0}, '0 <= level < 1'),
        ({'noise_scale': -1.0}, 'not be negative'),
        ({'temperature': 0.0}, 'positive'),
    ):
        with pytest.raises(UserError, match=part):
            DynamoeArgs(**args)
