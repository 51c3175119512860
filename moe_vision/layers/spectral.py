"""Experts that filter maps by frequency (MoHETS): each multiplies the 2-D spectrum of a map by
learned complex numbers, one for each channel and frequency.

    y = irfft2(filter * rfft2(x)), filter [H, W // 2 + 1, D]

The filter is learned on a grid of `modes` x `modes` frequencies. It is interpolated linearly to
those of the map, so that one expert serves maps of any size; where a side of the map is `modes`
long, the grid's own values are used.

The paper routes among such filters and lets all tokens pass a shared depthwise convolution; that is
`expert` 'depthwise_conv' with `shared_hidden`, and one kind of experts, `spectral`.

This project's own choices: the initial filter, exp(-(f / cutoff)^2) at f cycles per pixel, with a
random factor around 1 so that experts begin apart; no norm inside; and products with the matrix of
the Fourier transform in place of a fast one, because they are counted as FLOPs, exist in bfloat16,
and are as fast on small maps.

Axes: N maps, H W space, D channels, M modes, U = W // 2 + 1 and V = H frequencies, c = real and
imaginary part.
"""

import jax
import jax.numpy as jnp
import numpy as np

from moe_vision.layers.experts import Array, Expert, Shapes


class Spectral(Expert):
    """Filters maps [N, H, W, D]. It has no hidden width."""

    def shapes(self) -> Shapes:
        m, d = self.args.modes, self.width
        f = np.hypot(np.fft.fftfreq(m)[:, None], np.fft.rfftfreq(m))  # [M, M // 2 + 1]
        low_pass = np.exp(-np.square(f / self.args.cutoff))[..., None]

        def around(key, shape):
            return low_pass * (1 + 0.1 * jax.random.normal(key, shape))

        shape = (*f.shape, d)
        return {
            'filter_real': (shape, around),
            'filter_imag': (shape, jax.nn.initializers.normal(0.02)),
        }

    def apply(self, params, x):
        h, w = x.shape[1:3]
        real, imag = (_at(params[f'filter_{n}'], h, w).astype(x.dtype) for n in ('real', 'imag'))
        spectrum = _transformed(x)
        re, im = spectrum[..., 0, :], spectrum[..., 1, :]
        filtered = jnp.stack([re * real - im * imag, re * imag + im * real], -2)
        return _transformed_back(filtered, w)


def _transformed(x: Array) -> Array:
    """The spectrum of real maps [N, H, W, D]: [N, V, U, c, D]."""
    h, w = x.shape[1:3]
    angle = 2 * np.pi * np.outer(np.arange(w), np.arange(w // 2 + 1)) / w
    rows = np.stack([np.cos(angle), -np.sin(angle)], -1)  # [W, U, c]
    half = jnp.einsum('nhwd,wuc->nhucd', x, jnp.asarray(rows, x.dtype))
    return jnp.einsum('nhucd,hcvb->nvubd', half, jnp.asarray(_rotations(h, -1), x.dtype))


def _transformed_back(spectrum: Array, w: int) -> Array:
    """Real maps [N, H, W, D] of a spectrum [N, V, U, c, D]."""
    h = spectrum.shape[1]
    half = jnp.einsum(
        'nvubd,vbhc->nhucd', spectrum, jnp.asarray(_rotations(h, 1) / h, spectrum.dtype)
    )
    # a frequency stands for its negative too, except for 0 and, where W is even, W / 2
    both = np.where((np.arange(w // 2 + 1) * 2) % w == 0, 1.0, 2.0)[:, None]
    angle = 2 * np.pi * np.outer(np.arange(w // 2 + 1), np.arange(w)) / w
    rows = np.stack([both * np.cos(angle), -both * np.sin(angle)], 1) / w  # [U, c, W]
    return jnp.einsum('nhucd,ucw->nhwd', half, jnp.asarray(rows, spectrum.dtype))


def _rotations(h: int, sign: int) -> np.ndarray:
    """exp(sign 2 pi i a b / H) as a real matrix [H, c, H, c] on real and imaginary parts."""
    angle = sign * 2 * np.pi * np.outer(np.arange(h), np.arange(h)) / h
    cos, sin = np.cos(angle), np.sin(angle)
    to_real, to_imag = np.stack([cos, -sin], 1), np.stack([sin, cos], 1)  # [H, c, H] each
    return np.stack([to_real, to_imag], -1)


def _at(grid: Array, h: int, w: int) -> Array:
    """A grid [M, M // 2 + 1, D] of filter values at the frequencies of a map: [V, U, D].

    Sums in place of products and of lookups: it happens once for all tokens, so it must not count
    as FLOPs of a token, and the gradient of a lookup is a scatter.
    """
    m, columns = grid.shape[:2]
    across = _weights(np.fft.rfftfreq(w) * m, columns)  # [U, M // 2 + 1]
    down = _weights(np.fft.fftfreq(h) % 1.0 * m, m + 1)
    down[:, 0] += down[:, m]  # the frequency M is the frequency 0
    grid = (jnp.asarray(down[:, :m, None, None], grid.dtype) * grid).sum(1)
    return (jnp.asarray(across[..., None], grid.dtype) * grid[:, None]).sum(2)


def _weights(position: np.ndarray, count: int) -> np.ndarray:
    """What each of `count` points at 0, 1, ... weighs at a position between them: [P, count]."""
    distance = np.abs(position[:, None] - np.arange(count))
    weights = np.maximum(1 - distance, 0.0).round(9)
    weights[:, -1] = np.where(position >= count - 1, 1.0, weights[:, -1])
    return weights
