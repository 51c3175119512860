"""MLP experts whose matrices are low-rank plus column-sparse (MC-SMoE, Li et al. 2024, arXiv
2310.01334; of a matrix, LoSparse, Li et al. 2023, arXiv 2306.11222).

    W1 = U1 V1 + [S1 | 0],   W2 = U2 V2 + [S2 / 0],   y = act(x W1 + b1) W2 + b2

Hidden units may stand in any order, so those that have values of their own in S stand first, and
S1 and S2 are stored without zeros. The authors cut the columns of each matrix by themselves; here
both matrices keep those of the same hidden units.

Axes: N tokens, D width, F hidden width, R rank, Q hidden units in S.
"""

import math
from fractions import Fraction

import jax.numpy as jnp

from moe_vision.config.method_args import MlpArgs
from moe_vision.layers.experts import ACTIVATIONS, LECUN, ZEROS, Expert, Mlp, Shapes
from moe_vision.layers.parts import biased


class LowRankMlp(Expert):
    """D -> F -> D on vectors [N, D]. A twin's block is an MLP, which these experts stand for.

    With R = min(D, F) or Q = F they are able to compute what any MLP does.
    """

    @property
    def rank(self) -> int:
        """R = ceil(ratio D F / (D + F)), at which U and V have about `ratio` of the parameters of
        W; at most the rank that W can have."""
        d, f = self.width, self.hidden
        share = Fraction(str(self.args.parameter_ratio)) * d * f
        return min(math.ceil(share / (d + f)), d, f)

    @property
    def kept(self) -> int:
        """Q, the share `columns` of the hidden units."""
        return math.ceil(Fraction(str(self.args.columns)) * self.hidden)

    @property
    def reference(self) -> Mlp:
        return Mlp(MlpArgs(self.args.activation), self.width, self.hidden)

    def shapes(self) -> Shapes:
        d, f, r, q = self.width, self.hidden, self.rank, self.kept
        sparse: Shapes = {'in_sparse': ((d, q), ZEROS), 'out_sparse': ((q, d), ZEROS)}
        return {
            'in_down': ((d, r), LECUN),
            'in_up': ((r, f), LECUN),
            'in_bias': ((f,), ZEROS),
            'out_down': ((f, r), LECUN),
            'out_up': ((r, d), LECUN),
            'out_bias': ((d,), ZEROS),
        } | (sparse if q else {})

    def apply(self, params, x):
        w = {n: p.astype(x.dtype) for n, p in params.items()}
        h = x @ w['in_down'] @ w['in_up']
        if self.kept:
            rest = [(0, 0)] * (h.ndim - 1) + [(0, self.hidden - self.kept)]
            h = h + jnp.pad(x @ w['in_sparse'], rest)
        h = biased(ACTIVATIONS[self.args.activation], h, w['in_bias'])
        y = h @ w['out_down'] @ w['out_up'] + w['out_bias']
        return y + h[..., : self.kept] @ w['out_sparse'] if self.kept else y

    def first_matrix(self, params):
        low = params['in_down'] @ params['in_up']
        if not self.kept:
            return low
        rest = [(0, 0)] * (low.ndim - 1) + [(0, self.hidden - self.kept)]
        return low + jnp.pad(params['in_sparse'], rest)
