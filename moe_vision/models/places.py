"""How wide the blocks at routed places are, in a routed network and in its twins."""

import bisect
import math
from collections.abc import Callable
from fractions import Fraction

import jax

from moe_vision.common import flops
from moe_vision.common.errors import UserError
from moe_vision.common.place import Place
from moe_vision.config.schema import DROPPING, Moe
from moe_vision.layers.experts import Expert
from moe_vision.layers.moe import make_experts, make_router
from moe_vision.layers.route import slots_of, slots_per_token

_WIDEST = 2**24  # hidden units, in multiples that the block allows


def expert_at(moe: Moe, width: int, hidden: int) -> Expert:
    """The experts that copy a block of these widths, as one object if they differ.

    `moe.hidden` overrides the hidden width.
    """
    return make_experts(moe.kinds, moe.expert, moe.expert_args, width, moe.hidden or hidden)


def twin_expert(
    moe: Moe, twin: str, place: Place, width: int, hidden: int, payload: tuple[int, ...]
) -> Expert:
    """The dense block that stands at a routed place in the twin.

    With same_width, the twins that drop and ensemble it is one expert. With same_active_flops it is
    widened to the FLOPs of the experts that a token takes, with same_executed_flops to those of the
    slots that training keeps for a token, with same_params to the parameters of the router and of
    all experts, of which a layer has its share if others use them too. It gets the nearest hidden
    width that the block allows, and the larger of two that are equally near.

    If experts differ, the block is one of the first kind, and the FLOPs of an expert are the mean
    over all true experts, as balanced choices take them.

    Args:
      moe: what stands here, as `moe_at` returns it.
      place: where it is.
      width: D.
      hidden: F of the block that is copied; it is read if moe.hidden is 0.
      payload: shape of one token, ([H, W,] D).

    Raises:
      UserError: the block cannot be widened, because its cost does not grow with its hidden width.
    """
    experts = expert_at(moe, width, hidden)
    one = experts.reference
    if twin in ('same_width', 'ensemble', *DROPPING):
        return one

    def widened(n: int) -> Expert:
        return type(one)(one.args, width, n * one.multiple)

    def cost(expert: Expert) -> int:
        return expert_params(expert) if twin == 'same_params' else expert_flops(expert, payload)

    all_of_them = sum(cost(expert) * count for expert, count in experts.parts(moe.num_experts))
    router = make_router(moe.router, moe.router_args, place)
    if twin == 'same_params':
        target = Fraction(all_of_them, place.pool_layers)
        target += sum(math.prod(shape) for shape, _ in router.params(width).values())
        shared = sum(math.prod(shape) for shape, _ in router.shared_params().values())
        target += Fraction(shared, place.layers)
    else:
        passes = slots_per_token(moe, router)
        if twin == 'same_active_flops':
            passes = router.choices(slots_of(moe, train=True))
        target = passes * Fraction(all_of_them, moe.num_experts)
    n = _nearest(lambda n: cost(widened(n)), target)
    if not n:
        raise UserError(
            f"model.twin is '{twin}', which widens a block, but the cost of an expert "
            f"{type(one).__name__} does not grow with its hidden width; use 'same_width' or "
            "'ensemble', and name 'hidden' in its `ignores`."
        )
    return widened(n)


def _nearest(cost: Callable[[int], int], target: Fraction) -> int:
    """The n >= 1 whose cost, which rises with n, is nearest to `target`; 0 if it does not rise.

    Most costs are polynomials of degree two at most, so three of them tell the others. One more
    says whether they do; if not, the others are measured, too.
    """
    first, second, third = (cost(n) for n in (1, 2, 3))
    slope, bend = second - first, third - 2 * second + first

    def polynomial(n: int) -> int:
        return first + (n - 1) * slope + (n - 1) * (n - 2) // 2 * bend

    numbers = range(1, min(int(target) + 2, _WIDEST) + 1)
    at: Callable[[int], int] = polynomial
    above = bisect.bisect_left(numbers, math.ceil(target), key=polynomial) + 1
    if above > len(numbers) or cost(above) != polynomial(above):
        most, at = 1, cost
        while cost(most) < target:
            most *= 2
            if most > _WIDEST:
                return 0
        above = bisect.bisect_left(range(1, most + 1), math.ceil(target), key=cost) + 1
    if above > 1 and target - at(above - 1) < at(above) - target:
        return above - 1
    return above


def expert_flops(expert: Expert, payload: tuple[int, ...]) -> int:
    """FLOPs of one expert on one token."""
    params = {
        name: jax.ShapeDtypeStruct(shape, 'float32') for name, (shape, _) in expert.shapes().items()
    }
    x = jax.ShapeDtypeStruct((1, *payload), 'float32')
    return sum(flops.count(expert.run, params, x).values())


def expert_params(expert: Expert) -> int:
    """Parameters of one expert."""
    return sum(math.prod(shape) for shape, _ in expert.shapes().values())
