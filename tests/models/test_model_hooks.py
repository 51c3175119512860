"""What routers, losses and single layers may be given: places, labels, images, shared experts.

Axes: B images, G groups, T tokens, E experts.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from model_cases import TRAIN, B, abstract, build, config, filled, images, jit, paths

from moe_vision import models
from moe_vision.common.errors import UserError
from moe_vision.common.place import Place
from moe_vision.config.places import moe_at, place_at, pools, routed_layers, with_eval_capacity
from moe_vision.config.schema import AtLayer
from moe_vision.layers import Step
from moe_vision.routing.routers.top_k import TopK
from moe_vision.training.router_state import updated_router_state

LABELS = jnp.arange(B, dtype=jnp.int32)


def test_single_layers_have_numbers_of_their_own():
    layers = {'0': AtLayer(num_experts=2, k=1), '-1': AtLayer(num_experts=5, hidden=24)}
    model = config('conv', 'every_1', layers=layers)
    assert routed_layers(model) == 2
    first, last = moe_at(model, 0), moe_at(model, 1)
    assert (first.num_experts, first.k, first.hidden) == (2, 1, 0)
    assert (last.num_experts, last.k, last.hidden) == (5, 2, 24)
    assert place_at(model, 1, 3) == Place(5, 2, 2, layer=1, layers=2, tokens_per_image=3)
    net = models.build(model, 5)
    shapes = {n: a.shape for n, a in paths(abstract(net)['params']).items()}
    assert shapes['block_0/experts/conv1'] == (2, 3, 3, 8, 8)
    assert shapes['block_1/experts/conv1'] == (5, 3, 3, 16, 24)
    assert shapes['block_1/router/kernel'] == (16, 5)
    infos = jax.eval_shape(
        lambda v, x: net.apply(v, x, TRAIN, mutable=['batch_stats'])[0][1], abstract(net), images()
    )
    assert infos['block_0']['telemetry']['kept'].shape == (2,)
    assert infos['block_1']['telemetry']['kept'].shape == (5,)
    assert infos['block_0']['choices']['expert'].shape == (B, 1)


def test_one_capacity_for_all_in_evaluation():
    model = config('conv', 'every_1', layers={'0': AtLayer(eval_capacity_factor=3.0, k=1)})
    wide = with_eval_capacity(model, float('inf'))
    assert [moe_at(model, n).eval_capacity_factor for n in (0, 1)] == [3.0, 2.0]
    assert [moe_at(wide, n).eval_capacity_factor for n in (0, 1)] == [float('inf')] * 2
    assert moe_at(wide, 0).k == 1


def test_a_layer_that_does_not_exist_is_refused():
    with pytest.raises(UserError, match="layer '2'.*2 routed layers"):
        moe_at(config('conv', 'every_1', layers={'2': AtLayer(k=1)}), 0)


@pytest.mark.parametrize(
    'name, placement', [('conv', 'last_1'), ('vit', 'last_1'), ('conv', 'head')]
)
def test_a_shared_expert_runs_on_every_token_in_the_network_and_its_twin(name, placement):
    """The branch is the routed one plus the shared one; other initial values stay as they were."""
    plain, shared = (build(name, placement, shared_hidden=n) for n in (0, 8))
    twin = build(name, placement, twin='same_width', shared_hidden=8)
    before, after, dense = (set(paths(abstract(n)['params'])) for n in (plain, shared, twin))
    more = {p for p in after if '_shared/' in p}
    assert more and after == before | more and more <= dense
    variables = filled(shared)
    without = jax.tree.map(
        jnp.zeros_like, {n: v for n, v in variables['params'].items() if n.endswith('_shared')}
    )
    rest = {n: v for n, v in variables['params'].items() if not n.endswith('_shared')}
    run = jit(lambda v, x: shared.apply(v, x, TRAIN, mutable=['batch_stats'])[0][0])
    bare = jit(lambda v, x: plain.apply(v, x, TRAIN, mutable=['batch_stats'])[0][0])
    x = images()
    with_it = run(variables, x)
    silent = run(variables | {'params': variables['params'] | without}, x)
    np.testing.assert_allclose(silent, bare(variables | {'params': rest}, x), rtol=1e-5, atol=1e-5)
    assert not np.allclose(with_it, silent, atol=1e-3)


def routed_by(router, *args, **moe):
    """A small model with a router of this module."""
    model = config(*args, **moe)
    return dataclasses.replace(
        model, moe=dataclasses.replace(model.moe, router=f'{__name__}:{router}')
    )


class Taught(TopK):
    """Refuses labels in evaluation, and asks for them in training."""

    needs = ('labels',)

    def choose(self, params, state, features, context):
        assert (context.labels is not None) == context.train
        return super().choose(params, state, features, context)


def test_labels_reach_routers_in_training_alone():
    model = routed_by('Taught', 'conv', 'last_1')
    net, x = models.build(model, 5), images()
    variables = jax.eval_shape(lambda x: net.init(jax.random.key(0), x, Step()), x)

    def run(step):
        return jax.eval_shape(
            lambda v, x: net.apply(v, x, step, mutable=['batch_stats'])[0][1], variables, x
        )

    taught = dataclasses.replace(TRAIN, labels=LABELS)
    assert 'by_class' not in run(taught)['block_1']['telemetry']
    seen = run(dataclasses.replace(taught, train=False, num_classes=5))
    assert seen['block_1']['telemetry']['by_class'].shape == (3, 5)
    with pytest.raises(UserError, match="needs 'labels'.*Step.labels"):
        run(TRAIN)


class OfTheImage(TopK):
    """Routes by the mean colour of the image, of each patch's image in a ViT."""

    needs = ('image',)

    def pool(self, params, x, extras):
        colour = extras['image'].mean((1, 2))
        return jnp.repeat(colour, self.place.tokens_per_image, 0)

    def params(self, width):
        return super().params(3)


@pytest.mark.parametrize(
    'name, placement', [('conv', 'last_1'), ('vit', 'every_1'), ('vit', 'head')]
)
def test_the_image_reaches_the_router_that_needs_it(name, placement):
    """All tokens of an image take the same experts, and other images take others."""
    model = routed_by('OfTheImage', name, placement, group_size=4, capacity_factor=float('inf'))
    net = models.build(model, 5)
    variables, x = filled(net), images() * 3
    infos = jit(lambda v, x: net.apply(v, x, TRAIN, mutable=['batch_stats'])[0][1])(variables, x)
    for path, info in infos.items():
        kernel = paths(variables['params'])[f'{path}/router/kernel']
        colour = np.asarray(x.mean((1, 2)))
        # normalised over D, as `routing.linear` does
        colour = (colour - colour.mean(1, keepdims=True)) / colour.std(1, keepdims=True)
        want = np.argsort(-(colour @ kernel), 1)[:, :2]
        ids = np.asarray(info['choices']['expert']).reshape(B, -1, 2)
        assert (ids == want[:, None]).all()


def apart(view, key):
    """Loss of a layer: the sum of the experts' first biases, and whether it may draw."""
    return jnp.float32(key is not None) + sum(w.sum() for n, w in view.bank.items() if 'bias' in n)


apart.of_layer = True


def test_a_loss_of_a_layer_counts_once_and_reaches_all_experts():
    name = f'{__name__}:apart'
    model = config('vit', 'every_1', losses={name: 0.5, 'importance': 0.0})
    net = models.build(model, 5)
    variables = filled(net)

    def loss(params):
        known = variables | {'params': params}
        infos = net.apply(known, images(), TRAIN, mutable=['batch_stats'])[0][1]
        return sum(i['losses'][name] for i in infos.values()), infos

    (value, infos), d = jit(jax.value_and_grad(loss, has_aux=True))(variables['params'])
    for path in ('block_0', 'block_1'):
        bank = variables['params'][path]['experts']
        want = 0.5 * (1 + bank['in_bias'].sum() + bank['out_bias'].sum())
        np.testing.assert_allclose(infos[path]['losses'][name], want, rtol=1e-5)
        np.testing.assert_array_equal(d[path]['experts']['in_bias'], np.full((3, 64), 0.5))
    in_evaluation = jax.eval_shape(
        lambda v: net.apply(v, images(), dataclasses.replace(TRAIN, train=False))[1], variables
    )
    assert all(name not in i['losses'] for i in in_evaluation.values())


@pytest.mark.parametrize(
    'name, bank, pools_of',
    [
        ('vit', 'own', ((0,), (1,))),
        ('vit', 'stage', ((0, 1),)),
        ('vit', '2', ((0, 1),)),
        ('conv', 'stage', ((0,), (1,))),
    ],
)
def test_which_layers_share_experts(name, bank, pools_of):
    model = config(name, 'every_1', bank=bank)
    assert pools(model) == pools_of
    assert place_at(model, 1).pool_layers == len(pools_of[-1])
    assert place_at(model, 1).pool_layer == len(pools_of[-1]) - 1


@pytest.mark.parametrize('bank, part', [('3', '2 routed layers'), ('stages', "'stage'"), ('0', '')])
def test_banks_that_cannot_be(bank, part):
    with pytest.raises(UserError, match=f'model.moe.bank.*{part}'):
        pools(config('vit', 'every_1', bank=bank))


@pytest.mark.parametrize('remat', [False, True])
def test_layers_that_share_experts_have_them_once_and_both_teach_them(remat):
    """With equal experts in both layers, gradients of the shared bank are the sum of theirs."""
    models_of = [config('vit', 'every_1', bank=b) for b in ('own', '2')]
    own, shared = (
        models.build(dataclasses.replace(m, remat=remat and m is models_of[1]), 5)
        for m in models_of
    )
    variables = filled(shared)
    params = dict(variables['params'])
    bank = params.pop('bank_0')
    assert set(bank) == {'experts'}
    apart = {
        n: v | {'experts': bank['experts']} if n in ('block_0', 'block_1') else v
        for n, v in params.items()
    }

    def loss(net, params):
        logits = net.apply(variables | {'params': params}, images(), TRAIN, mutable=['batch_stats'])
        return jnp.sin(logits[0][0]).sum()

    one, d_one = jit(jax.value_and_grad(lambda p: loss(shared, p)))(variables['params'])
    two, d_two = jit(jax.value_and_grad(lambda p: loss(own, p)))(apart)
    np.testing.assert_allclose(one, two, rtol=1e-5)
    for n, d in d_one['bank_0']['experts'].items():
        both = sum(d_two[b]['experts'][n] for b in ('block_0', 'block_1'))
        np.testing.assert_allclose(d, both, rtol=2e-4, atol=1e-5)


class Summing(TopK):
    """Shares a matrix and a count with the routers of other layers, and has a count of its own."""

    def shared_params(self):
        return {'common': ((self.num_experts, self.num_experts), jax.nn.initializers.ones)}

    def init_state(self):
        return {'own': jnp.zeros(())}

    def init_shared_state(self):
        return {'all': jnp.zeros((2,))}

    def choose(self, params, state, features, context):
        assert set(state) == {'own', 'all'} and params['common'].shape == (3, 3)
        return super().choose(params, state, features, context)

    def update_state(self, state, sums):
        return {'own': state['own'] + sums['tokens']}

    def update_shared_state(self, state, sums):
        return {'all': state['all'] + jnp.stack([s['chosen'].sum() for s in sums])}


def test_routers_share_what_they_say():
    model = routed_by('Summing', 'vit', 'every_1', layers={'1': AtLayer(k=1)})
    net = models.build(model, 5)
    variables = jit(lambda x: net.init(jax.random.key(0), x, TRAIN))(images())
    assert variables['params']['router']['common'].shape == (3, 3)
    assert 'common' not in variables['params']['block_0']['router']
    infos = jit(lambda v, x: net.apply(v, x, TRAIN)[1])(variables, images())
    new = updated_router_state(
        model.moe,
        variables['router_state'],
        {n: i['telemetry'] for n, i in infos.items()},
        {n: (i['observed'], i['place']) for n, i in infos.items()},
    )
    tokens = 4 * B  # patches
    assert float(new['block_1']['router']['own']) == tokens
    np.testing.assert_array_equal(new['router']['all'], [2 * tokens, tokens])
