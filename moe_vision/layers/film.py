"""Experts that modulate features (MoFME, Zhang et al. 2023): two linear maps each.

    h = gelu(x A) * (x B)              shared, before the experts
    f_e(h) = (h Gamma_e) * h + h B_e   expert e: a feature-wise scale and shift, both made from h
    y = MLP(sum_e w_e f_e(h))          shared, after them: the adaptor, D -> D -> D

An expert has 2 D^2 parameters, against 8 D^2 of an MLP that is four times as wide. With 16 experts
and the 4 D^2 of the shared matrices that is 28 % of what 16 such MLPs have, as the paper says.

This project's own choices: x is what the block's norm gives, which is the norm of the paper where a
backbone has one; the adaptor is D wide inside, and it alone has biases; and the router reads h. A
token whose choices were all dropped has y = MLP(0).

Axes: E experts, N tokens, D width.
"""

import jax

from moe_vision.config.method_args import MlpArgs, NoArgs
from moe_vision.layers.experts import LECUN, Expert, Mlp, Shapes


class Film(Expert):
    """Scale and shift of vectors [N, D]. It has no hidden width."""

    def __init__(self, args, width, hidden):
        super().__init__(args, width, hidden)
        self.before = Modulated(NoArgs(), width, width)
        self.after = Mlp(MlpArgs(), width, width)

    def shapes(self) -> Shapes:
        square = (self.width, self.width)
        return {'scale_kernel': (square, LECUN), 'shift_kernel': (square, LECUN)}

    def apply(self, params, x):
        w = {n: p.astype(x.dtype) for n, p in params.items()}
        return (x @ w['scale_kernel']) * x + x @ w['shift_kernel']

    def apply_stacked(self, params, x):
        one = x.shape[0] == 1
        return super().apply_stacked(params, x) if one else self.apply(params, x)  # batched over E


class Modulated(Expert):
    """gelu(x A) * (x B) of vectors [N, D]."""

    def shapes(self) -> Shapes:
        square = (self.width, self.width)
        return {'a_kernel': (square, LECUN), 'b_kernel': (square, LECUN)}

    def apply(self, params, x):
        w = {n: p.astype(x.dtype) for n, p in params.items()}
        return jax.nn.gelu(x @ w['a_kernel']) * (x @ w['b_kernel'])
