"""Losses that teach a router what the parts of a block do (routing_methods 3.7 and 3.8).

Axes: G groups, T tokens, E experts, D width, F hidden units of an expert.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from layer_cases import TRAIN, init, moe
from leverage_cases import make
from routing_cases import context, jit, normal

from moe_vision.common.errors import UserError
from moe_vision.common.place import Place
from moe_vision.config import registry
from moe_vision.config.loss_args import UnitOverlapArgs
from moe_vision.layers.moe import make_expert
from moe_vision.routing import block_losses
from moe_vision.routing.types import Routing, View

NAMES = ('prior_approximate', 'unit_overlap')


def routing(logits):
    logits = jnp.asarray(logits, jnp.float32)
    ids = jnp.zeros((*logits.shape[:2], 1), jnp.int32)
    one = jnp.ones(ids.shape)
    return Routing(jax.nn.softmax(logits), logits, ids, one, one > 0)


def view(bank, x, k, args=None):
    d, f = bank['in_kernel'].shape[1:]
    expert = make_expert('mlp', {'activation': 'relu'}, d, f)
    place = Place(len(bank['in_kernel']), k, x.shape[1])
    return View(place, args, tokens=x, bank=bank, expert=expert)


def mlps(slopes):
    """A bank of experts f_e(x) = slope_e x on positive numbers."""
    slopes = jnp.asarray(slopes, jnp.float32)[:, None, None]
    zeros = jnp.zeros((len(slopes), 1))
    return {
        'in_kernel': jnp.ones_like(slopes),
        'in_bias': zeros,
        'out_kernel': slopes,
        'out_bias': zeros,
    }


ONE = jnp.ones((1, 1, 1))  # a token x = 1


def raw(name, logits, bank, x, k, args, valid):
    ctx = context(valid, groups=len(x), tokens=x.shape[1])
    return getattr(block_losses, name)(routing(logits), ctx, view(bank, x, k, args))


loss = functools.partial(jit, static_argnums=(0, 4, 5))(raw)


def value(name, logits, bank, x, k, args=None, valid=None):
    valid = jnp.ones(x.shape[:2], bool) if valid is None else valid
    return loss(name, logits, bank, x, k, args, valid)


def test_the_prior_names_the_parts_that_come_nearest_to_their_share():
    """f = 1, 2 and 6 add up to 9. Nearest to 9 / 3 is 2; nearest to 2 * 9 / 3 are 6 and 2."""
    bank, even = mlps([1, 2, 6]), [[[0.0, 0.0, 0.0]]]
    for k, label in ((1, (0, 1, 0)), (2, (0, 1, 1)), (3, (1, 1, 1))):
        total = sum(math.exp(y) for y in label)
        # KL(1/3 || q) = sum of (log 1/3 - y + log total) / 3
        want = math.log(1 / 3) - sum(label) / 3 + math.log(total)
        np.testing.assert_allclose(
            value('prior_approximate', even, bank, ONE, k), [want], rtol=1e-5, atol=1e-7
        )
        label = np.array([[label]], np.float32)
        assert abs(float(value('prior_approximate', label, bank, ONE, k)[0])) < 1e-6
        if k < 3:
            assert float(value('prior_approximate', np.roll(label, 1), bank, ONE, k)[0]) > 0.1


def test_the_overlap_counts_where_the_most_active_units_are():
    """Units 4, 1 | 3, 2: of the first all are in expert 0, of the first two a half: 3/4 and 1/4."""
    bank = {
        'in_kernel': jnp.asarray([[[4.0, 1.0]], [[3.0, 2.0]]]),
        'in_bias': jnp.zeros((2, 2)),
        'out_kernel': jnp.zeros((2, 2, 1)),
        'out_bias': jnp.zeros((2, 1)),
    }
    args = UnitOverlapArgs(shares=(0.25, 0.5))
    p = 1 / (1 + math.exp(-5))  # of scores 2.5 and -2.5
    label = 0.75 * 0.75 + 0.25 * p
    for logit in (0.0, 1.5):
        right, wrong = (-math.log(1 / (1 + math.exp(s * logit))) for s in (-1, 1))
        want = label * right + (1 - label) * wrong
        found = value('unit_overlap', [[[logit, 0.0]]], bank, ONE, 1, args)
        np.testing.assert_allclose(found, [want], rtol=1e-5)
    silent = bank | {'in_kernel': jnp.zeros((2, 1, 2))}  # each expert has half of the units
    label, p = 0.75 * 0.75 + 0.25 * 0.5, 1 / (1 + math.exp(-1.5))
    found = value('unit_overlap', [[[1.5, 0.0]]], silent, ONE, 1, args)
    want = -label * math.log(p) - (1 - label) * math.log(1 - p)
    np.testing.assert_allclose(found, [want], rtol=1e-5)


def drawn(groups=2, tokens=6, experts=4, seed=0):
    made = make_expert('mlp', {'activation': 'relu'}, 5, 3)
    shapes = enumerate(made.shapes().items())
    bank = {n: normal((seed, i), experts, *shape) for i, (n, (shape, _)) in shapes}
    return bank, normal((seed, 9), groups, tokens, 5), normal((seed, 8), groups, tokens, experts)


@pytest.mark.parametrize('name', NAMES)
def test_padding_counts_nowhere_and_only_the_router_learns(name):
    bank, x, logits = drawn()
    args = registry.LOSSES[name].args()
    valid = np.array([[1, 1, 1, 0, 1, 0], [0, 0, 0, 0, 0, 0]], bool)
    dirty = jnp.where(valid[..., None], x, jnp.nan)
    found = value(name, logits, bank, dirty, 2, args, valid)
    alone = value(name, logits[:1, valid[0]], bank, x[:1, valid[0]], 2, args)
    np.testing.assert_allclose(found, [alone[0], 0.0], rtol=1e-5)

    def total(logits, bank, x):
        return raw(name, logits, bank, x, 2, args, jnp.ones((2, 6), bool)).sum()

    gradient = jit(jax.grad(total, (0, 1, 2)))(logits, bank, x)
    assert np.abs(gradient[0]).max() > 0.01
    assert not any(np.any(g) for g in jax.tree.leaves(gradient[1:]))


@pytest.mark.parametrize('name', NAMES)
def test_gradients_do_not_see_what_padding_holds(name):
    bank, x, logits = drawn()
    args = registry.LOSSES[name].args()
    valid = np.array([[1, 1, 1, 0, 1, 0], [1, 0, 1, 1, 1, 1]], bool)
    gradient = jit(jax.grad(lambda at, x: raw(name, at, bank, x, 2, args, valid).sum()))
    dirty = jnp.where(valid[..., None], x, jnp.nan)
    np.testing.assert_array_equal(gradient(logits, dirty), gradient(logits, x))


def test_the_overlap_asks_nothing_of_experts_that_may_not_be_chosen_yet():
    """With expert 0 alone, the router is always right."""
    bank, x, logits = drawn()
    locked = jnp.where(jnp.arange(4) < 1, logits, -1e9)
    routed = dataclasses.replace(
        routing(locked), allowed=jnp.broadcast_to(jnp.arange(4) < 1, (2, 4))
    )
    own = view(bank, x, 2, UnitOverlapArgs())
    found = block_losses.unit_overlap(routed, context(groups=2, tokens=6), own)
    np.testing.assert_allclose(found, [0, 0], atol=1e-6)


def test_experts_without_units_say_so():
    expert = make_expert('conv', {'norm_groups': 4}, 8, 16)
    with pytest.raises(UserError, match='has no units; define it'):
        expert.units({}, jnp.zeros((2, 4, 4, 8)))


@pytest.mark.parametrize('name', NAMES)
def test_a_layer_shows_its_experts_to_the_loss(name):
    layer = moe(4, 2, 4, losses={name: 1.0}, expert='mlp')
    x = normal(3, 8, 8)
    variables = init(layer, x)
    _, info = jit(lambda v: layer.apply(v, x, TRAIN))(variables)
    params = variables['params']
    features = x.reshape(2, 4, 8)
    scaled = (features - features.mean(-1, keepdims=True)) / features.std(-1, keepdims=True)
    logits = scaled @ params['router']['kernel']
    expert = make_expert('mlp', None, 8, 16)
    args = registry.LOSSES[name].args()
    own = View(layer.place, args, tokens=features, bank=params['experts'], expert=expert)
    ctx = context(groups=2, tokens=4)
    each = jit(lambda: getattr(block_losses, name)(routing(logits), ctx, own))()
    np.testing.assert_allclose(info['losses'][name], each.mean(), rtol=1e-3)


@pytest.mark.parametrize('name', NAMES)
def test_experts_on_several_devices_are_one_line(name):
    bank, x, logits = drawn()
    own = dataclasses.replace(view(bank, x, 2), bank=None)
    with pytest.raises(UserError, match='set mesh.expert to 1, or the loss to 0') as e:
        getattr(block_losses, name)(routing(logits), context(groups=2, tokens=6), own)
    assert '\n' not in str(e.value)


@pytest.mark.parametrize(
    'changes, hint',
    [
        (
            {'model__moe__losses': {'prior_approximate': 1.0}, 'mesh__expert': 2},
            'runs all experts on every token, but mesh.expert is 2',
        ),
        (
            {'model__moe__losses': {'unit_overlap': 1.0}},
            "expert 'conv' has no units; take an expert that shows its hidden units",
        ),
        (
            {
                'model__moe__losses': {'unit_overlap': 1.0},
                'model__moe__expert': 'depthwise_conv',
                'model__moe__kinds': ({'count': 2}, {'count': 2, 'divide': 2}),
            },
            'compares the hidden units of all experts, but those of model.moe.kinds differ',
        ),
    ],
)
def test_a_config_that_cannot_have_them_is_one_line(changes, hint):
    router = {'model__moe__router_args': {}}
    with pytest.raises(UserError, match=hint) as e:
        make(**router, **changes)
    assert '\n' not in str(e.value)


def test_an_expert_of_ones_own_may_show_its_hidden_units():
    config = make(
        model__moe__placement='head',
        model__moe__expert='own_methods:Doubled',
        model__moe__router_args={},
        model__moe__losses={'unit_overlap': 1.0},
    )
    assert config.model.moe.losses == {'unit_overlap': 1.0}


@pytest.mark.parametrize(
    'args', [{'shares': ()}, {'shares': (0.5, 1.5)}, {'hard': 2.0}, {'scale': math.inf}]
)
def test_arguments_that_are_no_shares_are_one_line(args):
    with pytest.raises(UserError, match=f'{next(iter(args))} is'):
        UnitOverlapArgs(**args)
