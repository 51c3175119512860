"""A network with each kind of block once: compiled in a part of the time, it sends the same things.

Blocks are of one kind where they stand in the same stage and are routed or are not.
"""

import dataclasses
from typing import Any

from moe_vision.settings import Config, routed_blocks


def shortened(config: Config) -> Config:
    """The config with no block repeated; itself where its backbone has no `depth` or `depths`."""
    args, moe = config.model.args, config.model.moe
    if not hasattr(args, 'depth') and not hasattr(args, 'depths'):
        return config
    sizes = _stages(args)
    routed, number, stages = routed_blocks(moe.placement, sum(sizes)), 0, []
    for size in sizes:
        kinds = dict.fromkeys(n in routed for n in range(number, number + size))
        stages.append(list(kinds))
        number += size
    if hasattr(args, 'depth'):  # the same in every stage
        most = max(map(len, stages))
        stages = [kinds + kinds[-1:] * (most - len(kinds)) for kinds in stages]
        args = dataclasses.replace(args, depth=most)
    else:
        depths = (d - size + len(kinds)
                  for d, size, kinds in zip(args.depths, sizes, stages, strict=True))
        args = dataclasses.replace(args, depths=tuple(depths))
    flags = [is_routed for kinds in stages for is_routed in kinds]
    placement = ','.join(str(n) for n, is_routed in enumerate(flags) if is_routed)
    moe = dataclasses.replace(moe, placement=placement or moe.placement)
    return dataclasses.replace(config, model=dataclasses.replace(
        config.model, args=args, moe=moe))


def _stages(args: Any) -> list[int]:
    """How many blocks of each stage `placement` counts."""
    if hasattr(args, 'depth'):
        return [args.depth] * len(getattr(args, 'widths', (0,)))
    uncounted = (sum(args.depths) - args.blocks) // len(args.depths)
    return [d - uncounted for d in args.depths]
