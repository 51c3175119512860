"""Routes by how much of a map, or of the image, there is at each spatial frequency (as FeRA, 2025).

    e_b = log(1e-6 + mean over channels and over the frequencies of band b of |F(x)|^2),  b = 1..B
    logits = gelu(norm(e) W + c) V

F is the two-dimensional Fourier transform, divided by sqrt(H W) so that white noise of variance v
has log v in every band. The bands are rings of equal width in the radius of the frequency, from 0
to sqrt(1/2) cycles per pixel. The first has the mean of the map, too. A small map may have no
frequency in a band; its e is then log 1e-6.

FeRA mixes all experts, by the energies of a diffusion model's latent. This project takes the k
largest, and normalises e, so that only the shape of the spectrum counts and not the contrast
(`normalize_inputs=False` lets it count). In a network that routes patches, the spectrum of an image
sends all its patches to the same experts.

The transform is written as two products with cosines and sines. On a mesh, compilers gather all
images on each device for an FFT. The products stay where the images are, and are counted as FLOPs.

Axes: B images, H W space, V = W / 2 + 1 frequencies, D channels, G groups, T tokens, N ids.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from moe_vision.routing.linear import linear
from moe_vision.routing.router import Router
from moe_vision.routing.types import Array, Context, Routing, pick, top_k_ids


class Frequency(Router):
    """By the map that experts get."""

    needs: tuple[str, ...] = ('map',)

    def pool(self, params, x, extras):
        """x [B, H, W, D] to log energies, [B, bands]."""
        del params, extras
        return log_energies(x, self.args.bands)

    def params(self, width):
        a, init = self.args, jax.nn.initializers.normal
        return {
            'in_kernel': ((a.bands, a.hidden), init(a.bands**-0.5)),
            'in_bias': ((a.hidden,), jax.nn.initializers.zeros),
            'kernel': ((a.hidden, self.num_ids), init(a.hidden**-0.5)),
        }

    def choose(self, params, state, features, context: Context) -> Routing:
        a = self.args
        hidden = linear(features, params['in_kernel'], normalize=a.normalize_inputs)
        hidden = jax.nn.gelu(hidden + params['in_bias'])
        logits = linear(hidden, params['kernel'], normalize=False)
        probs = jax.nn.softmax(logits)
        ids = top_k_ids(logits, self.k)
        gate = pick(probs, ids)
        return self.routing(context, logits, ids, gate, probs=probs)


class ImageFrequency(Frequency):
    """By the image; all patches of an image have the same features."""

    needs = ('image',)

    def pool(self, params, x, extras):
        """Log energies of extras['image'] [images, H, W, C] for the tokens of x, [B, bands]."""
        of_images = log_energies(extras['image'], self.args.bands)
        return jnp.repeat(of_images, self.place.tokens_per_image, 0)


def log_energies(x: Array, bands: int) -> Array:
    """log(1e-6 + mean of |F(x)|^2 / (H W)) of each band of x [B, H, W, D], float32 [B, bands]."""
    h, w = x.shape[1:3]
    product = functools.partial(jnp.einsum, precision='highest')
    x = x.astype(jnp.float32)
    along_w = product('bhwd,cwv->bchvd', x, _waves(w)[..., : w // 2 + 1])  # c: cosine, sine
    both = product('bchvd,shu->bcsuvd', along_w, _waves(h))
    # (a - ib)(cos - i sin) of the cosine part a and the sine part b of the first product
    real = both[:, 0, 0] - both[:, 1, 1]
    imaginary = both[:, 0, 1] + both[:, 1, 0]
    power = (jnp.square(real) + jnp.square(imaginary)).mean(-1) / (h * w)
    return jnp.log(1e-6 + product('buv,uvn->bn', power, _rings(h, w, bands)))


def _waves(n: int) -> np.ndarray:
    """Cosines and sines of the frequencies 0 to n - 1 at n places, [2, n, n]."""
    angle = 2 * np.pi * np.outer(np.arange(n), np.arange(n)) / n
    return np.stack([np.cos(angle), np.sin(angle)]).astype(np.float32)


def _rings(h: int, w: int, bands: int) -> np.ndarray:
    """The weight of each frequency in the mean of its band, [H, V, bands].

    Half of the frequencies of a real map are left out, as its other half says the same: those that
    stand for two count twice.
    """
    u, v = np.minimum(np.arange(h), h - np.arange(h))[:, None], np.arange(w // 2 + 1)
    # bands * sqrt(2 (u^2 / h^2 + v^2 / w^2)) in whole numbers: some frequencies are on an edge
    band = np.sqrt(2 * bands**2 * ((u * w) ** 2 + (v * h) ** 2) // (h * w) ** 2).astype(int)
    band = np.minimum(band, bands - 1)
    twice = np.where((v == 0) | (2 * v == w), 1.0, 2.0)
    weights = np.eye(bands)[band] * twice[:, None]
    return (weights / np.maximum(weights.sum((0, 1)), 1.0)).astype(np.float32)
