"""A router that runs ahead of the network (routing_methods 3.7, pre-gating).

Axes: I images, S size, C channels, W width, B images of a batch, E experts.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from leverage_cases import block, found
from model_cases import TRAIN, B, abstract, build, config, filled, images, paths
from routing_cases import jit, normal

from moe_vision import models
from moe_vision.common.errors import UserError
from moe_vision.common.place import Place
from moe_vision.config.schema import AtLayer
from moe_vision.layers.moe import make_router


def made(layer=0, **args):
    return make_router('ahead', {'size': 4, 'width': 3, **args}, Place(3, 2, layer=layer, layers=2))


def params(router):
    shapes = router.params(8)
    return {n: normal(i, *shape) for i, (n, (shape, _)) in enumerate(shapes.items())}


@pytest.mark.parametrize('colours', [1, 3])
def test_its_features_are_two_convolutions_of_the_small_image(colours):
    router = made()
    w, x = params(router), normal(9, 2, 4, 4, colours)  # as small as it may be: nothing to resize
    found = jit(lambda w, x: router.pool(w, jnp.zeros((2, 5)), {'image': x}))(w, x)
    h = jnp.broadcast_to(x, (2, 4, 4, 3))
    for name, channels in (('in', 3), ('mid', 3)):
        kernel = w[f'{name}_kernel'].reshape(3, 3, channels, 3)
        layer = nn.Conv(3, (3, 3), precision='highest')
        given = {'params': {'kernel': kernel, 'bias': w[f'{name}_bias']}}
        h = nn.gelu(layer.apply(given, h))
    np.testing.assert_allclose(found, h.mean((1, 2)), rtol=1e-4, atol=1e-5)


def network(name='vit', **moe):
    args = made().args
    return build(name, 'every_1', router='ahead', router_args=args, losses={}, group_size=4, **moe)


@pytest.mark.parametrize('name', ['vit', 'conv'])
def test_routes_are_known_before_the_network_and_the_same_in_every_layer(name):
    """Other weights of the backbone change outputs and no route; the image changes routes."""
    net = network(name)
    variables, x = filled(net), images()
    x = x * jnp.linspace(0.5, 2, B)[:, None, None, None]

    @jit
    def run(variables, x):
        (logits, infos), _ = net.apply(variables, x, TRAIN, mutable=['batch_stats'])
        return logits, [i['choices']['gate'] for i in infos.values()]

    logits, gates = run(variables, x)
    np.testing.assert_array_equal(gates[0], gates[1])
    of_images = np.asarray(gates[0]).reshape(B, -1, 2)
    assert (of_images == of_images[:, :1]).all() and np.ptp(of_images[:, 0, 0]) > 1e-3

    def moved(path, leaf):
        return leaf if any(k.key == 'router' for k in path) else leaf + 0.3 * normal(2, *leaf.shape)

    other = variables | {'params': jax.tree_util.tree_map_with_path(moved, variables['params'])}
    after, again = run(other, x)
    assert np.abs(after - logits).max() > 1e-2
    np.testing.assert_array_equal(again[0], gates[0])


def test_the_first_layer_has_it_and_the_last_one_teaches_it():
    net = network()
    own = {n for n in paths(abstract(net)['params']) if 'router' in n}
    assert own == {f'block_0/router/{n}' for n in made().params(8)}
    variables, x = filled(net), images()

    @jit
    @jax.grad
    def gradient(params):
        infos = net.apply(variables | {'params': params}, x, TRAIN, mutable=['batch_stats'])[0][1]
        return jnp.sum(jnp.sin(infos['block_1']['choices']['gate']))

    d = gradient(variables['params'])['block_0']['router']
    assert all(np.isfinite(g).all() and np.any(g) for g in d.values())


def test_layers_of_other_numbers_of_experts_are_one_line():
    fewer = {'1': AtLayer(num_experts=2)}
    model = config('vit', 'every_1', router='ahead', losses={}, group_size=4, layers=fewer)
    with pytest.raises(UserError, match='chooses once for all routed layers') as e:
        abstract(models.build(model, 5))
    assert '\n' not in str(e.value)
    with pytest.raises(UserError, match='1 or 3 colours, but these have 4'):
        router = made()
        router.pool(params(router), jnp.zeros((2, 5)), {'image': jnp.zeros((2, 4, 4, 4))})


def test_its_products_are_counted_once():
    """Of an image 8 x 8 places of 9 * 3 W and 9 W W, then W E; and what reduces the image."""
    cost = found(
        model__moe__router='ahead',
        model__moe__router_args={'width': 5},
        model__moe__losses={},
        model__moe__placement='every_1',
    )
    products = 2 * 64 * 9 * 5 * (3 + 5) + 2 * 5 * 4
    resized = block(cost, 'block_0').flops_router - products
    assert 0 <= resized <= 2 * 8 * 8 * 8 * 3 * 2
    assert block(cost, 'block_1').flops_router == 0
