"""How wide the blocks at routed places are, in a routed network and in its twins."""

import bisect
import math
from collections.abc import Callable
from fractions import Fraction

import jax

from moe_vision.common import flops
from moe_vision.common.place import Place
from moe_vision.config.schema import DROPPING, Moe
from moe_vision.layers.experts import Expert
from moe_vision.layers.moe import make_expert, make_router
from moe_vision.layers.route import slots_of, slots_per_token


def expert_at(moe: Moe, width: int, hidden: int) -> Expert:
    """The expert that copies a block of these widths; `moe.hidden` overrides the hidden width."""
    return make_expert(moe.expert, moe.expert_args, width, moe.hidden or hidden)


def twin_expert(
    moe: Moe, twin: str, place: Place, width: int, hidden: int, payload: tuple[int, ...]
) -> Expert:
    """The dense block that stands at a routed place in the twin.

    With same_width, the twins that drop and ensemble it is one expert. With same_active_flops it is
    widened to the FLOPs of the experts that a token takes, with same_executed_flops to those of the
    slots that training keeps for a token, with same_params to the parameters of the router and of
    all experts, of which a layer has its share if others use them too. It gets the nearest hidden
    width that the block allows, and the larger of two that are equally near.

    Args:
      moe: what stands here, as `moe_at` returns it.
      place: where it is.
      width: D.
      hidden: F of the block that is copied; it is read if moe.hidden is 0.
      payload: shape of one token, ([H, W,] D).
    """
    one = expert_at(moe, width, hidden)
    if twin in ('same_width', 'ensemble', *DROPPING):
        return one

    def widened(h: int) -> Expert:
        return make_expert(moe.expert, moe.expert_args, width, h)

    if twin in ('same_active_flops', 'same_executed_flops'):

        def cost(h: int) -> int:
            return expert_flops(widened(h), payload)

        router = make_router(moe.router, moe.router_args, place)
        passes = slots_per_token(moe, router)
        if twin == 'same_active_flops':
            passes = router.choices(slots_of(moe, train=True))
        target = passes * cost(one.hidden)
    else:

        def cost(h: int) -> int:
            return expert_params(widened(h))

        router = make_router(moe.router, moe.router_args, place)
        target = Fraction(moe.num_experts * cost(one.hidden), place.pool_layers)
        target += sum(math.prod(shape) for shape, _ in router.params(width).values())
        shared = sum(math.prod(shape) for shape, _ in router.shared_params().values())
        target += Fraction(shared, place.layers)
    return widened(one.multiple * _nearest(lambda n: cost(n * one.multiple), target))


def _nearest(cost: Callable[[int], int], target: Fraction) -> int:
    """The n >= 1 whose cost, a rising polynomial of degree two at most, is nearest to `target`."""
    first, second, third = (cost(n) for n in (1, 2, 3))
    slope, bend = second - first, third - 2 * second + first

    def polynomial(n):
        return first + (n - 1) * slope + (n - 1) * (n - 2) // 2 * bend

    above = bisect.bisect_left(range(1, int(target) + 2), target, key=polynomial) + 1
    if above > 1 and target - polynomial(above - 1) < polynomial(above) - target:
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
