r"""Experts that differ: large ones, small ones, one of your own, and none.

`model.moe.kinds` lists kinds of equal experts. Each kind is stacked by itself, so an expert may be
of any width and class, as long as it gives back the shape of its tokens. `skip` is a null expert,
which takes no slot and adds nothing. Twins copy the first kind. `python -m moe_vision.leverage`
prints which ids a kind has and what a token costs there.

    PYTHONPATH=. python main.py --config=configs/digits_k2.py --workdir=W \
        --config.model.moe.num_experts=8 --config.model.moe.kinds="(
            {'count': 4},
            {'count': 2, 'divide': 8},
            {'count': 2, 'expert': 'examples.kinds_of_experts:Rescale', 'args': {'bias': False}},
            {'expert': 'skip'})"

Axes: N tokens, H W space, D channels.
"""

import dataclasses

import jax

from moe_vision.layers.experts import Expert


@dataclasses.dataclass(frozen=True)
class Args:
    """Fields of `args` of the kind."""

    bias: bool = True


class Rescale(Expert):
    """Scales each channel and shifts it: no product, so it counts no FLOPs."""

    Args = Args
    needs = ('map', 'vector')
    ignores = ('hidden',)

    def shapes(self):
        scale = {'scale': ((self.width,), jax.nn.initializers.ones)}
        bias = {'bias': ((self.width,), jax.nn.initializers.zeros)}
        return scale | bias if self.args.bias else scale

    def apply(self, params, x):
        w = {name: p.astype(x.dtype) for name, p in params.items()}
        return w['scale'] * x + w.get('bias', 0)
