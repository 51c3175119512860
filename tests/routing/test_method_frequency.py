"""Routing by spatial frequencies (routing_methods 3.25). Axes: B images, H W space, D channels."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from leverage_cases import block, found
from model_cases import TRAIN, B, build, filled, images
from routing_cases import jit, normal

from moe_vision.common.place import Place
from moe_vision.layers.moe import make_router
from moe_vision.routing.routers import frequency

energies = functools.partial(jit, static_argnums=1)(frequency.log_energies)


def by_fft(x, bands):
    """The same from numpy's transform of the whole plane."""
    h, w = x.shape[1:3]
    power = np.square(np.abs(np.fft.fft2(x, axes=(1, 2)))).mean(-1) / (h * w)
    radius = np.hypot(np.fft.fftfreq(h)[:, None], np.fft.fftfreq(w)[None])
    # a frequency on the edge of two bands is in the upper one
    band = np.minimum((radius * np.sqrt(2) * bands + 1e-9).astype(int), bands - 1)
    means = [
        power[:, band == b].mean(1) if (band == b).any() else np.zeros(len(x)) for b in range(bands)
    ]
    return np.log(1e-6 + np.stack(means, -1))


@pytest.mark.parametrize('h, w, bands', [(8, 8, 4), (6, 7, 3), (1, 1, 2), (4, 5, 9)])
def test_against_an_fft(h, w, bands):
    x = np.asarray(normal(1, 3, h, w, 2))
    np.testing.assert_allclose(energies(x, bands), by_fft(x, bands), rtol=1e-4, atol=1e-4)


def test_waves_by_hand():
    """Of an 8x8 map, cos(2 pi f x / 8) / 2 has F = 16 at f and -f, and |F|^2 / 64 = 4.

    At f = 4 these two are one, with F = 32 and |F|^2 / 64 = 16. Two bands meet at a radius of
    sqrt(8), in cycles per map. Below it are 5 + 2 * 5 + 2 * 3 = 21 of the 64 frequencies, and among
    them f = 1 and 2; f = 4 is one of the 43 above.
    """
    wave = np.cos(2 * np.pi * np.outer([1, 2, 4], np.arange(8)) / 8) / 2
    maps = np.broadcast_to(wave[:, None, :, None], (3, 8, 8, 1))
    none = np.log(1e-6)
    want = [[np.log(8 / 21), none], [np.log(8 / 21), none], [none, np.log(16 / 43)]]
    np.testing.assert_allclose(energies(maps, 2), want, atol=1e-3)


def test_white_noise_has_its_log_variance_in_every_band():
    noise = 3 * np.random.default_rng(0).normal(size=(1, 16, 16, 300))
    np.testing.assert_allclose(energies(noise, 4)[0], np.log(9), atol=0.1)


def test_shifts_change_nothing_and_blur_does():
    x = np.asarray(normal(1, 4, 8, 8, 3))
    first = energies(x, 4)
    for axis, by in ((1, 3), (2, 5)):
        np.testing.assert_allclose(energies(np.roll(x, by, axis), 4), first, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(energies(x[:, :, ::-1], 4), first, rtol=1e-4, atol=1e-4)
    blurred = (x + np.roll(x, 1, 1) + np.roll(x, 1, 2) + np.roll(x, (1, 1), (1, 2))) / 4
    less = first - energies(blurred, 4)
    assert (less[:, -1] > less[:, 0] + 1).all()  # most at the highest frequencies


def test_contrast_changes_no_route_unless_it_may():
    x = normal(1, 8, 6, 6, 4)
    for normalized in (True, False):
        router = make_router('frequency', {'normalize_inputs': normalized}, Place(4, 2, 8))
        params = {n: normal(i, *s) for i, (n, (s, _)) in enumerate(router.params(4).items())}

        @jit
        def logits(x, router=router, params=params):
            ctx = frequency.Context(jnp.ones((1, 8), bool), None, jnp.arange(1))
            return router(params, {}, router.pool(params, x, {})[None], ctx).logits

        same = np.allclose(logits(x), logits(5.0 * x), atol=1e-3)
        assert same == normalized


@pytest.mark.parametrize('name, placement', [('vit', 'last_1'), ('conv', 'head')])
def test_the_image_decides_for_all_its_tokens(name, placement):
    args = make_router('image_frequency', {}, Place(3, 2)).args
    net = build(
        name,
        placement,
        router='image_frequency',
        router_args=args,
        group_size=4,
        losses={},
        capacity_factor=float('inf'),
    )
    x = images() * jnp.linspace(0.5, 2, B)[:, None, None, None]
    infos = jit(lambda v, x: net.apply(v, x, TRAIN, mutable=['batch_stats'])[0][1])(filled(net), x)
    for info in infos.values():
        gates = np.asarray(info['choices']['gate']).reshape(B, -1, 2)
        assert (gates == gates[:, :1]).all() and np.ptp(gates[:, 0, 0]) > 1e-3


def test_gradients_are_finite_where_a_band_is_empty():
    def total(x):
        return jnp.sum(jnp.sin(frequency.log_energies(x, 9)))

    for x in (jnp.zeros((2, 4, 4, 3)), jnp.ones((2, 4, 4, 3)), normal(1, 2, 4, 4, 3)):
        assert np.isfinite(jit(jax.grad(total))(x)).all()


def test_its_products_are_counted():
    """A map of 4x4 with 16 channels has V = 3: 2 H W 2V D, then 2 H 2V 2H D; 4 bands; 32 hidden."""
    cost = found(model__moe__router='frequency', model__moe__router_args={}, model__moe__losses={})
    transform = 2 * 16 * 6 * 16 + 2 * 4 * 6 * 8 * 16
    assert block(cost, 'block_1').flops_router == transform + 2 * 12 * 4 + 2 * 4 * 32 + 2 * 32 * 4
