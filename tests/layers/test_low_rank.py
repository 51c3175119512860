"""Low-rank plus column-sparse experts against the MLP that their matrices make.

Axes: N tokens, D width, F hidden width, R rank, Q hidden units in S.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from layer_cases import normal

from moe_vision.common.errors import UserError
from moe_vision.config.method_args import LowRankArgs
from moe_vision.layers.moe import make_expert
from moe_vision.models.places import expert_flops, expert_params

D, F = 12, 40


def low_rank(**args):
    made = make_expert('low_rank_mlp', args, D, F)
    return made, {
        n: 0.3 * normal(i, *shape) for i, (n, (shape, _)) in enumerate(made.shapes().items())
    }


@pytest.mark.parametrize('columns', [0.0, 0.25, 1.0])
def test_it_is_the_mlp_of_its_matrices(columns):
    made, p = low_rank(columns=columns, parameter_ratio=0.5)
    assert (made.rank, made.kept) == (5, round(columns * F))  # 0.5 * 480 / 52 = 4.6
    first, second = p['in_down'] @ p['in_up'], p['out_down'] @ p['out_up']
    if made.kept:
        first = first.at[:, : made.kept].add(p['in_sparse'])
        second = second.at[: made.kept].add(p['out_sparse'])
    mlp = {'in_kernel': first, 'out_kernel': second} | {n: p[n] for n in ('in_bias', 'out_bias')}
    x = normal(9, 5, D)
    reference = made.reference
    chex.assert_trees_all_close(made.apply(p, x), reference.apply(mlp, x), atol=1e-5)
    bank = {n: w[None] for n, w in p.items()}
    chex.assert_trees_all_close(made.first_matrix(bank)[0], first, atol=1e-6)
    gradient = jax.grad(lambda p: jnp.sum(made.apply(p, x) ** 2))(p)
    assert all(np.isfinite(g).all() and g.any() for g in gradient.values())


def test_parameters_and_flops_are_those_of_the_formula():
    """0.15 * 480 / 52 = 1.4, so R is 2; a quarter of 40 hidden units is 10."""
    made, _ = low_rank()
    r, q = 2, 10
    assert (made.rank, made.kept) == (r, q)
    weights = 2 * r * (D + F) + 2 * q * D
    assert expert_params(made) == weights + D + F
    assert expert_flops(made, (D,)) == 2 * weights
    assert expert_flops(made.reference, (D,)) == 2 * 2 * D * F


def test_the_rank_is_at_most_that_of_the_matrix():
    made, p = low_rank(parameter_ratio=99.0, columns=0.0)
    assert made.rank == D and set(p) == {
        *('in_down', 'in_up', 'in_bias', 'out_down', 'out_up', 'out_bias')
    }
    begun = make_expert('low_rank_mlp', None, D, F).shapes()
    assert not begun['in_sparse'][1](jax.random.key(0), (D, 10)).any()  # S begins with nothing


@pytest.mark.parametrize('args', [{'parameter_ratio': 0.0}, {'columns': 1.5}, {'columns': -0.1}])
def test_shares_that_are_none_are_one_line(args):
    with pytest.raises(UserError, match=f'{next(iter(args))} is ') as e:
        LowRankArgs(**args)
    assert '\n' not in str(e.value)
