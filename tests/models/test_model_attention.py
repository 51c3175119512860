"""What routers get as 'attention' is the attention of the ViT's block, and asking costs nothing.

Axes: B images, N tokens of an image, H heads, D width.
"""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
import model_cases
import numpy as np
from model_cases import CLASSES, config, filled, images

from moe_vision import models
from moe_vision.config.method_args import TopKArgs
from moe_vision.config.router_args import AttentionArgs
from moe_vision.routing.routers.top_k import TopK

B, N, H, D = 4, 4, 2, 16


class Spy(TopK):
    """Reports what it is given as the gates of N choices."""

    needs = ('attention',)

    def choose(self, params, state, features, context):
        routing = super().choose(params, state, features, context)
        given = context.extras['attention']
        return dataclasses.replace(
            routing,
            expert_of_choice=jnp.zeros(given.shape, jnp.int32),
            gate=given,
            active=jnp.broadcast_to(context.valid[..., None], given.shape),
        )


def made(router, **moe):
    model = config('vit', placement='every_1', router=router, group_size=2 * N, losses={}, **moe)
    return models.build(model, CLASSES)


def test_the_router_gets_the_attention_of_its_block():
    net = made('test_model_attention:Spy', router_args=TopKArgs())
    variables = filled(net)

    @model_cases.jit
    def run(x):
        """What each router was given, and what each attention reads, by block."""
        read = {}

        def keep(call, args, kwargs, context):
            if isinstance(context.module, nn.MultiHeadDotProductAttention):
                read[context.module.name] = args[0]
            return call(*args, **kwargs)

        with nn.intercept_methods(keep):
            _, infos = net.apply(variables, x, model_cases.Step())
        return {name: info['choices']['gate'] for name, info in infos.items()}, read

    @model_cases.jit
    def sown(params, x):
        module = nn.MultiHeadDotProductAttention(H)
        _, kept = module.apply({'params': params}, x, sow_weights=True, mutable=['intermediates'])
        return kept['intermediates']['attention_weights'][0].mean(1)

    given, read = run(images())
    assert len(given) == len(read) == 2
    for block, attention in given.items():
        x, p = read[f'{block}_attention'], variables['params'][f'{block}_attention']
        q, k = (
            np.einsum('bnd,dhe->bnhe', x, p[n]['kernel']) + np.asarray(p[n]['bias'])
            for n in ('query', 'key')
        )
        weights = np.exp(np.einsum('bqhe,bkhe->bhqk', q, k) / np.sqrt(D // H))
        weights /= weights.sum(-1, keepdims=True)
        attention = attention.reshape(B, N, N)  # row t is what token t attends to
        np.testing.assert_allclose(attention, weights.mean(1), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(attention, sown(p, x), rtol=1e-4, atol=1e-6)
    assert np.abs(given['block_0'] - given['block_1']).max() > 1e-3  # each block has its own


def test_asking_for_it_does_not_change_the_logits():
    """With mix = 0 the router routes as `top_k` does, which is given no attention."""
    asked, plain = made('attention_aware', router_args=AttentionArgs(mix=0.0)), made('top_k')
    variables, x = filled(plain), images()
    a, b = (
        model_cases.jit(lambda x, net=net: net.apply(variables, x, model_cases.Step())[0])(x)
        for net in (asked, plain)
    )
    assert jnp.abs(b).max() > 0.1
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
