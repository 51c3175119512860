"""Trains what a network brings along more slowly than its classifier, and early layers slowest.

The updates of parameter p are multiplied by 1 in the classifier, by `trunk` elsewhere, and there by
`decay` to the power of p's distance from the end. The last block has distance 1, block i of n has
n - i, the stem with positions and class token n + 1, as what routed layers share has, and a norm
behind the blocks 0. Source: layer-wise learning rates (ULMFiT, Howard and Ruder 2018) in the form
of BEiT (Bao et al. 2022).
"""

import re

from moe_vision.transforms.types import Transform, by_path, paths

_FIRST = ('stem', 'position', 'class_token', 'bank_', 'router/')
_LAST = ('classifier', 'head')


class LayerDecay(Transform):
    def update(self, updates, params, *, step, state):
        del step
        scales = scales_of(paths(params), self.args.decay, self.args.trunk)
        return by_path(lambda path, u: u * scales[path], updates), state


def scales_of(names: list[str], decay: float, trunk: float) -> dict[str, float]:
    """The factor of every parameter, by its path.

    What stands between two stages (`down_1`) has the distance of the block that follows it if all
    stages are equally deep.
    """
    blocks = 1 + max((n for name in names if (n := _number('block', name)) is not None), default=-1)
    stages = 1 + max((n for name in names if (n := _number('down', name)) is not None), default=0)

    def scale(name: str) -> float:
        if name.startswith(_LAST):
            return 1.0
        distance = blocks + 1 if name.startswith(_FIRST) else 0
        if (block := _number('block', name)) is not None:
            distance = blocks - block
        if (stage := _number('down', name)) is not None:
            distance = blocks - round(stage * blocks / stages)
        return trunk * decay**distance

    return {name: scale(name) for name in names}


def _number(kind: str, name: str) -> int | None:
    """3 of 'block_3_attention/query/kernel'."""
    match = re.match(rf'{kind}_(\d+)', name)
    return int(match[1]) if match else None
