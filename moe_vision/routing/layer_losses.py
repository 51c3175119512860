"""Losses of a layer: `(view, key) -> scalar`, of router columns and experts, whatever the tokens.

They run once per routed layer and micro-batch. Over a mesh the experts' arrays are split along E;
what is written here makes the compiled program gather none of them.

A router that `supplies` its 'kernel' is linear: the column of its parameter `kernel` [D, N] that
belongs to an expert is what that expert's tokens are compared with.

Axes: E experts, D width, F outputs of an expert's first linear map, N ids of a router.
"""

import jax
import jax.numpy as jnp

from moe_vision.common.errors import UserError
from moe_vision.routing.types import Array, View


def erc(view: View, key: Array | None) -> Array:
    """Expert-router coupling, a scalar: an expert answers its own column most, and the reverse.

    R_i is the router's column of expert i, W^j the first matrix of expert j.

        R'_i = R_i * delta_i, delta_i ~ U(1 - eps_i, 1 + eps_i)^D,
        eps_i = min over j != i of |R_i - R_j| / (2 |R_i|),     M_ij = |R'_i W^j|,
        L = 1/E^2 sum over i and j != i of max(M_ij - a M_ii, 0) + max(M_ji - a M_ii, 0).

    With a = 1 it is zero if no expert answers another column as much as its own; a smaller a asks
    for a larger margin. Tokens are routed by R without noise.

    Source: arXiv 2512.23447. Choices of this project: gradients reach the router and the experts
    through M, but not through eps (`detach_router` keeps them from the router, as the authors'
    code is said to do); R is taken as it is also where the router normalises its tokens; a
    convolution counts as the matrix that `Expert.first_matrix` returns.

    Raises:
      UserError: the router has no kernel, the expert has no first matrix, or they read features of
        different widths.
      ValueError: there is no key.
    """
    columns, matrices = _columns('erc', view), view.expert.first_matrix(view.bank)
    if matrices.shape[1] != columns.shape[1]:
        raise UserError(
            f"loss 'erc' compares router columns of width {columns.shape[1]} with experts of width "
            f'{matrices.shape[1]}; take a router that reads the features that experts read.'
        )
    if key is None:
        raise ValueError("loss 'erc' draws at random: give the step a key")
    if view.num_experts == 1:
        return jnp.zeros((), jnp.float32)
    perturbed = proxies(columns, key)
    if view.args.detach_router:
        perturbed = jax.lax.stop_gradient(perturbed)
    return coupling(activation_norms(perturbed, matrices), view.args.alpha)


def orthogonality(view: View, key: Array | None) -> Array:
    """|P P^T - I|_F^2, a scalar; the rows of P [E, D] are the router's columns at unit length.

    It is zero if all columns are orthogonal, which E <= D allows; with more experts than features
    it is E^2 / D - E at the least.

    Source: GMoPE, arXiv 2511.03251, which takes the prompt vectors of its experts. The flattened
    weights of experts are no choice here: they would have to be gathered from all devices.

    Raises:
      UserError: the router has no kernel.
    """
    del key
    columns = _columns('orthogonality', view)
    length = _norm(columns)[:, None]
    unit = columns / jnp.where(length > 0, length, 1.0)
    return jnp.square(_gram(unit) - jnp.eye(len(unit))).sum()


def simbal(view: View, key: Array | None) -> Array:
    """The sum of |W^T W - I| over all pairs of experts, a scalar; W [D, E] is the router's kernel.

    It balances experts without counting tokens: a router with orthonormal columns keeps the
    distances between tokens in its logits. So it does not depend on how small a group is.

    Source: SimBal, arXiv 2506.14038.

    Raises:
      UserError: the router has no kernel.
    """
    del key
    columns = _columns('simbal', view)
    return jnp.abs(_gram(columns) - jnp.eye(len(columns))).sum()


def proxies(columns: Array, key: Array) -> Array:
    """Columns [E, D], each moved at random by less than half the way to the nearest other one."""
    fixed = jax.lax.stop_gradient(columns)
    apart = _norm(fixed[:, None] - fixed)
    nearest = jnp.where(jnp.eye(len(columns), dtype=bool), jnp.inf, apart).min(-1)
    length = _norm(fixed)
    eps = jnp.where(length > 0, nearest / (2 * jnp.where(length > 0, length, 1.0)), 0.0)
    drawn = jax.random.uniform(key, columns.shape, minval=-1.0)
    return columns * (1 + eps[:, None] * drawn)


def activation_norms(rows: Array, matrices: Array) -> Array:
    """M [E, E]: the norm of row i, [D], times matrix j, [D, F]. Column j needs matrix j alone."""
    return _norm(jnp.einsum('id,jdf->ijf', rows, matrices, precision='highest'))


def coupling(norms: Array, alpha: float) -> Array:
    """The sum over i and j != i of max(M_ij - a M_ii, 0) + max(M_ji - a M_ii, 0), over E^2."""
    e = len(norms)
    eye = jnp.eye(e, dtype=norms.dtype)
    # The sums over rows and over columns give the same numbers, along i and along j: along j they
    # stay where the experts are, and along i the devices add up E numbers.
    of_row, of_column = (norms * eye).sum(1)[:, None], (norms * eye).sum(0)
    above = jax.nn.relu(norms - alpha * of_row) + jax.nn.relu(norms - alpha * of_column)
    return jnp.sum(above * (1 - eye)) / e**2


def _columns(loss: str, view: View) -> Array:
    """The router's columns of true experts as rows, [E, D], float32."""
    kernel = view.params.get('kernel')
    if kernel is None:
        raise UserError(
            f"loss '{loss}' needs a linear router, one with a parameter 'kernel' [D, E]; set the "
            'loss to 0.'
        )
    return kernel.astype(jnp.float32)[:, : view.num_experts].T


def _gram(rows: Array) -> Array:
    """The products of all pairs of rows [E, D], [E, E]."""
    return jnp.einsum('id,jd->ij', rows, rows, precision='highest')


def _norm(values: Array) -> Array:
    """Euclidean norm over the last axis; its gradient at zero is zero."""
    squared = jnp.square(values).sum(-1)
    positive = squared > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, squared, 1.0)), 0.0)
