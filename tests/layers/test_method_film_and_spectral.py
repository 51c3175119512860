"""MoFME's modulating experts, and MoHETS' filters of frequencies. Axes: N tokens, D width."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from layer_cases import TRAIN, init, jit, moe, normal
from model_cases import B, abstract, build, filled, images, paths

from moe_vision.layers.moe import make_expert

D = 8


def test_a_film_expert_scales_and_shifts_by_what_it_sees():
    film = make_expert('film', None, D, 0)
    w = {n: normal(i, D, D) for i, n in enumerate(film.shapes())}
    h = normal(3, 5, D)
    want = (h @ w['scale_kernel']) * h + h @ w['shift_kernel']
    chex.assert_trees_all_close(film.apply(w, h), want, atol=1e-5)
    a, b = normal(4, D, D), normal(5, D, D)
    shared = film.before.apply({'a_kernel': a, 'b_kernel': b}, h)
    chex.assert_trees_all_close(shared, jax.nn.gelu(h @ a) * (h @ b), atol=1e-5)


def test_equal_film_experts_make_routes_irrelevant():
    x = normal(0, 8, D)
    layer = moe(expert='film', router_args={'renormalize': True}, capacity_factor=float('inf'))
    variables = init(layer, x)
    bank = variables['params']['experts']
    alike = {n: jnp.broadcast_to(w[:1], w.shape) for n, w in bank.items()}
    variables = {'params': variables['params'] | {'experts': alike}}
    one = {n: w[0] for n, w in bank.items()}
    y = jit(lambda v, x: layer.apply(v, x, TRAIN)[0])(variables, x)
    chex.assert_trees_all_close(y, make_expert('film', None, D, 0).apply(one, x), atol=1e-4)


def test_what_film_experts_share_is_in_the_network_and_its_twin_alike():
    """16 experts have 2 D^2 each; before and after them there are 4 D^2 and two biases."""
    routed, twin = (
        build('vit', expert='film', num_experts=16, twin=t) for t in ('none', 'same_width')
    )
    own, dense = (paths(abstract(net)['params']) for net in (routed, twin))
    d = 16
    sizes = {n: leaf.size for n, leaf in own.items() if n.startswith('block_1')}
    experts = sum(v for n, v in sizes.items() if '/experts/' in n)
    around = sum(v for n, v in sizes.items() if '_before/' in n or '_after/' in n)
    assert experts == 16 * 2 * d * d and around == 4 * d * d + 2 * d
    assert {n for n in own if '_before/' in n or '_after/' in n} == {
        n for n in dense if '_before/' in n or '_after/' in n
    }
    assert {n for n in dense if n.startswith('block_1/')} == {
        'block_1/scale_kernel',
        'block_1/shift_kernel',
    }
    # what comes after the experts is all that a token without any expert gets
    variables = filled(routed)
    silent = jax.tree_util.tree_map_with_path(
        lambda p, x: jnp.zeros_like(x) if 'experts' in str(p) else x, variables
    )
    without = jax.tree_util.tree_map_with_path(
        lambda p, x: jnp.zeros_like(x) if 'block_1_after' in str(p) else x, silent
    )
    bias = jax.tree_util.tree_map_with_path(
        lambda p, x: 7 * x if 'block_1_before' in str(p) else x, silent
    )
    run = jit(lambda v: routed.apply(v, images(), TRAIN, mutable=['batch_stats'])[0][0])
    assert run(silent).shape == (B, 5)
    assert not np.allclose(run(silent), run(without), atol=1e-4)
    np.testing.assert_array_equal(run(silent), run(bias))  # nothing of x passes but the shortcut


@pytest.mark.parametrize('h, w, modes', [(8, 8, 8), (6, 5, 8), (7, 4, 3), (1, 1, 4)])
def test_a_filter_multiplies_the_spectrum(h, w, modes):
    """Against numpy's transform, for odd and even sides, with the grid interpolated by hand."""
    filters = make_expert('spectral', {'modes': modes}, 3, 0)
    grid = {n: normal(i, *shape) for i, (n, (shape, _)) in enumerate(filters.shapes().items())}
    x = normal(5, 2, h, w, 3)
    complex_grid = np.asarray(grid['filter_real']) + 1j * np.asarray(grid['filter_imag'])
    at = np.empty((h, w // 2 + 1, 3), complex)
    for v, u in np.ndindex(h, w // 2 + 1):
        row, column = (v / h if v <= (h - 1) // 2 else v / h - 1) % 1 * modes, u / w * modes
        r, c = int(row + 1e-9), int(column + 1e-9)
        last = modes // 2
        for dr, dc in np.ndindex(2, 2):
            weight = (abs(1 - dr - (row - r)) * abs(1 - dc - (column - c)),)
            corner = complex_grid[(r + dr) % modes, min(c + dc, last)]
            at[v, u] = corner * weight + (at[v, u] if dr or dc else 0)
    want = np.fft.irfft2(at * np.fft.rfft2(np.asarray(x), axes=(1, 2)), s=(h, w), axes=(1, 2))
    y = jit(filters.apply)(grid, x)
    assert y.dtype == jnp.float32
    np.testing.assert_allclose(y, want, atol=2e-5)
    ones = {
        'filter_real': jnp.ones_like(grid['filter_real']),
        'filter_imag': 0 * grid['filter_imag'],
    }
    np.testing.assert_allclose(filters.apply(ones, x), x, atol=2e-5)  # the identity


def test_a_filter_begins_as_a_low_pass():
    filters = make_expert('spectral', {'modes': 16}, 4, 0)
    grid = {
        n: init(jax.random.key(i), s) for i, (n, (s, init)) in enumerate(filters.shapes().items())
    }
    along = np.arange(8)
    slow, fast = jnp.ones((8, 8)), jnp.asarray(np.where((along[:, None] + along) % 2, 1.0, -1.0))
    power = [
        float(
            jnp.square(
                filters.apply(grid, jnp.broadcast_to(x[None, ..., None], (1, 8, 8, 4)))
            ).mean()
        )
        for x in (slow, fast)
    ]
    assert power[0] > 0.8 and power[1] < 0.05
