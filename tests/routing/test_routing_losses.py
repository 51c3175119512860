"""Auxiliary losses against closed forms. Axes: G groups, T tokens, E experts, N ids."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from routing_cases import context, jit, make, normal, view

from moe_vision.common.errors import UserError
from moe_vision.common.place import Place
from moe_vision.config import registry
from moe_vision.routing import block_losses, layer_losses, losses
from moe_vision.routing.types import Routing, View

E = 4


def routing(probs, ids, *, logits=None, active=None, noise_std=None, noisy=None, superclass=None):
    """One group. probs [T, N], ids [T, K]."""
    probs, ids = (a if isinstance(a, jax.Array) else np.asarray(a) for a in (probs, ids))
    logits = np.log(np.maximum(probs, 1e-9)) if logits is None else logits
    active = np.ones(ids.shape, bool) if active is None else np.asarray(active)
    noisy = logits if noisy is None else noisy
    return Routing(
        probs=probs[None],
        logits=logits[None],
        expert_of_choice=ids[None],
        gate=np.ones((1, *ids.shape)),
        active=active[None],
        noise_std=noise_std,
        noisy_logits=noisy[None],
        superclass=np.asarray(ids)[None, :, 0] if superclass is None else superclass[None],
        # for two selectors, and for large modules
        aux={'selector_entropy': probs[None, :, :2], 'large': probs[None, :, 0]},
    )


def value(name, r, valid=None, num_experts=E):
    valid = None if valid is None else np.asarray(valid)[None]
    ctx = context(valid, groups=1, tokens=r.probs.shape[1])
    return float(compiled(name)(r, ctx, num_experts)[0])


@functools.cache
def compiled(name):
    fn, args = getattr(losses, name), registry.LOSSES[name].args()

    def run(r, ctx, num_experts):
        return fn(r, ctx, view(num_experts, args, state={'coefficient': jnp.float32(1.0)}))

    return jit(run, static_argnums=2)


UNIFORM, ONE_HOT = np.full((8, E), 0.25), np.eye(E)[np.zeros(8, int)]
BALANCED, ALL_ZERO = np.arange(8)[:, None] % E, np.zeros((8, 1), int)


def test_the_table_holds_these_modules():
    for name, entry in registry.LOSSES.items():
        module = layer_losses if entry.of_layer else losses
        module = block_losses if 'bank' in entry.needs else module
        assert registry.load(entry.path) is getattr(module, name)


def test_importance_is_squared_variation():
    assert value('importance', routing(UNIFORM, BALANCED)) == 0
    # All mass on one of E: mean 8/4 = 2, variance (36 + 3 * 4) / 4 = 12, CV^2 = 12 / 4 = E - 1.
    assert value('importance', routing(ONE_HOT, ALL_ZERO)) == pytest.approx(E - 1)
    # Sums (3, 1) of two experts: mean 2, variance 1, CV^2 = 1/4.
    p = [[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.6, 0.4]]
    assert value('importance', routing(p, [[0]] * 4), num_experts=2) == pytest.approx(0.25)


def test_switch_is_one_at_balance_and_E_at_collapse():
    assert value('switch', routing(UNIFORM, BALANCED)) == pytest.approx(1)
    assert value('switch', routing(ONE_HOT, ALL_ZERO)) == pytest.approx(E)
    # f = (3/4, 1/4), P = (3/4, 1/4): 2 (9/16 + 1/16) = 1.25
    p = [[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.6, 0.4]]
    r = routing(p, [[0], [0], [0], [1]])
    assert value('switch', r, num_experts=2) == pytest.approx(1.25)
    # With two choices f is still a share: it sums to one.
    both = routing(UNIFORM, np.stack([BALANCED[:, 0], (BALANCED[:, 0] + 1) % E], -1))
    assert value('switch', both) == pytest.approx(1)
    # A choice that was not made does not count: f = (2/2, 0), 2 * 3/4 = 1.5
    r = routing(p, [[0], [0], [1], [1]], active=[[True], [True], [False], [False]])
    assert value('switch', r, num_experts=2) == pytest.approx(1.5)


@pytest.mark.parametrize(('name', 'want'), [('switch', 1.0), ('switch_top_1', 1.5)])
def test_switch_counts_all_choices_and_its_top_1_form_the_first(name, want):
    """All first choices are 0 and all second ones 1; P = (3/4, 1/4).

    All: f = (1/2, 1/2), 2 (3/8 + 1/8) = 1. First: f = (1, 0), 2 * 3/4 = 1.5.
    """
    p = [[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.6, 0.4]]
    assert value(name, routing(p, [[0, 1]] * 4), num_experts=2) == pytest.approx(want)
    one = routing(p, [[0], [0], [0], [1]])  # at k = 1 they are the same: 2 (9/16 + 1/16)
    assert value(name, one, num_experts=2) == pytest.approx(1.25)


def test_the_complementary_loss_counts_what_the_scores_alone_would_choose():
    """The most probable are 0, 0, 0, 1, and P = (0.7, 0.3): 2 (0.75 * 0.7 + 0.25 * 0.3) = 1.2."""
    p = [[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.4, 0.6]]
    one_of_two = View(Place(2, 1, 4), None)

    def loss(chosen, valid=None):
        ctx = context(valid, groups=1, tokens=4)
        return losses.complementary(routing(p, chosen), ctx, one_of_two)[0]

    for chosen in ([[0], [0], [0], [1]], [[1], [1], [0], [0]]):  # without a bias, and with one
        assert loss(chosen) == pytest.approx(1.2)
    assert value('switch', routing(p, chosen), num_experts=2) == pytest.approx(1.0)
    half = loss(chosen, np.array([[True, False, False, True]]))
    assert half == pytest.approx(1.0)  # f = (1/2, 1/2)


def test_switch_teaches_through_probabilities_alone():
    logits = jnp.asarray([[2.0, 0.0], [1.5, 0.0], [1.0, 0.0]])

    def loss(logits):
        r = routing(jax.nn.softmax(logits), [[0]] * 3, logits=logits)
        return losses.switch(r, context(groups=1, tokens=3), view(2))[0]

    gradient = jit(jax.grad(loss))(logits)
    assert (np.asarray(gradient)[:, 0] > 0).all()  # descent takes mass from the crowded expert


def test_z_is_the_mean_squared_logsumexp():
    logits = np.array([[0.0, 0.0, 0.0, 0.0], [3.0, -1.0, 2.0, 0.5]], np.float32)
    lse = [math.log(4), math.log(sum(map(math.exp, logits[1])))]
    r = routing(UNIFORM[:2], ALL_ZERO[:2], logits=logits)
    assert value('z', r) == pytest.approx((lse[0] ** 2 + lse[1] ** 2) / 2)
    shifted = routing(UNIFORM[:2], ALL_ZERO[:2], logits=logits + 1)  # softmax would not see this
    assert value('z', shifted) == pytest.approx(((lse[0] + 1) ** 2 + (lse[1] + 1) ** 2) / 2)
    # Only the first of two tokens is real.
    assert value('z', r, valid=[True, False]) == pytest.approx(lse[0] ** 2)


def test_z_gradient_shrinks_logits():
    logits = jnp.asarray(np.random.default_rng(0).normal(3, 1, (5, E)), jnp.float32)

    def loss(logits):
        r = routing(jax.nn.softmax(logits), np.zeros((5, 1), int), logits=logits)
        return losses.z(r, context(groups=1, tokens=5), view())[0]

    before, gradient = (run := jit(jax.value_and_grad(loss)))(logits)
    assert run(logits - 0.1 * gradient)[0] < before
    assert (np.asarray(gradient) > 0).all()


def smooth_load(logits, noisy, std, k):
    """Shazeer's probability that an id is among the k largest, in plain Python, [T, N]."""
    p = np.zeros(logits.shape)
    for t, i in np.ndindex(*logits.shape):
        others = np.sort(np.delete(noisy[t], i))[::-1]  # the k-th largest without i
        p[t, i] = 0.5 * (1 + math.erf((logits[t, i] - others[k - 1]) / std / math.sqrt(2)))
    return p


@pytest.mark.parametrize('k', [1, 2, 3])
def test_load_is_squared_variation_of_smooth_counts(k):
    rng = np.random.default_rng(k)
    logits = rng.normal(size=(60, E)).astype(np.float32)
    noisy = logits + 0.5 * rng.normal(size=logits.shape).astype(np.float32)
    p = smooth_load(logits, noisy, 0.5, k)
    # Near k for each token: the noise of the others is taken as drawn, so not exactly.
    assert p.sum(-1).mean() == pytest.approx(k, abs=0.15)
    count = p.sum(0)
    r = routing(
        np.full((60, E), 0.25),
        np.argsort(-noisy, -1)[:, :k],
        logits=logits,
        noise_std=0.5,
        noisy=noisy,
    )
    assert value('load', r) == pytest.approx(count.var() / count.mean() ** 2, rel=1e-3)


V_MOE = np.asarray(
    [[1.0, 0.0, -1.0]], np.float32
)  # the logits of one token, with noise and without


@pytest.mark.parametrize(
    ('name', 'k', 'thresholds'),
    [
        ('load', 1, (0, 1, 1)),  # Shazeer: the k-th largest of the others
        ('load', 2, (-1, -1, 0)),
        ('load_v_moe', 1, (1, 1, 1)),  # V-MoE: the k-th largest of all
        ('load_v_moe', 2, (0, 0, 0)),
        ('load_v_moe', 3, (-1, -1, -1)),
    ],
)
def test_the_thresholds_of_the_two_load_losses(name, k, thresholds):
    r = routing(UNIFORM[:1, :3], np.arange(k)[None], logits=V_MOE, noise_std=0.5)
    p = [
        0.5 * (1 + math.erf((logit - threshold) / 0.5 / math.sqrt(2)))
        for logit, threshold in zip(V_MOE[0], thresholds, strict=True)
    ]
    want = np.var(p) / np.mean(p) ** 2
    assert value(name, r, num_experts=3) == pytest.approx(want, rel=1e-5)


def test_v_moe_counts_a_sure_choice_as_half_a_choice():
    crowd = np.zeros((8, E), np.float32) + [9, 0, 0, 0]
    r = routing(ONE_HOT, ALL_ZERO, logits=crowd, noise_std=0.1)
    assert value('load_v_moe', r) == pytest.approx(E - 1)  # (4, 0, 0, 0) varies as (8, 0, 0, 0)
    with pytest.raises(UserError, match="'load_v_moe' needs a router with noise"):
        value('load_v_moe', routing(UNIFORM, BALANCED))


def test_load_at_its_ends():
    same = np.zeros((8, E), np.float32)
    drawn = np.random.default_rng(0).normal(size=(4000, E)).astype(np.float32)
    r = routing(
        np.full((4000, E), 0.25),
        np.argsort(-drawn, -1)[:, :2],
        logits=np.zeros_like(drawn),
        noise_std=1.0,
        noisy=drawn,
    )
    assert value('load', r) < 0.002  # zero router: every expert as likely
    crowd = same + [9, 0, 0, 0]
    # One choice, certainly expert 0: counts (8, 0, 0, 0), CV^2 = E - 1.
    r = routing(ONE_HOT, ALL_ZERO, logits=crowd, noise_std=0.1)
    assert value('load', r) == pytest.approx(E - 1)
    # As many choices as experts: nothing to balance.
    assert value('load', routing(UNIFORM, np.tile(np.arange(E), (8, 1)), noise_std=1.0)) == 0
    with pytest.raises(UserError, match='noise'):
        value('load', routing(UNIFORM, BALANCED))


@pytest.mark.parametrize('std', [0.0, 1e-8])
def test_load_without_room_for_noise_is_finite(std):
    def loss(logits):
        r = routing(UNIFORM, BALANCED, logits=logits, noise_std=jnp.float32(std))
        return losses.load(r, context(groups=1, tokens=8), view())[0]

    run = jit(jax.value_and_grad(loss))
    for logits in (np.zeros((8, E), np.float32), normal(0, 8, E)):
        assert all(np.isfinite(v).all() for v in run(logits))


def test_null_experts_need_not_be_balanced_among_themselves():
    # Ids 0, 1 true, 2..4 null. Null mass (6, 0, 0) counts as (2, 2, 2), beside true (2, 2).
    p = np.zeros((10, 5))
    p[:2, 0] = p[2:4, 1] = p[4:, 2] = 1
    ids = p.argmax(-1)[:, None]
    assert value('importance', routing(p, ids), num_experts=2) == pytest.approx(0)
    # f = P = (.2, .2, .2, .2, .2): 5 * 5 * .04 = 1
    assert value('switch', routing(p, ids), num_experts=2) == pytest.approx(1)
    # As five true experts: (2, 2, 6, 0, 0): mean 2, variance (0 + 0 + 16 + 4 + 4) / 5 = 4.8
    assert value('importance', routing(p, ids), num_experts=5) == pytest.approx(4.8 / 4)


OF_GROUPS = sorted(n for n, e in registry.LOSSES.items() if not e.of_layer)


@pytest.mark.parametrize('name', [n for n in OF_GROUPS if 'bank' not in registry.LOSSES[n].needs])
def test_padding_counts_nowhere(name):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(6, E)).astype(np.float32)
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    ids = p.argmax(-1)[:, None]
    valid = np.array([1, 1, 1, 0, 1, 0], bool)
    padded = routing(p, ids, logits=logits, active=valid[:, None], noise_std=0.5)
    real = routing(p[valid], ids[valid], logits=logits[valid], noise_std=0.5)
    assert value(name, padded, valid) == pytest.approx(value(name, real), rel=1e-6)
    nobody = routing(p, ids, logits=logits, active=np.zeros((6, 1), bool), noise_std=0.5)
    assert value(name, nobody, np.zeros(6, bool)) == 0


def test_balance_losses_balance():
    """Descent on each loss alone evens out what a skewed router does."""
    x, ctx = normal(0, 1, 200, 6) + 1, context(groups=1, tokens=200)
    for name in ('importance', 'load', 'load_v_moe', 'switch', 'switch_top_1'):
        router = make(('top_k', (('noise', 'gaussian'),)), E, 1)

        def loss(kernel, router=router, name=name):
            r = router({'kernel': kernel}, {}, x, ctx)
            return getattr(losses, name)(r, ctx, view())[0]

        def step(kernel, _, loss=loss):
            v, g = jax.value_and_grad(loss)(kernel)
            return kernel - 0.3 * g, v

        skewed = normal(1, 6, E) + 2 * jnp.asarray([1.0, 0, 0, 0]) * jnp.arange(6.0)[:, None]
        values = jit(lambda k, step=step: jax.lax.scan(step, k, None, length=250)[1])(skewed)
        least = 1.0 if name.startswith('switch') else 0.0
        assert values[-1] - least < 0.5 * (values[0] - least), name
