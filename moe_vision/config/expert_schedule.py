"""How many experts each routed layer has where `model.moe.schedule` varies their number.

Axes: L routed layers, u in [0, 1] the place of a layer among them.
"""

import math
from fractions import Fraction

from moe_vision.common.errors import UserError
from moe_vision.config.schema import Moe

SHAPES = {
    'uniform': lambda u: Fraction(0),
    'descending': lambda u: 1 - u,
    'ascending': lambda u: u,
    'pyramid_up': lambda u: 1 - abs(2 * u - 1),
    'pyramid_down': lambda u: abs(2 * u - 1),
    # one wave; rounded, so that the numbers of experts are the same on every machine
    'wave': lambda u: (1 + Fraction(f'{math.sin(2 * math.pi * u):.9f}')) / 2,
}


def experts_of_layers(moe: Moe, layers: int) -> tuple[int, ...]:
    """N_l, the experts of each of L routed layers; their sum is L * `moe.num_experts`.

        N_l = least + spread * shape(l / (L - 1)), where the spread is what makes the sum right

    Numbers are rounded down; the layers with the largest remainders, the earlier one of two, get
    what is missing.

    Source: DynaMoE, arXiv 2603.01697, whose sum of experts is not fixed.

    Raises:
      UserError: the schedule would leave all layers the same number.
    """
    e, least = moe.num_experts, moe.schedule_least or max(moe.num_experts // 2, 1)
    if moe.schedule == 'uniform':
        return (e,) * layers
    shape = [SHAPES[moe.schedule](Fraction(n, max(layers - 1, 1))) for n in range(layers)]
    if len(set(shape)) == 1 or least >= e:
        raise UserError(
            f"model.moe.schedule '{moe.schedule}' leaves {layers} routed layers of {e} experts as "
            f'they are, with {least} at the least; give it more layers or experts, or a smaller '
            "model.moe.schedule_least, or set it to 'uniform'."
        )
    exact = [least + layers * (e - least) * s / sum(shape) for s in shape]
    counts = [math.floor(x) for x in exact]
    by_remainder = sorted(range(layers), key=lambda n: (counts[n] - exact[n], n))
    for n in by_remainder[: layers * e - sum(counts)]:
        counts[n] += 1
    return tuple(counts)
