"""What routers keep between steps, updated once after each optimizer step."""

from typing import Any

import jax
import jax.numpy as jnp

from moe_vision.config.schema import Moe
from moe_vision.layers import Step
from moe_vision.layers.moe import make_router
from moe_vision.transforms.types import by_path, router_of

Array = jax.Array
Tree = Any


def updated_router_state(
    moe: Moe, state: Tree, layers: dict[str, dict[str, Array]], observed: dict[str, Any]
) -> Tree:
    """The routers' state after a step, updated from what the step counted.

    Args:
      state: nested by the layers' paths.
      layers: each routed layer's telemetry, by path.
      observed: by path, (what the layer's router observed, where the layer stands).
    """

    def put(tree, path, router, sums):
        if not path:
            return {**tree, 'router': router.update_state(tree['router'], sums)}
        return {**tree, path[0]: put(tree[path[0]], path[1:], router, sums)}

    by_layer = []
    for layer, counts in layers.items():
        seen, place = observed[layer]
        router = make_router(moe.router, moe.router_args, place.value)
        sums = {**seen, 'chosen': counts['chosen'], 'tokens': counts['tokens']}
        by_layer.append((place.value.layer, router, sums))
        if router.init_state():
            state = put(state, layer.split('/'), router, sums)
    _, routers, sums_of = zip(*sorted(by_layer, key=lambda x: x[0]), strict=True)
    if routers[0].init_shared_state():
        state = {**state, 'router': routers[0].update_shared_state(state['router'], list(sums_of))}
    return state


def still_where_settled(settled: dict[str, Array], before: Tree, after: Tree) -> Tree:
    """The routers' state after a step, but that of before where routes are settled.

    Args:
      settled: as in `Step.settled`.
      before, after: nested by the layers' paths.
    """
    step = Step(settled=settled)
    return by_path(
        lambda path, a, b: where_settled(step.settled_at(router_of(path) or ''), a, b),
        before,
        after,
    )


def where_settled(settled: Array | None, if_so: Array, otherwise: Array) -> Array:
    """One of two arrays; `otherwise` if routes are never settled."""
    return otherwise if settled is None else jnp.where(settled, if_so, otherwise)
