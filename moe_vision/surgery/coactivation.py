"""Which hidden units of a block fire together, and what the block reads when they do.

Axes: N tokens, D width, F hidden units of the block, P parts.
"""

import functools
from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from moe_vision.config.schema import Config
from moe_vision.layers.experts import Expert
from moe_vision.routing.linear import normalized
from moe_vision.surgery import hidden_units, samples
from moe_vision.surgery.state import State

Array = jax.Array
_product = functools.partial(jnp.einsum, precision='highest')


def seen(
    source: State, config: Config, args: Any, blocks: Collection[str], normalize: bool
) -> samples.Sums:
    """What hidden units did on samples: for each block 'together' [F, F], 'fired' [F] and 'inputs'
    [D, F], sums over tokens t (in maps also over places) of h_n h_m, of h_n, and of x_t h_n.

    h is the part above 0 of an activation, and x_t what a router reads: the mean of a map.

    Args:
      normalize: whether the router brings x_t to zero mean and unit variance.
    """

    def look(expert: Expert, params: dict[str, Array], x: Array, counted: Array) -> Any:
        fired = jax.nn.relu(expert.units(params, x).astype(jnp.float32))
        fired = fired.reshape(len(x), -1, fired.shape[-1]) * counted[:, None, None]
        mean = x.astype(jnp.float32).mean(tuple(range(1, x.ndim - 1)))
        return {
            'together': _product('nsf,nsg->fg', fired, fired),
            'fired': fired.sum((0, 1)),
            'inputs': _product('nd,nsf->df', normalized(mean) if normalize else mean, fired),
        }

    return samples.of_blocks(source, config, args, blocks, look)


def parts(together: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Parts of equal size whose units fire together: [P, F / P].

    The graph is that of MoEfication (Zhang et al. 2022, arXiv 2110.01786): units n and m are linked
    by the sum over tokens of h_n h_m. The authors cut it by METIS. Here links are divided by the
    lengths of h_n and h_m, so that a strong unit draws no more than others, and the cut is a
    balanced k-means with these links as inner products, from units that are linked least.

    Args:
      together: [F, F], as `seen` gives it.
    """
    length = np.sqrt(np.diag(together))
    links = together / np.maximum(np.outer(length, length), 1e-12)
    values, vectors = np.linalg.eigh(links)
    points = vectors * np.sqrt(np.maximum(values, 0.0))  # their inner products are the links
    fires = length > 0 if length.any() else np.ones(len(length), bool)
    first = [np.random.default_rng(seed).choice(np.flatnonzero(fires))]
    while len(first) < count:  # the unit that is linked least to those before; never a silent one
        linked = np.where(fires, links[:, first].max(1), 1e30)
        linked[first] = np.inf
        first.append(np.argmin(linked))
    return hidden_units.clusters(points.astype(np.float32), count, seed, np.asarray(first))


def columns(found: dict[str, np.ndarray], ids: np.ndarray) -> np.ndarray:
    """A router's column for each part: the mean input for which its units fire, less the mean of
    these over the parts; [D, P].

    Args:
      found: of a block, as `seen` gives it.
      ids: [P, F / P].
    """
    fired = found['fired'][ids].sum(1)
    mean = found['inputs'][:, ids].sum(2) / np.maximum(fired, 1e-12)
    return mean - mean.mean(1, keepdims=True)
