"""The routed layer as a user has it. Axes: B tokens, E experts, K choices, D width."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from layer_cases import TRAIN, init, jit, moe, normal, tokens
from slow import except_for

from moe_vision.common.errors import UserError
from moe_vision.config import registry
from moe_vision.layers import ExpertBank, MoE, Shared, Step
from moe_vision.layers.moe import make_expert
from moe_vision.routing import telemetry

D = 8


def test_a_users_own_model_in_ten_lines_learns():
    class Mine(nn.Module):
        @nn.compact
        def __call__(self, x, step):
            x = nn.Dense(16)(x)
            y, info = MoE(num_experts=4, k=2, group_size=8, hidden=32, losses={'importance': 0.01})(
                x, step
            )
            return nn.Dense(3)(x + y), sum(info['losses'].values())

    x, labels, model, tx = normal(0, 32, 6), jnp.arange(32) % 3, Mine(), optax.adam(1e-2)
    params = init(model, x)['params']

    @jit
    def train(params, opt, key):
        def loss(params):
            logits, aux = model.apply({'params': params}, x, Step(key=key, train=True))
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean() + aux

        value, grads = jax.value_and_grad(loss)(params)
        updates, opt = tx.update(grads, opt)
        return optax.apply_updates(params, updates), opt, value, grads

    opt, values = tx.init(params), []
    for number in range(30):
        params, opt, value, grads = train(params, opt, jax.random.key(number))
        values.append(float(value))
    assert values[-1] < 0.5 * values[0]
    assert all((np.asarray(g) != 0).any() for g in jax.tree.leaves(grads))


def test_initial_values_do_not_know_k():
    x = normal(0, 8, D)
    one, *others = jit(
        lambda x: [
            moe(k=k, capacity_factor=cf).init(jax.random.key(3), x, TRAIN)
            for k, cf in ((1, 1.0), (2, 1.25), (4, 9.0))
        ]
    )(x)
    for other in others:
        chex.assert_trees_all_equal(other, one)


def test_experts_begin_independent_and_do_not_know_how_many_they_are():
    four, eight = jit(
        lambda x: [
            moe(num_experts=e, hidden=64).init(jax.random.key(3), x, TRAIN)['params']['experts']
            for e in (4, 8)
        ]
    )(normal(0, 8, D))
    chex.assert_trees_all_equal(jax.tree.map(lambda a: a[:4], eight), four)
    for name in ('in_kernel', 'out_kernel'):
        flat = np.asarray(eight[name]).reshape(8, -1)
        assert abs(np.corrcoef(flat) - np.eye(8)).max() < 0.2  # 512 values: 0.044 (sd)
        fan_in = eight[name].shape[1]  # of one expert, not of all together
        np.testing.assert_allclose(flat.std(-1), fan_in**-0.5, rtol=0.15)


LAYERS = ((1, 'a'), (2, 'b'))  # k, name


class Neighbours(nn.Module):
    """Two routed layers with one bank; each has its own router and its own k."""

    @nn.compact
    def __call__(self, x, step):
        bank = ExpertBank(make_expert('mlp', None, x.shape[-1], 16), 4, name='experts')()
        shared = Shared(bank=bank, bank_path='experts')
        a, b = (MoE(4, k, 4 * k, 16, capacity_factor=9.0, layer=k - 1, name=n) for k, n in LAYERS)
        y, first = a(x, step, shared=shared)
        z, second = b(x + y, step, shared=shared)
        return x + y + z, (first, second)


def test_layers_share_a_bank():
    x, model = normal(0, 8, D), Neighbours()
    params = init(model, x)['params']
    assert set(params) == {'experts', 'a', 'b'}
    assert set(params['a']) == set(params['b']) == {'router'}
    alone = {
        n: {'params': {'experts': params['experts'], 'router': params[n]['router']}}
        for n in ('a', 'b')
    }

    @jit
    def both(params):
        y = moe(k=1, capacity_factor=9.0).apply(alone['a'], x, TRAIN)[0]
        z = moe(k=2, group_size=8, capacity_factor=9.0).apply(alone['b'], x + y, TRAIN)[0]
        return model.apply({'params': params}, x, TRAIN)[0], x + y + z

    chex.assert_trees_all_close(*both(params), atol=1e-6)


def test_a_users_router_by_path_and_what_it_carries():
    layer = moe(k=1, router='layer_cases:Counting', capacity_factor=float('inf'))
    x = normal(0, 8, D)
    variables = init(layer, x)

    @jit
    def chain(variables):
        infos, carry = [], None
        for _ in range(3):
            info = layer.apply(variables, x, TRAIN, carry=carry)[1]
            infos, carry = [*infos, info], info['carry']
        return infos

    for number, info in enumerate(chain(variables)):
        np.testing.assert_array_equal(info['carry'], np.full(8, number + 1))
        np.testing.assert_array_equal(info['choices']['expert'], np.full((8, 1), number))


@pytest.mark.parametrize('count, group_size', [(8, 3), (4, 8), (10, 4)])
def test_groups_must_divide_the_tokens(count, group_size):
    with pytest.raises(ValueError, match=f'{count} tokens .* {group_size}'):
        jax.eval_shape(
            lambda x: moe(group_size=group_size).init(jax.random.key(0), x), normal(0, count, D)
        )


@pytest.mark.parametrize(
    'kwargs, hint',
    [
        ({'router': 'topk'}, 'top_k'),
        ({'expert': 'convv', 'expert_args': {}}, 'conv'),
        ({'losses': {'importanc': 1.0}}, 'importance'),
    ],
)
def test_names_are_suggested(kwargs, hint):
    with pytest.raises(UserError, match=f"Did you mean '{hint}'"):
        jax.eval_shape(lambda x: moe(**kwargs).init(jax.random.key(0), x), normal(0, 8, D))


def test_bfloat16_tokens_meet_float32_parameters():
    x = normal(0, 8, D).astype(jnp.bfloat16)
    layer = moe(losses={'importance': 1.0, 'z': 1.0, 'switch': 1.0})
    variables = jax.eval_shape(lambda x: layer.init(jax.random.key(0), x, TRAIN), x)
    chex.assert_type(jax.tree.leaves(variables), jnp.float32)

    def run(variables, x):
        y, info = layer.apply(variables, x, TRAIN)
        return y.astype(jnp.float32).sum() + sum(info['losses'].values()), (y, info)

    grads, (y, info) = jax.eval_shape(jax.grad(run, has_aux=True), variables, x)
    chex.assert_type([y, *jax.tree.leaves(grads)], [jnp.bfloat16] + 5 * [jnp.float32])
    chex.assert_type(jax.tree.leaves((info['losses'], info['telemetry'])), jnp.float32)
    chex.assert_type(info['choices']['gate'], jnp.float32)


@pytest.mark.parametrize('expert', except_for(('mlp', 'conv'), registry.EXPERTS))
def test_gradients_in_a_users_shard_map(expert):
    """Parameters lie everywhere, tokens are split: an array's type tells, also on one device."""
    layer, x = moe(expert=expert, losses={'importance': 0.1}), tokens(expert)
    variables = init(layer, x)

    def loss(params, x):
        y, info = layer.apply({**variables, 'params': params}, x, TRAIN)
        return jnp.square(y).mean() + info['losses']['importance']

    mesh = Mesh(jax.devices()[:1], 'data')
    split = jax.shard_map(
        lambda *args: jax.lax.pmean(loss(*args), 'data'),
        mesh=mesh,
        in_specs=(P(), P('data')),
        out_specs=P(),
    )
    plain, ours = (jit(jax.grad(f))(variables['params'], x) for f in (loss, split))
    chex.assert_trees_all_close(ours, plain, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('expert', ['mlp', 'conv'])
def test_gradients_have_the_type_of_their_parameters(expert):
    layer, x = moe(expert=expert), tokens(expert)
    variables = init(layer, x)
    params = jax.tree.map(lambda a: a.astype(jnp.bfloat16), variables['params'])
    grads = jax.eval_shape(
        jax.grad(lambda p: layer.apply({**variables, 'params': p}, x, TRAIN)[0].sum()), params
    )
    assert {g.dtype for g in jax.tree.leaves(grads)} == {jnp.dtype(jnp.bfloat16)}


def test_what_the_layer_reports():
    labels, valid = jnp.arange(8) % 3, jnp.asarray([1, 1, 0, 1, 1, 1, 1, 1], bool)
    x = normal(0, 8, D)
    layer = moe(losses={'importance': 0.5, 'z': 0.0}, eval_capacity_factor=0.5)
    variables = init(layer, x)
    step = Step(valid=valid, labels=labels, num_classes=3)
    y, info = jit(lambda v, x: layer.apply(v, x, step))(variables, x)
    chex.assert_shape(y, (8, D))
    chex.assert_shape(list(info['choices'].values()), (8, 2))
    assert set(info['losses']) == {'importance'} and info['losses']['importance'].shape == ()
    sums = info['telemetry']
    assert sums['tokens'] == 7 and sums['choices'] == 14
    assert sums['slots'] == 2 * 4 * 1  # 2 groups, 4 experts, ceil(.5 * 2 * 4 / 4) = 1
    assert sums['kept'].sum() == info['choices']['kept'].sum() == 14 - sums['dropped']
    np.testing.assert_array_equal(sums['by_class'].sum(1), sums['chosen'])
    want = 2 * np.bincount(labels[valid], minlength=3)
    np.testing.assert_array_equal(sums['by_class'].sum(0), want)
    rates = telemetry.summarize(sums)
    assert rates['drop_rate'] == pytest.approx(float(sums['dropped']) / 14)
    orphans = valid & ~info['choices']['kept'].any(-1)
    assert rates['orphan_rate'] == pytest.approx(float(orphans.sum()) / 7)
    assert (np.asarray(y)[np.asarray(~info['choices']['kept'].any(-1))] == 0).all()


def test_losses_are_means_over_groups_with_somebody_in_them():
    x = normal(0, 12, D)
    layer = moe(losses={'z': 0.5})
    variables = init(layer, x)
    loss = jit(lambda x, valid: layer.apply(variables, x, Step(valid=valid))[1]['losses']['z'])
    all_here = jnp.ones(12, bool)
    each = [float(loss(jnp.tile(x[i : i + 4], (3, 1)), all_here)) for i in (0, 4, 8)]
    assert float(loss(x, all_here)) == pytest.approx(np.mean(each), rel=1e-5)
    assert float(loss(x, all_here.at[4:8].set(False))) == pytest.approx(
        (each[0] + each[2]) / 2, rel=1e-5
    )
    assert float(loss(x, ~all_here)) == 0


@pytest.mark.parametrize('kwargs', [{'router': 'random'}, {'priority': 'random'}], ids=str)
def test_results_do_not_depend_on_the_batch_size(kwargs):
    """What is drawn belongs to the group's number in the whole pass."""
    x, key = normal(0, 16, D), jax.random.key(3)
    layer = moe(eval_capacity_factor=0.5, **kwargs)
    variables = init(layer, x)
    run = jit(lambda x, start: layer.apply(variables, x, Step(start=start, key=key)))
    whole, info = run(x, 0)
    assert info['telemetry']['dropped'] > 0
    parts = [run(x[i : i + 4], i)[0] for i in range(0, 16, 4)]
    chex.assert_trees_all_close(jnp.concatenate(parts), whole, atol=1e-6)
    assert not np.allclose(run(x[4:8], 0)[0], whole[4:8])  # something is at stake


@pytest.mark.parametrize(
    'kwargs',
    [{'router': 'random'}, {'priority': 'random'}, {'router_args': {'noise': 'gaussian'}}],
    ids=str,
)
def test_what_draws_at_random_wants_a_key(kwargs):
    x, layer = normal(0, 16, D), moe(**kwargs)
    variables = init(layer, x)
    with pytest.raises(ValueError, match='give the step a key'):
        layer.apply(variables, x, Step(train=True))


def test_every_layer_draws_its_own():
    x, key = normal(0, 32, D), jax.random.key(0)
    variables = init(moe(router='random'), x)

    def run(layer, key):
        layer = moe(router='random', group_size=32, layer=layer)
        return layer.apply(variables, x, Step(key=key, train=True))[1]['choices']['expert']

    a, b, c = jit(lambda key: (run(0, key), run(1, key), run(0, jax.random.fold_in(key, 1))))(key)
    assert (a != b).mean() > 0.4 and (a != c).mean() > 0.4


def test_capacity_of_training_and_evaluation():
    x = jnp.broadcast_to(normal(0, 1, D), (8, D))  # all alike: all to the same two experts
    layer = moe(group_size=8, capacity_factor=1.0, eval_capacity_factor=float('inf'))
    variables = init(layer, x)
    dropped = jit(
        lambda x, train: layer.apply(variables, x, Step(train=train))[1]['telemetry']['dropped'],
        static_argnums=1,
    )
    assert dropped(x, True) == 2 * (8 - 4)  # C = 2 * 8 / 4
    assert dropped(x, False) == 0


@pytest.mark.parametrize('router, expert', [('top_k', 'conv'), ('soft', 'mlp')])
def test_padding_may_hold_anything(router, expert):
    x, valid = tokens(expert), jnp.asarray([0, 1, 1, 1, 1, 0, 1, 1], bool)
    layer = moe(router=router, expert=expert, losses={'importance': 1.0, 'z': 0.1})
    variables = init(layer, x)

    @jit
    def run(variables, x):
        def loss(variables, x):
            y, info = layer.apply(variables, x, Step(valid=valid, train=True))
            some = valid.reshape(-1, *(1,) * (x.ndim - 1))
            aux = sum(info['losses'].values())
            return jnp.sum(jnp.where(some, jnp.sin(y), 0)) + aux, (y, info['telemetry'])

        return jax.value_and_grad(loss, (0, 1), has_aux=True)(variables, x)

    clean, dirty = run(variables, x), run(variables, x.at[np.array([0, 5])].set(jnp.nan))
    chex.assert_tree_all_finite(dirty)
    chex.assert_trees_all_equal(dirty, clean)


def test_vmap_over_seeds():
    x = normal(0, 8, D)
    layer = moe(losses={'importance': 1.0})

    def run(variables, x):
        def loss(variables):
            y, info = layer.apply(variables, x, TRAIN)
            return jnp.sum(jnp.sin(y)) + info['losses']['importance']

        return jax.value_and_grad(loss)(variables)

    seeds = [init(layer, x, seed=seed) for seed in range(3)]
    together = jit(jax.vmap(run, (0, None)))(jax.tree.map(lambda *a: jnp.stack(a), *seeds), x)
    alone = jit(run)
    for number, variables in enumerate(seeds):
        chex.assert_trees_all_close(
            jax.tree.map(lambda a, s=number: a[s], together), alone(variables, x), atol=1e-5
        )
